# shellcheck shell=bash
# An agent that lives but does nothing is killed by systemd's watchdog and started again; scripts go on.

box_with_package
on_box /etc/systemd/system/baton.service.d/watchdog.conf << 'END'
[Service]
WatchdogSec=2s
TimeoutAbortSec=2s
END
inside systemctl daemon-reload
must "the agent serves with a watchdog of 2 s" inside systemctl restart baton.service
gate open
queue long "$(pass open); exit 7"
must "a script runs" reaches long running
before=$(unit MainPID)
# More than two of its periods.
check_not "an agent that works is left alone" eventually 5 agent_is_not "$before"
inside kill -STOP "$before"
check "an agent that is stopped is replaced" eventually 30 agent_is_not "$before"
check "by the watchdog" says "Watchdog timeout" inside journalctl --unit baton.service --no-pager
check "the script still runs" reaches long running
check "and holds its mutex" is_held
open_gate open
check "its outcome is right" reaches long "exited with 7"
