# shellcheck shell=bash
# `baton doctor` is green after the install, also for warnings, and finds what is broken about a service.

# One line of the doctor, whatever its exit status.
doctor_says() { # VERDICT CHECK TEXT [VARIABLE=VALUE]
  local said
  said=$(inside env ${4:+"$4"} baton doctor || true)
  printf '%s\n' "$said"
  grep -qE "^  $1 +$2 .*$3" <<< "$said"
}

drop_in() { # LINE
  printf '[Service]\n%s\n' "$1" | on_box /etc/systemd/system/baton.service.d/test.conf
  inside systemctl daemon-reload
}

box_with_package
check "the doctor is green: no error, no warning" inside baton doctor --strict
check "it knows the unit, its settings, the agent and its port" same \
  "$(inside baton doctor | grep -cE '^  ok +(unit|settings|running|answers|listen|cleaners|shared|locks) ')" 8
check "it is green while a script has the machine" inside baton run -c 'baton doctor --strict'
# shellcheck disable=SC2016 # for the shell in there
check "it changes nothing" inside bash -c '
  list() { find /etc/baton /var/lib/baton /run/baton /run/lock/baton ! -name "agent.db*" -printf "%p %m %T@ %s\n" | sort; }
  before=$(list) && baton doctor > /dev/null && diff <(echo "$before") <(list)'
check "for another user what root has is unknown, and no error" \
  inside setpriv --reuid 65534 --regid 65534 --clear-groups env BATON_CONFIG_DIR=/etc/baton BATON_STATE_DIR=/var/lib/baton \
  BATON_RUNTIME_DIR=/run/baton BATON_MUTEX_DIR=/run/lock/baton baton doctor

check "a drop-in that lets a restart kill scripts is found and named" eval '
  drop_in KillMode=control-group && doctor_says error settings KillMode=control-group && doctor_says error settings "" | grep test.conf'
check "and it is an error" exits_with 1 inside baton doctor
check "few open files are found" eval 'drop_in LimitNOFILE=2048 && doctor_says warning settings LimitNOFILE=2048'
check "a unit that is not enabled is found" eval '
  drop_in "" && inside systemctl --quiet disable baton && doctor_says warning unit disabled'
check "PrivateTmp is found where the mutexes are below /tmp" eval '
  inside systemctl --quiet enable baton &&
  drop_in $'"'"'PrivateTmp=yes\nEnvironment=BATON_MUTEX_DIR=/tmp/mutexes'"'"' && inside mkdir --mode 755 /tmp/mutexes &&
  inside systemctl restart baton && doctor_says error shared "another folder" BATON_MUTEX_DIR=/tmp/mutexes'
check "an agent that systemd can't start is found" eval '
  drop_in $'"'"'Restart=no\nExecStart=\nExecStart=/bin/false'"'"' && { inside systemctl restart baton || true; } &&
  doctor_says error unit "has failed"'
check "green again when all is undone" eval '
  inside rm -r /etc/systemd/system/baton.service.d && inside systemctl daemon-reload &&
  inside systemctl reset-failed baton && inside systemctl restart baton && inside baton doctor --strict'
check "a second instance of another user is found" eval '
  inside useradd --system deploy &&
  printf "[Service]\nUser=deploy\n" | on_box /etc/systemd/system/baton@blue.service.d/user.conf &&
  inside systemctl daemon-reload && { inside systemctl start baton@blue || true; } &&
  doctor_says warning instances "different users"'
