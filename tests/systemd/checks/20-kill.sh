# shellcheck shell=bash
# The agent is killed while a script runs: systemd starts it again, and neither the script nor its mutex notices.

box_with_package
gate open
queue long "echo begins; $(pass open); echo ends; exit 7"
queue next 'echo next'
must "a script runs" reaches long running
check "its mutex is held, for programs outside of baton too" is_held
before=$(unit MainPID)
start_sampling
inside kill -KILL "$before"
check "the mutex is held when the agent is gone" is_held
must "systemd starts the agent again" eventually 30 agent_is_not "$before"
check "once" same "$(unit NRestarts)" 1
check "the script still runs" reaches long running
check "and holds its mutex, by name" says "script long" inside baton mutex status machine
check "who waits behind it waits" is next waiting
stop_sampling
check "in between the mutex was never free ($TRIES tries)" same "$(free_between 0 9999999999999999999)" ""
check "there was something to see" test "$TRIES" -gt 20
open_gate open
check "its outcome is right" reaches long "exited with 7"
check "its output is whole" same "$(inside baton logs long)" $'begins\nends'
check "then the next one runs" reaches next "exited with 0"
check "and the mutex is free" inside flock --timeout 10 "$MACHINE" true
