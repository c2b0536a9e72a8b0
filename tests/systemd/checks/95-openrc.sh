# shellcheck shell=bash
# packaging/openrc/baton on a real OpenRC: start, crash, stop, restart, reload, instances, boot and removal are the agent's,
# never its scripts'.

# shellcheck source=inits.sh
. tests/systemd/inits.sh
box_with openrc

# What others do that it has to do with: each writes down when.
neighbour() { # NAME, in which run level it is
  on_box "/etc/init.d/$1" << SERVICE
#!/sbin/openrc-run
depend() { provide $2; }
start() { echo "$1 starts" >> /root/boot; }
stop() { baton agent status > /dev/null 2>&1 && serves=serves; echo "$1 stops, the agent \${serves:-is gone}" >> /root/boot; }
SERVICE
  inside chmod 755 "/etc/init.d/$1"
  inside rc-update add "$1" "$3"
}
example openrc/baton etc/init.d/baton
check "it is enabled" inside rc-update add baton default
neighbour lan net default
neighbour disks localmount boot
check "it starts" inside rc-service baton start
check "and serves when it counts as started" serves
check "OpenRC knows that" says started inside rc-service baton status
check "the mutex folder is root's" same "$(inside stat -c '%U:%G %a' /run/lock/baton)" "root:root 755"
check "the identity was made here" inside sh -c 'ls /etc/baton/agent*key*'
check "nothing of it failed" same "$(inside rc-status --crashed)" ""
check "it says nothing wrong" exits_with 1 inside grep --extended-regexp 'ulimit|unable|rror' /var/log/baton.log
check "its log is kept" inside grep --quiet 'the agent serves' /var/log/baton.log
check "scripts find HOME and USER" says "/root root" inside baton run -c 'echo $HOME $USER'
check "and the usual limit of open files" says 1024 inside baton run -c 'ulimit -Sn'
check "nothing of OpenRC's comes into scripts" exits_with 1 inside baton run -c 'env | grep -E "^(RC_|EINFO_|SVCNAME)"'

gate open
queue long "echo begins; $(pass open); echo ends; exit 7"
for number in 1 2 3; do queue "after$number" "echo $number >> /root/order"; done
must "a script runs, others wait" reaches long running
before=$(pid_of_agent)
start_sampling
inside kill -KILL "$before"
check "the agent is killed: it is started again" eventually 30 agent_is_another "$before"
check "the script still runs" reaches long running
before=$(pid_of_agent)
inside pkill -KILL --full '^supervise-daemon baton '
check "who supervises it is killed: a restart" inside rc-service baton restart
check "takes its agent's place" agent_is_another "$before"
supervised() { [[ $(inside ps --no-headers -o args --pid "$(inside ps --no-headers -o ppid --pid "$(pid_of_agent)" | tr -d ' ')") == supervise-daemon* ]]; }
check "with one that is supervised" eventually 30 supervised
check "the script still runs" reaches long running
begin=$(now)
check "stop returns" inside rc-service baton stop
check "at once, though a script runs" test $(($(now) - begin)) -lt 10000
check_not "the agent is stopped" serves
check "OpenRC knows that" exits_with 3 inside rc-service baton status
check "start returns" inside rc-service baton start
check "the script still runs" reaches long running
stop_sampling
check "its mutex was never free ($TRIES tries)" same "${FREE[*]}" ""
check "there was something to see" test "$TRIES" -gt 20
before=$(pid_of_agent)
check "a script must not restart it" says "rc-service baton respawn" \
  inside baton run --mutex other -c '! rc-service baton restart 2>&1'
check "and has not" agent_is "$before"
check "but can have it respawned, and goes on" says "still here" \
  inside baton run --id inner --mutex other -c 'rc-service baton respawn > /dev/null 2>&1 && echo still here'
check "it is another agent" eventually 30 agent_is_another "$before"
check "that is nobody's script" is inner "exited with 0"
check "and goes on" agent_is "$(pid_of_agent)"
open_gate open
check "what ran has its outcome" reaches long "exited with 7"
check "and its output" same "$(inside baton logs long)" $'begins\nends'
check "what waited runs" reaches after3 "exited with 0"
check "in its order" same "$(inside cat /root/order)" $'1\n2\n3'

before=$(pid_of_agent)
on_box /etc/baton/agent.toml <<< 'stop_wait = "often"'
check_not "a reload says when agent.toml has a mistake" inside rc-service baton reload
check_not "and so does a restart" inside rc-service baton restart
check "which stops no agent that serves" agent_is "$before"
on_box /etc/baton/agent.toml <<< 'stop_wait = "40s"'
check "without one it is taken" inside rc-service baton reload
check "by the same agent" agent_is "$before"
gate last
queue last "$(pass last); exit 5"
must "a script runs" reaches last running
background stop rc-service baton stop
check "a stop waits for what runs, as long as stop_wait says" eventually 20 says 'the agent stops' inside baton agent status
open_gate last
check "and is over with it" result stop 30
check "start returns" inside rc-service baton start
check "its outcome is right" reaches last "exited with 5"
inside rm /etc/baton/agent.toml
check "a restart, too, takes a configuration" inside rc-service baton restart

inside ln -s baton /etc/init.d/baton.blue
on_box /etc/baton/instances/blue/agent.toml <<< 'listen = "127.0.0.1:10951"'
check "an instance is a link" inside rc-service baton.blue start
check "it serves" says running inside baton --instance blue agent status
check "has a log of its own" inside grep --quiet 'the agent serves' /var/log/baton.blue.log
check "and stops" inside rc-service baton.blue stop
check "alone" serves

gate boot
queue ran "$(pass boot)"
for number in 1 2 3; do queue "boot$number" "echo $number >> /root/order"; done
must "a script runs, others wait" reaches ran running
inside rm /root/order
inside sh -c ': > /root/boot'
must "the machine is restarted" restart_init
check "the agent serves again" eventually 30 serves
check "what ran is lost" reaches ran lost
check "what waited runs" reaches boot3 "exited with 0"
check "in its order" same "$(inside cat /root/order)" $'1\n2\n3'
check "it stops before the network and starts after the disks" same "$(inside sh -c 'sort /root/boot')" \
  "$(printf '%s\n' 'disks starts' 'disks stops, the agent is gone' 'lan starts' 'lan stops, the agent is gone')"

must "OpenRC has come to the end of the boot" eventually 30 inside rc-service baton status

gate removal
queue stays "$(pass removal); echo to its end > /root/end"
must "a script runs" reaches stays running
check "it is removed" inside sh -c 'rc-service baton stop && rc-update delete baton default && rm /etc/init.d/baton /etc/init.d/baton.blue'
check "what runs has its mutex" is_held
open_gate removal
check "and goes on to its end" eventually 20 inside grep --quiet 'to its end' /root/end
