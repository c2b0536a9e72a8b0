# shellcheck shell=bash
# packaging/runit/baton on a real runit: start, crash, stop, restart, reload, instances, boot and removal are the agent's,
# never its scripts'.

# shellcheck source=inits.sh
. tests/systemd/inits.sh
box_with runit

example runit/baton etc/sv/baton
check "it is enabled" inside ln -s /etc/sv/baton /etc/service/
check "it starts and serves" eventually 30 serves
check "runit knows that" says "run: /etc/service/baton: " inside sv status /etc/service/baton
check "the mutex folder is root's" same "$(inside stat -c '%U:%G %a' /run/lock/baton)" "root:root 755"
check "the identity was made here" inside sh -c 'ls /etc/baton/agent*key*'
check "its log is kept" eventually 10 inside grep --quiet 'the agent serves' /var/log/baton/current
check "it says nothing wrong" exits_with 1 inside grep --extended-regexp 'ulimit|unable|rror' /var/log/baton/current
check "scripts find HOME and USER" says "/root root" inside baton run -c 'echo $HOME $USER'
check "and the usual limit of open files" says 1024 inside baton run -c 'ulimit -Sn'

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
inside pkill -KILL --exact runsv
check "who supervises it is killed" eventually 30 says "run: /etc/service/baton: " inside sv status /etc/service/baton
check "and has the agent that serves" eventually 30 agent_is_another "$before"
check "the script still runs" reaches long running
begin=$(now)
check "stop returns" inside sv stop baton
check "at once, though a script runs" test $(($(now) - begin)) -lt 5000
check_not "the agent is stopped" serves
check "runit knows that" says "down: baton: " inside sv status baton
check "start returns" inside sv up baton
check "the agent serves" eventually 30 serves
check "the script still runs" reaches long running
stop_sampling
check "its mutex was never free ($TRIES tries)" same "${FREE[*]}" ""
check "there was something to see" test "$TRIES" -gt 20
before=$(pid_of_agent)
check "a script restarts the agent and goes on" says "still here" \
  inside baton run --id inner --mutex other -c 'sv restart baton && echo still here'
check "it is another agent" eventually 30 agent_is_another "$before"
check "that is nobody's script" is inner "exited with 0"
open_gate open
check "what ran has its outcome" reaches long "exited with 7"
check "and its output" same "$(inside baton logs long)" $'begins\nends'
check "what waited runs" reaches after3 "exited with 0"
check "in its order" same "$(inside cat /root/order)" $'1\n2\n3'

before=$(pid_of_agent)
on_box /etc/baton/agent.toml <<< 'stop_wait = "often"'
check_not "a reload says when agent.toml has a mistake" inside baton agent reload
on_box /etc/baton/agent.toml <<< 'stop_wait = "40s"'
check "without one sv hup takes it" inside sv hup baton
check "and the log says so" eventually 10 inside grep --quiet 'key="stop_wait"' /var/log/baton/current
check "by the same agent" agent_is "$before"
gate last
queue last "$(pass last); exit 5"
must "a script runs" reaches last running
background stop sv -w 60 stop baton
check "a stop waits for what runs, as long as stop_wait says" eventually 20 says 'the agent stops' inside baton agent status
open_gate last
check "and is over with it" result stop 30
inside sv up baton
check "the agent serves" eventually 30 serves
check "its outcome is right" reaches last "exited with 5"
inside rm /etc/baton/agent.toml

example runit/baton etc/sv/baton.blue
on_box /etc/baton/instances/blue/agent.toml <<< 'listen = "127.0.0.1:10951"'
check "an instance is a copy" inside ln -s /etc/sv/baton.blue /etc/service/
check "it serves" eventually 30 says running inside baton --instance blue agent status
check "has a log of its own" eventually 10 inside grep --quiet 'the agent serves' /var/log/baton.blue/current
check "and stops" inside sv stop baton.blue
check "alone" serves

gate boot
queue ran "$(pass boot)"
for number in 1 2 3; do queue "boot$number" "echo $number >> /root/order"; done
must "a script runs, others wait" reaches ran running
inside rm /root/order
must "the machine is restarted" restart_init
check "the agent serves again" eventually 30 serves
check "what ran is lost" reaches ran lost
check "what waited runs" reaches boot3 "exited with 0"
check "in its order" same "$(inside cat /root/order)" $'1\n2\n3'

# Its form, in the way of SQLite.
form() { inside python3 -c 'import sqlite3, sys
with sqlite3.connect("/var/lib/baton/agent.db") as database:
    print(*database.execute("PRAGMA user_version").fetchone())
    if sys.argv[1:]: database.execute(f"PRAGMA user_version = {sys.argv[1]}")' "$@"; }
inside sv stop baton
known=$(form 999)
inside sv up baton
check "a state that is newer is told in the log" eventually 10 inside grep --quiet "it has format 999" /var/log/baton/current
# Not one that is to be up again in a moment.
stays_down() { [[ $(inside sv status baton) =~ ^down:\ baton:\ [0-9]+s,\ normally\ up\; ]]; }
check "and not tried again and again" eventually 20 stays_down
check "the state is put right" same "$(form "$known")" 999
inside sv up baton
check "the agent serves" eventually 30 serves

gate removal
queue stays "$(pass removal); echo to its end > /root/end"
must "a script runs" reaches stays running
check "it is removed" inside sh -c 'sv stop baton && rm -r /etc/service/baton /etc/sv/baton'
check_not "the agent is gone" serves
check "what runs has its mutex" is_held
open_gate removal
check "and goes on to its end" eventually 20 inside grep --quiet 'to its end' /root/end
