# shellcheck shell=bash
# Functions for tests/systemd/checks/*.sh. Each of these files runs in a bash of its own, in a box of its own:
#
#   box_with_package                      boots, installs the package, waits until the agent serves
#   boot_box                              boots only
#   reboot_box, crash_box                 systemctl reboot; a power failure
#   inside COMMAND…                       runs it in the box as root, 60 s at most
#   inside_as USER COMMAND…               the same as another user
#   check WHAT COMMAND…                   one line of the report; its status is the command's
#   check_not WHAT COMMAND…               passes when the command fails
#   must WHAT COMMAND…                    as check, but without it the file goes no further
#   eventually SECONDS COMMAND…           tries it until it succeeds, for so long at most
#   says TEXT COMMAND…                    it succeeds and its output contains TEXT
#   exits_with STATUS COMMAND…            it ends with that status
#   unit PROPERTY [UNIT]                  a property of the unit, baton.service unless told
#   on_box FILE                           writes standard input to a file of the box
#   background NAME COMMAND…              starts it in the box; `result NAME SECONDS` is its status
#
# and of the agent:
#
#   serves                                whether it answers
#   queue ID TEXT [OPTION…]               gives it a script; options stand before the command, as in --instance blue
#   state ID, is ID STATE, reaches ID STATE
#                                         how the script stands; whether so; waits for it, 30 s at most
#   gate G; pass G; open_gate G           makes a gate; what a script says to wait there; lets it go on
#   agent_is_not PID [UNIT]               whether another process than this serves
#   is_held [FILE]                        whether other programs are kept out of the machine's lock, or of FILE
#   start_sampling, stop_sampling         tries all the time to have the machine's lock: FREE, TRIES, free_between
#
# $PACKAGE and $PREVIOUS are the packages in the box, $BOX_ROOT its root as it is seen from outside (without its tmpfs).

readonly BOX=/run/baton-box BOX_ROOT=/run/baton-box/root
readonly BOX_ENVIRONMENT=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8)
readonly CALL_SECONDS=60
SCRATCH=$BATON_BOX_SCRATCH BOX_NSPAWN='' BOX_LEADER='' BOX_FAILED=0

# Now, in milliseconds.
now() { printf '%d' $((${EPOCHREALTIME/[.,]/} / 1000)); }

report() { # RESULT WHAT MILLISECONDS
  printf '  %-7s %6d ms  %s\n' "$1" "$3" "$2"
  printf '%s %s\n' "$1" "$2" >> "$SCRATCH/results"
}

check() { # WHAT COMMAND…
  local what=$1 begin status=0
  shift
  begin=$(now)
  # In this shell, so that a function may set variables.
  "$@" > "$SCRATCH/said" 2>&1 || status=$?
  if ((status == 0)); then
    report ok "$what" $(($(now) - begin))
  else
    BOX_FAILED=$((BOX_FAILED + 1))
    report FAILED "$what" $(($(now) - begin))
    printf '          (%s) %s\n' "$status" "$*"
    tail -n 30 "$SCRATCH/said" | sed 's/^/          | /'
  fi
  return "$status"
}

not() { ! "$@"; }

check_not() { # WHAT COMMAND…
  local what=$1
  shift
  check "$what" not "$@"
}

must() { # WHAT COMMAND…
  check "$@" && return
  show_journal
  exit 1
}

eventually() { # SECONDS COMMAND…
  local limit=$(($(now) + $1 * 1000)) status=0
  shift
  # What only the last try said; a file, so that a function may set variables.
  until "$@" > "$SCRATCH/tried" 2>&1; do
    (($(now) < limit)) || { status=1 && break; }
    sleep 0.05
  done
  cat "$SCRATCH/tried"
  return "$status"
}

says() { # TEXT COMMAND…
  local text=$1 said status=0
  shift
  said=$("$@" 2>&1) || status=$?
  printf '%s\n' "$said"
  ((status == 0)) && [[ $said == *"$text"* ]]
}

exits_with() { # STATUS COMMAND…
  local expected=$1 status=0
  shift
  "$@" || status=$?
  ((status == expected)) || { echo "exit status $status, not $expected" && return 1; }
}

same() { # A B
  [[ $1 == "$2" ]] || { printf 'not the same:\n%s\n%s\n' "$1" "$2" && return 1; }
}

# Enters the box. Without what nspawn takes from all in it, and nsenter would bring along: the clock is that of the whole
# machine.
readonly ENTER=(--all setpriv --bounding-set "-sys_time,-sys_module,-sys_rawio" -- env -i "${BOX_ENVIRONMENT[@]}")

inside() {
  timeout --kill-after 5 "$CALL_SECONDS" nsenter --target "$BOX_LEADER" "${ENTER[@]}" "$@"
}

inside_as() { # USER COMMAND…
  local user=$1
  shift
  inside setpriv --reuid "$user" --regid "$user" --init-groups --reset-env "$@"
}

unit() { # PROPERTY [UNIT]
  inside systemctl show "${2:-baton.service}" --property "$1" --value
}

on_box() { # FILE
  inside sh -c 'mkdir -p "$(dirname "$1")" && cat > "$1"' sh "$1"
}

# Its status is told by a file: whoever waits for it need not be its parent.
background() { # NAME COMMAND…
  local name=$1
  shift
  {
    local status=0
    inside "$@" > "$SCRATCH/$name.out" 2>&1 < /dev/null || status=$?
    echo "$status" > "$SCRATCH/$name.new" && mv "$SCRATCH/$name.new" "$SCRATCH/$name.status"
  } &
}

result() { # NAME SECONDS
  eventually "$2" test -e "$SCRATCH/$1.status" || return 125
  cat "$SCRATCH/$1.out"
  return "$(< "$SCRATCH/$1.status")"
}

show_journal() {
  [[ $BOX_LEADER ]] || return 0
  printf '          the units of baton say:\n'
  inside journalctl --unit 'baton*' --no-pager --output short-precise --lines 300 2>&1 |
    grep -v 'left-over process\|usually indicates\|remains running' | tail -n 50 | sed 's/^/          | /' || true
}

# A root as of this machine, but new: what is written to it is in memory only. Services, instances and agents of this
# machine's own have no place in it.
make_root() {
  mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p "$BOX"/{up,work,root} || return 1
  mount -t overlay overlay -o "lowerdir=/,upperdir=$BOX/up,workdir=$BOX/work" "$BOX_ROOT" || return 1
  cd "$BOX_ROOT" || return 1
  rm -rf etc/systemd/system/*.target.wants/* etc/rc?.d/S* etc/systemd/system/baton* \
    etc/baton var/lib/baton var/lib/baton-instances var/log/journal
  # Of images for containers: no service may start there, and no manual is unpacked. And the manual need not be indexed.
  rm -f usr/sbin/policy-rc.d etc/dpkg/dpkg.cfg.d/* var/lib/man-db/auto-update
  # "uninitialized" would be a first boot, which enables every unit that there is.
  tr -d - < /proc/sys/kernel/random/uuid > etc/machine-id
  mkdir -p root/packages
  cp "$BATON_BOX_PACKAGES"/*.{deb,rpm,tar.gz} root/packages/ 2> /dev/null || true
  [[ ! -d $BATON_BOX_PACKAGES/previous ]] || cp -r "$BATON_BOX_PACKAGES/previous" root/packages/
  PACKAGE=$(echo root/packages/*.deb) PACKAGE=/$PACKAGE
  PREVIOUS=$(echo root/packages/previous/*.deb) PREVIOUS=/$PREVIOUS
  cd "$OLDPWD" || return 1
}

start_nspawn() {
  (
    local folder
    while read -r folder; do echo "$BASHPID" > "$folder/cgroup.procs" || exit 1; done <<< "$BATON_BOX_CGROUPS"
    exec systemd-nspawn --quiet --directory "$BOX_ROOT" --register=no --keep-unit --private-network --machine=baton-box \
      --boot systemd.unit=multi-user.target
  ) >> "$SCRATCH/console" 2>&1 < /dev/null &
  BOX_NSPAWN=$!
  eventually 60 is_booted && return
  echo "the box does not boot; its console:"
  tail -n 30 "$SCRATCH/console"
  return 1
}

is_booted() {
  # 0 while it comes up: there is no process yet, or it can't be entered.
  kill -0 "$BOX_NSPAWN" 2> /dev/null || { limit=0 && return 1; }
  BOX_LEADER=$(pgrep --parent "$BOX_NSPAWN" --exact systemd | head -n 1)
  [[ $BOX_LEADER ]] || return 1
  case $(inside systemctl is-system-running 2> /dev/null) in
    running | degraded) ;;
    *) return 1 ;;
  esac
}

boot_box() {
  make_root || { echo "no root for a box" && return 1; }
  start_nspawn
}

box_is_down() { ! kill -0 "$BOX_NSPAWN" 2> /dev/null; }

reboot_box() {
  local status=0
  inside systemctl reboot || true
  eventually 120 box_is_down || { echo "the box does not go down" && return 1; }
  wait "$BOX_NSPAWN" || status=$?
  # As nspawn says it when it is not to start the box again by itself.
  ((status == 133)) || { echo "nspawn ended with $status at the reboot" && return 1; }
  start_nspawn
}

crash_box() {
  kill -KILL "$BOX_LEADER" "$BOX_NSPAWN" && eventually 30 box_is_down || return 1
  wait "$BOX_NSPAWN" 2> /dev/null
  start_nspawn
}

# Whether the agent answers.
serves() { inside baton agent status; }

# A line of the report only if it fails: 10-install.sh tells of the rest.
box_with_package() {
  boot_box > "$SCRATCH/said" 2>&1 &&
    inside dpkg --install "$PACKAGE" >> "$SCRATCH/said" 2>&1 &&
    eventually 30 serves >> "$SCRATCH/said" 2>&1 && return
  report FAILED "a box with the package" 0
  cat "$SCRATCH/said"
  show_journal
  exit 1
}

# ── scripts of the agent ──

# Gates hold scripts up without polling: a script says `pass GATE`, and goes on when `open_gate GATE` is called.
gate() { # GATE
  inside sh -c 'mkdir -p /root/gates && mkfifo "/root/gates/$1"' sh "$1"
}

# What a script says to wait at a gate.
pass() { printf 'read -r _ < /root/gates/%s' "$1"; }

open_gate() { # GATE
  inside sh -c 'echo > "/root/gates/$1"' sh "$1"
}

# Without it the file goes no further.
queue() { # ID TEXT [OPTION…]
  local id=$1 text=$2
  shift 2
  inside baton "$@" run --detach --id "$id" -c "$text" > "$SCRATCH/said" 2>&1 && return
  report FAILED "script $id is accepted" 0
  cat "$SCRATCH/said"
  show_journal
  exit 1
}

state() { # ID [OPTION…]
  local id=$1
  shift
  inside baton "$@" show "$id" | sed -n 's/^state: *//p'
}

# Also when more stands behind it, as in "waiting #1" or "lost: the machine was restarted".
is() { # ID STATE [OPTION…]
  local id=$1 expected=$2 found
  shift 2
  found=$(state "$id" "$@") && echo "$id: $found" && [[ $found =~ ^"$expected"([ :].*)?$ ]]
}

reaches() { # ID STATE [OPTION…]
  eventually 30 is "$@"
}

readonly MACHINE=/run/lock/baton/machine/os.lock

# As any program on the machine sees it.
is_held() { exits_with 1 inside flock --nonblock "${1:-$MACHINE}" true; }

# Tries to have the machine's lock, again and again, as others do, and notes when it could (in ns); and when the program
# is not there.
start_sampling() {
  inside rm -f /root/sample
  inside sh -c 'echo > /root/free && echo > /root/tries && : > /root/missing
    setsid --fork sh -c "while ! [ -e /root/sample ]; do
      # While it has it: afterwards the next script may have begun.
      flock --nonblock $1 date +%s%N >> /root/free
      [ -x /usr/bin/baton ] || date +%s%N >> /root/missing
      echo >> /root/tries
    done" < /dev/null > /dev/null 2>&1' sh "$MACHINE"
}

# Ends it; the times are in the array FREE, how many tries there were in TRIES.
# shellcheck disable=SC2034 # for the checks
stop_sampling() {
  inside touch /root/sample
  mapfile -t FREE < <(inside grep . /root/free)
  TRIES=$(inside wc -l /root/tries | cut -d ' ' -f 1)
}

# Of the times in FREE, those between two others.
free_between() { # BEGIN END
  local time
  for time in "${FREE[@]}"; do ((time <= $1 || time >= $2)) || echo "free at $time"; done
}

# Whether the agent is another process than this, and serves.
agent_is_not() { # PID [UNIT]
  local now
  now=$(unit MainPID "${2-}") && echo "pid $now" && [[ $now != 0 && $now != "$1" && $(unit ActiveState "${2-}") == active ]]
}
