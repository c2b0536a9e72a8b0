#!/usr/bin/env bash
# Tests packaging/build.sh: the same bytes twice, what is in the packages, what is refused. What they do when they are
# installed is tested on a real systemd, in tests/systemd.
# shellcheck disable=SC2317 # check calls them
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${1:-target/debug/baton}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

check() { # WHAT COMMAND…
  local what=$1
  shift
  if "$@" > "$work/said" 2>&1; then
    printf '  ok      %s\n' "$what"
  else
    printf '  FAILED  %s\n' "$what"
    sed 's/^/          | /' "$work/said"
    failed=1
  fi
}
not() { ! "$@"; }

export SOURCE_DATE_EPOCH=1790000000
build() { packaging/build.sh --fast --binary "$binary" "$@"; }
check "packages are built" build --out "$work/a"
# Another time, another mask of modes, another folder for what is temporary.
mkdir "$work/tmp"
again() (umask 077 && export TMPDIR=$work/tmp && build --out "$work/b")
check "and once more" again
check "byte for byte the same" diff "$work/a/SHA256SUMS" "$work/b/SHA256SUMS"
sums() (cd "$work/a" && sha256sum --check SHA256SUMS)
check "SHA256SUMS is right" sums

deb=$(echo "$work"/a/*.deb) rpm=$(echo "$work"/a/*.rpm) tar=$(echo "$work"/a/*.tar.gz)
dpkg-deb --contents "$deb" > "$work/deb.list"
rpm --query --package --list "$rpm" > "$work/rpm.list" 2> /dev/null
tar --list --file "$tar" > "$work/tar.list"
for file in bin/baton share/man/man1/baton-mutex-run.1.gz share/bash-completion/completions/baton share/baton/agent.toml; do
  for kind in deb rpm tar; do check "$kind: $file" grep -q "/$file$" "$work/$kind.list"; done
done
for file in lib/systemd/system/baton.service lib/systemd/system/baton@.service lib/tmpfiles.d/baton.conf; do
  for kind in deb rpm; do check "$kind: $file" grep -q "/usr/$file$" "$work/$kind.list"; done
done
ordered() { rpm --query --package --queryformat '[%{ORDERNAME}\n]' "$rpm" 2> /dev/null | grep --count '^systemd$' | grep -qx 3; }
check "rpm: it comes after systemd, and goes before it" ordered
check "all files are root's" not grep -v ' root/root ' "$work/deb.list"
check "no key or certificate is in them" not grep -E 'key|\.pem|\.crt' "$work/deb.list"
check "it says which glibc it needs" grep -Eq 'libc6 \(>= 2\.[0-9]+\)' <(dpkg-deb --field "$deb" Depends)
check "and nothing else" not grep -q , <(dpkg-deb --field "$deb" Depends)
mkdir "$work/foreign"
needs_more() {
  cc -x c - -o "$work/foreign/baton" -Wl,--no-as-needed -lgcc_s <<< 'int main(void) { return 0; }' &&
    packaging/build.sh --fast --binary "$work/foreign/baton" --out "$work/foreign" tar
}
check "a program that needs another library is refused" grep -q 'needs libgcc_s.so.1' <(needs_more 2>&1)
check "the configuration is the administrator's" grep -qx /etc/baton/agent.toml <(dpkg-deb --info "$deb" conffiles)
check "the configuration in the package says nothing but where to read" not grep -v '^#' packaging/etc/agent.toml
# Else dpkg would ask each administrator who changed theirs which of the two to keep, and stop where nobody answers.
expected=2de862a4b2af06ef59c2bbba669c53eb
check "and never changes" grep -q "^$expected " <(md5sum packaging/etc/agent.toml)

mkdir "$work/usr"
tar --extract --file "$tar" --strip-components 1 --directory "$work/usr"
check "the tarball's program runs" "$work/usr/bin/baton" --version
check "the tarball says how to install it" grep -q 'service install' "$work/usr/share/doc/baton/INSTALL"

check "a version before a release sorts before it" build --version 1.5.0-rc.1 --out "$work/rc" deb
check "in the name" test -e "$work"/rc/baton_1.5.0~rc.1-1_*.deb
check "as dpkg sorts" dpkg --compare-versions '1.5.0~rc.1-1' lt 1.5.0-1
check "a version that is none is refused" not build --version latest --out "$work/none" deb
check "a program that is none is refused" not packaging/build.sh --binary README.md --out "$work/none" deb

if type -P lintian > /dev/null; then
  check "lintian finds nothing" lintian --profile debian --fail-on error,warning --allow-root "$deb"
else
  echo "  skipped: no lintian here"
fi
exit "$failed"
