# shellcheck shell=bash
# systemctl stop, start and restart are the agent's, never its scripts'.

box_with_package
gate open
queue long "$(pass open); exit 7"
for number in 1 2 3; do queue "after$number" "echo $number >> /root/order"; done
must "a script runs, others wait" reaches long running
begin=$(now)
check "stop returns" inside systemctl stop baton.service
check "at once, though a script runs" test $(($(now) - begin)) -lt 10000
check "the unit is stopped" same "$(unit ActiveState)" inactive
check "the script's mutex is still held" is_held
check "baton itself shows by whom" says "script long" inside baton mutex status machine
open_gate open
eventually 20 inside flock --timeout 20 "$MACHINE" true
check "start returns" inside systemctl start baton.service
check "what ended meanwhile has its outcome" reaches long "exited with 7"
check "what waited runs" reaches after3 "exited with 0"
check "in its order" same "$(inside cat /root/order)" $'1\n2\n3'

# The classic: a deployment that restarts the agent which runs it.
check "a script restarts the agent and goes on" says "still here" \
  inside baton run --id inner -c 'systemctl restart baton.service && echo still here'
check "it has its outcome" reaches inner "exited with 0"
gate second
queue picked "echo one; $(pass second); echo two; exit 5"
must "a script runs" reaches picked running
before=$(unit MainPID)
check "restart returns" inside systemctl restart baton.service
check "it is another agent" agent_is_not "$before"
check "that knows the script" reaches picked running
open_gate second
check "and its outcome" reaches picked "exited with 5"
check "and its output" same "$(inside baton logs picked)" $'one\ntwo'
check "the agent is no failed unit" same "$(unit Result)" success
