#!/usr/bin/env bash
# Tests the packages on a real systemd: boots it in a box that sees this machine's files but changes none of them, and
# runs the checks in tests/systemd/checks, each file in a new box. docs/install.md says how the box is made.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() {
  cat << 'END'
Usage: tests/systemd/run.sh [--binary FILE | --packages DIR] [--shell] [CHECK…]

Builds the packages, boots a systemd in a box for each file of tests/systemd/checks, and runs it there.

  --binary FILE    what the packages hold. Default: target/debug/baton
  --packages DIR   what packaging/build.sh built before, with the older version in DIR/previous
  --shell          no checks: a shell in a box with the package installed
  CHECK            only files whose name contains it

Examples:
  tests/systemd/run.sh
  tests/systemd/run.sh upgrade reboot
  tests/systemd/run.sh --shell

The examples for other inits are run on them when their packages of Debian are in target/packages/inits, or in the folder
BATON_BOX_INITS: apt-get download openrc librc1 libeinfo1 insserv runit

Exit status: 0 all checks passed, 1 one failed, 2 usage, 77 skipped, since no box can be made here.
BATON_TEST_REQUIRE_SYSTEMD=1 makes a skip an error. BATON_BOX_SECONDS bounds one file of checks; default 300.
END
}

# How long one file of checks may take.
readonly FILE_SECONDS=${BATON_BOX_SECONDS:-300}

skip() {
  printf '\n!! SKIPPED: no systemd in a box here: %s\n!! The packages and the service are NOT tested on this machine.\n' "$1"
  [[ ${BATON_TEST_REQUIRE_SYSTEMD:-} == 1 ]] && exit 1
  exit 77
}

binary=target/debug/baton packages='' shell='' wanted=()
while (($#)); do
  case $1 in
    --binary) binary=${2:?--binary FILE} && shift ;;
    --packages) packages=${2:?--packages DIR} && shift ;;
    --shell) shell=1 ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *) wanted+=("$1") ;;
  esac
  shift
done

# What a box needs, as far as it can be told without making one.
needs() {
  ((EUID == 0)) || skip "this is not root"
  [[ -x /usr/lib/systemd/systemd || -x /lib/systemd/systemd ]] || skip "no systemd (package systemd)"
  local command
  for command in systemd-nspawn:systemd-container dbus-daemon:dbus dpkg:dpkg nsenter:util-linux unshare:util-linux setpriv:util-linux; do
    type -P "${command%%:*}" > /dev/null || skip "no ${command%%:*} (package ${command##*:})"
  done
  unshare --mount --pid --fork true 2> /dev/null || skip "no namespaces of mounts and processes may be made"

  unshare --mount --propagation private bash -c '
    mount -t tmpfs tmpfs /run && mkdir /run/{up,work,root} &&
    mount -t overlay overlay -o lowerdir=/,upperdir=/run/up,workdir=/run/work /run/root' 2> /dev/null ||
    skip "no overlay of / may be mounted"
}

# The control groups that a box gets for its own, named as the scratch folder: one below ours in each hierarchy that systemd keeps its units in.
cgroups() {
  local number controllers path top
  while IFS=: read -r number controllers path; do
    case $number:$controllers in
      0:) top=/sys/fs/cgroup/unified && [[ -d $top ]] || top=/sys/fs/cgroup ;;
      *:name=systemd) top=/sys/fs/cgroup/systemd ;;
      *) continue ;;
    esac
    # Above what may be seen from here.
    [[ $path == /..* ]] || printf '%s\n' "$top${path%/}/baton-box-${scratch##*.}"
  done < /proc/self/cgroup
}

make_cgroups() {
  local folder old
  while read -r folder; do
    # What a run left that was killed. Not by its process: runs may be in several namespaces.
    while read -r old; do
      find "$old" -depth -type d -exec rmdir {} + 2> /dev/null || true
    done < <(find "${folder%/*}" -maxdepth 1 -name 'baton-box-*' -mmin +60)
    mkdir "$folder" 2> /dev/null || skip "no control group may be made in ${folder%/*}"
  done < <(cgroups)
}

# What is killed with a box leaves its groups as soon as it is gone.
remove_cgroups() {
  local folder try
  while read -r folder; do
    for ((try = 0; try < 100; try++)); do
      [[ -d $folder ]] || break
      find "$folder" -depth -type d -exec rmdir {} + 2> /dev/null && break
      sleep 0.05
    done
  done < <(cgroups)
}

# Becomes a bash in namespaces of its own, of mounts and of processes: nothing that it mounts is seen outside, and when it
# ends, or this script does, however that comes, the kernel ends all that is left in them. FILE_SECONDS bounds it.
in_namespaces() {
  local die=(setpriv --pdeathsig KILL --)
  exec "${die[@]}" timeout ${foreground:+--foreground} --signal KILL "${limit:-$FILE_SECONDS}" \
    "${die[@]}" unshare --mount --propagation private --pid --fork --kill-child=KILL --mount-proc \
    bash tests/systemd/box.sh "$@"
}

# The same program twice: what an upgrade does is the same.
build_packages() {
  rm -rf "$packages"
  packaging/build.sh --fast --binary "$binary" --out "$packages" &&
    packaging/build.sh --fast --binary "$binary" --out "$packages/previous" --version 0.0.9
}

scratch=$(mktemp -d)
child=
cleanup() {
  trap '' INT TERM
  [[ -z $child ]] || { kill -KILL "$child" 2> /dev/null && wait "$child" 2> /dev/null; } || true
  remove_cgroups
  rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

needs
if [[ -z $packages ]]; then
  [[ -x $binary ]] || { echo "error: no $binary; cargo build makes it, --binary names another one" >&2 && exit 2; }
  packages=target/packages/box
  build_packages > "$scratch/build" 2>&1 || { cat "$scratch/build" && exit 1; }
fi
packages=$(realpath "$packages")
export BATON_BOX_PACKAGES=$packages BATON_BOX_SCRATCH=$scratch BATON_BOX_CGROUPS
export BATON_BOX_INITS=${BATON_BOX_INITS:-$PWD/target/packages/inits} BATON_BOX_BINARY
BATON_BOX_BINARY=$(realpath --canonicalize-missing "$binary")
make_cgroups
BATON_BOX_CGROUPS=$(cgroups)
: > "$scratch/results"

if [[ $shell ]]; then
  # In a process of its own, so that what is left is removed.
  (foreground=1 limit=0 && in_namespaces --shell)
  exit
fi

# Whether this machine lets a systemd boot at all is only known by trying.
(in_namespaces --try) > "$scratch/try" 2>&1 || skip "it does not boot:$(printf '\n'; tail -n 15 "$scratch/try")"

begin=${EPOCHREALTIME/[.,]/}
for file in tests/systemd/checks/*.sh; do
  [[ " ${wanted[*]-} " == "  " ]] || {
    for word in "${wanted[@]}"; do [[ $file == *"$word"* ]] && break; done
    [[ $file == *"$word"* ]] || continue
  }
  name=$(basename "$file" .sh)
  file_begin=${EPOCHREALTIME/[.,]/}
  printf '\n%s\n' "$name"
  find "$scratch" -type f ! -name results -delete
  in_namespaces "$file" &
  child=$!
  status=0
  wait "$child" || status=$?
  child=
  # A file says by itself which checks failed; here it did not get so far.
  ((status <= 1)) || {
    printf '  FAILED  %s ended with %s\n' "$name" "$status"
    printf 'FAILED %s: ended with %s\n' "$name" "$status" >> "$scratch/results"
  }
  printf '          %6d ms in all\n' $(((${EPOCHREALTIME/[.,]/} - file_begin) / 1000))
  remove_cgroups
  make_cgroups
done

passed=$(grep -c '^ok ' "$scratch/results" || true)
failed=$(grep -c '^FAILED ' "$scratch/results" || true)
printf '\n%d checks passed, %d failed, in %d s\n' "$passed" "$failed" $(((${EPOCHREALTIME/[.,]/} - begin) / 1000000))
grep '^FAILED ' "$scratch/results" || true
if grep '^SKIPPED ' "$scratch/results"; then
  [[ ${BATON_TEST_REQUIRE_SYSTEMD:-} != 1 ]] || exit 1
  ((failed > 0)) || exit 77
fi
((passed > 0)) || { echo "error: no check ran" >&2 && exit 1; }
((failed == 0))
