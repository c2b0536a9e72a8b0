#!/usr/bin/env bash
# Makes tests/compat/VERSION: what a release of baton leaves on disk, from a real run of its program.
#
#   tests/compat/make.sh VERSION PROGRAM
#
# Run it when a release is made, with that release's program, and commit what it writes; never run it again for
# that version. Needs root (a mount namespace with a boot id of its own, so that whoever reads the files has
# "restarted the machine" since), Python 3 and tar.
#
#   VERSION/machine.tar.gz  config/ state/ mutex/ of an agent that was killed, with all of its scripts
#   VERSION/history.jsonl   `baton list --json` of the scripts that were done, at that time
#   VERSION/logs/ID         `baton logs ID`, byte for byte
#   VERSION/identity        the agent's fingerprint, as `baton agent init` printed it
#   VERSION/database-N.sql  the same scripts in each older version of the database
#
# The keys in it are throw-away keys: they were made for these files and nobody trusts them.
# shellcheck disable=SC2016 # what is in single quotes is for the scripts to expand
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$1 program=$(realpath "$2")

if [[ ${BOOT:-} != faked ]]; then
  boot=$(mktemp)
  echo "00000000-0000-4000-8000-000000000001" > "$boot"
  exec unshare -m sh -c 'mount --bind "$0" /proc/sys/kernel/random/boot_id && BOOT=faked exec "$@"' \
    "$boot" "$0" "$version" "$program"
fi

kept=$PWD/tests/compat/$version
world=$(mktemp -d /tmp/bcXXXX)
rm -rf "$kept"
mkdir -p "$kept/logs"
cp "$program" "$world/baton"
baton=$world/baton
export BATON_CONFIG_DIR=$world/config BATON_STATE_DIR=$world/state BATON_RUNTIME_DIR=$world/run
export BATON_MUTEX_DIR=$world/mutex NO_COLOR=1 HOME=$world USER=root LANG=C.UTF-8 TZ=UTC
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
scripts=$BATON_STATE_DIR/scripts

# Waits until a command succeeds: a minute at most.
until_ok() {
  for ((i = 0; i < 600; i++)); do
    if "$@" > /dev/null 2>&1; then return; fi
    sleep 0.1
  done
  echo "waited too long for: $*" >&2
  exit 1
}
# The script's phase is this one.
stands() { "$baton" show "$1" --json | grep -q "\"phase\":\"$2\""; }
# Somebody holds the mutex.
is_held() { grep -q holds_since "$BATON_MUTEX_DIR/$1/line/"*.x; }
is_done() { stands "$1" "done"; }
run() { "$baton" run --detach --id "$@" > /dev/null; }
# All processes below one, then that.
end_tree() {
  local children child
  read -ra children <<< "$(cat "/proc/$1/task/"*/children 2> /dev/null | tr '\n' ' ')"
  for child in "${children[@]}"; do end_tree "$child"; done
  kill -KILL "$1" 2> /dev/null || true
}
kill_supervisor() { end_tree "$(cat "$scripts/$1/supervisor")"; }

"$baton" agent init --json | sed -n 's/.*"fingerprint":"\([0-9a-f]*\)".*/\1/p' > "$kept/identity"
"$baton" identity > /dev/null
"$baton" agent trust 1111111111111111111111111111111111111111111111111111111111111111 --name ci
"$baton" agent trust 2222222222222222222222222222222222222222222222222222222222222222 \
  --name until-2099 --expires 2099-01-01
"$baton" agent run --listen none 2> "$world/log" &
agent=$!
trap 'end_tree "$agent"' EXIT
until_ok "$baton" agent info

# One that is done of each kind.
run exited-0 --label project=web --label environment=Live --env WHO=world -c '
  echo "hello $WHO"; echo "to stderr" >&2
  echo "##octopus[setVariable name='\''Zm91bmQ='\'' value='\''NDI='\'']"
  printf "no newline, \303\244, \000\377"
  echo "version=1.2" >> "$BATON_OUTPUT"; echo "100 all" > "$BATON_PROGRESS"
  echo report > "$BATON_ARTIFACTS/report.txt"'
until_ok is_done exited-0
run exited-3 --bypass-mutex --at-most 2 --exclusive-key web/prod --label project=web -c 'echo three; exit 3'
until_ok is_done exited-3
run signalled --observe -c 'kill -KILL $$'
until_ok is_done signalled
run timed-out --timeout 1s -c 'echo begun; sleep 1000'
until_ok is_done timed-out
run not-started --interpreter /nowhere/interpreter -c 'true'
until_ok is_done not-started
run too-much --max-output 10 -c 'echo 0123456789abcdef'
until_ok is_done too-much
run straggler -c 'sleep 1000 & echo left'
until_ok is_done straggler
run cancelled --label project=web -c 'echo running; sleep 1000'
until_ok stands cancelled running
run cancelled-queued -c 'true'
run queue-timed-out --queue-timeout 1s -c 'true'
until_ok is_done queue-timed-out
"$baton" cancel cancelled-queued --reason "not needed" > /dev/null
"$baton" cancel cancelled --reason "wrong version" > /dev/null
until_ok is_done cancelled
run lost -c 'echo before; sleep 1000'
until_ok stands lost running
kill_supervisor lost
until_ok is_done lost
"$baton" lease open --id lease-closed --reason "release 7" --ttl 1h > /dev/null
"$baton" run --lease lease-closed --id under-lease -c 'echo under a lease'
"$baton" lease close lease-closed --reason "all done" > /dev/null
until_ok is_done lease-closed
"$baton" lease open --id lease-expired --ttl 1s > /dev/null
until_ok is_done lease-expired

# A package in two versions, the second installed; files that were pushed.
mkdir -p "$world/package/bin"
printf '#!/bin/sh\necho app 1\n' > "$world/package/bin/app"
chmod 755 "$world/package/bin/app"
ln -s bin/app "$world/package/latest"
"$baton" package send --id app --version 1.0 "$world/package" > /dev/null
printf '#!/bin/sh\necho app 2\n' > "$world/package/bin/app"
"$baton" package send --id app --version 2.0 "$world/package" > /dev/null
run install -c 'baton package install app 2.0'
until_ok is_done install

# Mutexes: a line that was used, one that was broken, one whose holder was killed, what runs once.
"$baton" mutex run --shared log -- true
"$baton" mutex once migrate/web -- true
"$baton" mutex run broken -- sleep 1000 2> /dev/null &
until_ok is_held broken
ticket=$(basename "$BATON_MUTEX_DIR"/broken/line/*.x .x)
"$baton" mutex break broken --holder "$ticket" --reason "it hangs" > /dev/null
"$baton" mutex run killed -- sleep 1000 2> /dev/null &
until_ok is_held killed
end_tree $!

# Deployments that came to their end, one of them with a failure.
cat > "$world/web.toml" << 'END'
project = "web"

[[steps]]
name = "Install"
run = "echo installed"
END
sed 's/echo installed/exit 1/' "$world/web.toml" > "$world/bad.toml"
cat > "$BATON_CONFIG_DIR/targets.toml" << 'END'
[targets.web-1]
address = "web-1.example:10950"
fingerprint = "1111111111111111111111111111111111111111111111111111111111111111"
environments = ["Live"]
END
"$baton" deploy "$world/web.toml" -e Live --release 1.4 --demo-targets 1 --run succeeded > /dev/null
"$baton" deploy "$world/bad.toml" -e Live --release 1.5 --demo-targets 1 --run failed > /dev/null || true

"$baton" list --phase "done" --limit 1000 --json > "$kept/history.jsonl"
for id in exited-0 exited-3 signalled timed-out too-much straggler cancelled lost under-lease; do
  "$baton" logs "$id" > "$kept/logs/$id" 2> /dev/null || true
done

# Those that are not done when the agent and all that it started are killed.
note='echo "$BATON_SCRIPT_ID $BATON_ATTEMPT" >> "$BATON_WORKSPACE/../../../order"'
run interrupted --mutex other -c 'echo before; sleep 1000'
until_ok stands interrupted running
run restarts --reboot-exit-code 41 -c "$note; if [ \$BATON_ATTEMPT = 1 ]; then exit 41; fi; echo again"
until_ok grep -q '"attempt":1' "$scripts/restarts/resume.json"
for number in 1 2 3; do run "queued-$number" --label project=web -c "$note; echo ran $number"; done
run queued-shared --bypass-mutex --file "$world/web.toml" -c "$note; cat files/web.toml"
until_ok "$baton" mutex run log -- test -s "$scripts/interrupted/output.journal"
kill -KILL "$agent"
wait "$agent" || true
for id in interrupted restarts queued-1 queued-2 queued-3 queued-shared; do
  # Who waits far behind has no supervisor.
  if [[ -s $scripts/$id/supervisor ]]; then kill_supervisor "$id"; fi
done

rm -rf "$BATON_STATE_DIR/run"
tar --create --sort=name --owner=0 --group=0 --numeric-owner --directory "$world" \
  --exclude '*.sock' config state mutex | gzip -9n > "$kept/machine.tar.gz"

python3 tests/compat/older.py "$BATON_STATE_DIR/agent.db" "$kept"
rm -rf "$world"
ls -l "$kept" >&2
