# shellcheck shell=bash
# A box with another init than systemd as its first process, for the checks of the examples in packaging. The inits are
# unpacked into the box only: to install them would replace the init of this machine.
#
#   box_with INIT        boots openrc or runit there, with the program, and without a service of baton
#   example FILE PLACE   copies a file or folder of packaging to where its first lines say
#   restart_init         goes down and comes up as the init does it
#   pid_of_agent         the agent's process by its own word; `agent_is PID` and `agent_is_another PID` compare it
#
# BATON_BOX_INITS is a folder with the packages of Debian; tests/systemd/run.sh makes it.

INIT=''

# Into the root that make_root made: Debian's packages for a root whose /bin, /sbin and /lib are links.
unpack_inits() {
  local package folder
  rm -rf "$BOX/inits" && mkdir "$BOX/inits" || return 1
  for package in "$BATON_BOX_INITS"/*.deb; do dpkg --extract "$package" "$BOX/inits" || return 1; done
  for folder in bin sbin lib; do
    cp -a "$BOX/inits/$folder/." "$BOX_ROOT/usr/$folder/" && rm -r "$BOX/inits/$folder" || return 1
  done
  cp -a "$BOX/inits/." "$BOX_ROOT/" || return 1
  # As the package does it when it is installed.
  ln -sfn default "$BOX_ROOT/etc/runit/runsvdir/current"
  # OpenRC would know a container by it, and leave things out.
  rm -f "$BOX_ROOT/.dockerenv"
  install -m 755 "$BATON_BOX_BINARY" "$BOX_ROOT/usr/bin/baton"
}

# In the namespaces of the box: file systems of its own, then the init in place of this shell.
# shellcheck disable=SC2016 # it runs there
readonly ENTER_INIT='
  set -e
  cd "$1"
  mount -t proc proc proc
  mount -t sysfs sysfs sys
  mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
  mkdir sys/fs/cgroup/unified
  mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
  mount -t tmpfs -o mode=755 tmpfs run
  mount -t tmpfs -o mode=1777 tmpfs tmp
  mount -t tmpfs -o mode=755 tmpfs dev
  for node in null zero full random urandom tty; do touch "dev/$node" && mount --bind "/dev/$node" "dev/$node"; done
  touch dev/console
  mount --bind "$2" dev/console
  ln -s /proc/self/fd dev/fd
  ip link set lo up
  mkdir -p .outside
  pivot_root . .outside
  umount -l .outside
  shift 2
  exec setpriv --bounding-set "-sys_time,-sys_module,-sys_rawio" -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb "$@"
'

start_init() {
  local first=(/sbin/openrc-init)
  [[ $INIT == openrc ]] || first=(/lib/runit/runit-init)
  touch "$SCRATCH/console"
  # shellcheck disable=SC2094 # it is the console, too
  (
    local folder
    while read -r folder; do echo "$BASHPID" > "$folder/cgroup.procs" || exit 1; done <<< "$BATON_BOX_CGROUPS"
    exec unshare --mount --propagation private --pid --net --uts --ipc --cgroup --fork --kill-child=KILL \
      bash -c "$ENTER_INIT" bash "$BOX_ROOT" "$SCRATCH/console" "${first[@]}"
  ) >> "$SCRATCH/console" 2>&1 < /dev/null &
  BOX_NSPAWN=$!
  eventually 60 init_is_up && return
  echo "the box does not boot; its console:"
  tail -n 30 "$SCRATCH/console"
  return 1
}

init_is_up() {
  # shellcheck disable=SC2034 # that of `eventually`
  kill -0 "$BOX_NSPAWN" 2> /dev/null || { limit=0 && return 1; }
  BOX_LEADER=$(pgrep --parent "$BOX_NSPAWN" | head -n 1)
  [[ $BOX_LEADER ]] || return 1
  case $INIT in
    openrc) [[ $(inside rc-status --runlevel) == default ]] ;;
    runit) inside pgrep --exact runsvdir ;;
  esac
}

box_with() { # openrc | runit
  INIT=$1
  ls "$BATON_BOX_INITS/$INIT"_*.deb > /dev/null 2>&1 || { report SKIPPED "no package of $INIT here" 0 && exit 0; }
  must "$INIT boots" eval "make_root && unpack_inits && start_init"
}

restart_init() {
  local status=0
  if [[ $INIT == openrc ]]; then inside openrc-shutdown --reboot now; else inside /lib/runit/runit-init 6; fi
  eventually 60 box_is_down || { echo "the box does not go down" && tail -n 30 "$SCRATCH/console" && return 1; }
  wait "$BOX_NSPAWN" || status=$?
  # 129, by SIGHUP: how the kernel ends the first process of a namespace that is to be restarted.
  ((status == 129)) || { echo "the box ended with $status" && tail -n 30 "$SCRATCH/console" && return 1; }
  start_init
}

example() { # FILE PLACE
  mkdir -p "$(dirname "$BOX_ROOT/$2")" && cp -a "packaging/$1" "$BOX_ROOT/$2"
}

show_journal() {
  [[ $BOX_LEADER ]] || return 0
  printf '          the logs of baton say:\n'
  inside sh -c 'tail -n 50 /var/log/baton*.log /var/log/baton*/current 2> /dev/null' | sed 's/^/          | /' || true
}

pid_of_agent() { inside cat /var/lib/baton/agent.lock; }

agent_is() { # PID
  same "$(pid_of_agent)" "$1"
}

agent_is_another() { # PID
  local now
  now=$(pid_of_agent) && [[ $now && $now != "$1" ]] && serves
}
