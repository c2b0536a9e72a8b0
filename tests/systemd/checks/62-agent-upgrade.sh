# shellcheck shell=bash
# The packaged service takes another version of its program by `baton agent upgrade`, under load: the process is the same,
# no script and no mutex notices. What does not serve is rolled back, and systemd alone decides whether an agent runs.

box_with_package
own=$(inside baton --version)
inside minisign -G -W -p /root/key.pub -s /root/key > /dev/null
inside minisign -G -W -p /root/other.pub -s /root/other > /dev/null
sign() { inside minisign -S -s "/root/${2-key}" -m "/root/$1" -x "/root/$1.minisig" > /dev/null; }

# Its number, of the same length, is another one wherever it stands.
inside sh -c 'LC_ALL=C sed "s/$1/9.9.9/g" /usr/bin/baton > /root/newer && chmod 755 /root/newer' sh "$(sed 's/baton //; s/\./\\./g' <<< "$own")"
sign newer
# Others say a newer version, and then do something else.
bad() { # NAME STATEMENTS
  on_box "/root/$1.c" << PROGRAM
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **words) {
  if (count > 1 && strcmp(words[1], "--version") == 0) return puts("baton 99.0.0") < 0;
  fclose(fopen("/root/$1.ran", "w"));
  $2
}
PROGRAM
  inside cc -o "/root/$1" "/root/$1.c" && sign "$1"
}
must "versions are made" eval "
  says 'baton 9.9.9' inside /root/newer --version && bad ends 'return 3;' && bad hangs 'for (;;) pause();'"

configure() { # HEALTH_LIMIT
  inside sh -c 'sed -i "/^\[upgrade\]/,\$d" /etc/baton/agent.toml && cat >> /etc/baton/agent.toml' << CONFIGURATION
[upgrade]
keys = ["$(inside sed -n 2p /root/key.pub)"]
health_limit = "$1"
CONFIGURATION
  inside baton agent reload
}
must "a key is configured" configure 30s
on_box /etc/systemd/system/baton.service.d/60-watchdog.conf <<< $'[Service]\nWatchdogSec=9s'
inside systemctl daemon-reload
inside systemctl restart baton.service
must "it serves" eventually 30 serves

gate open
queue long "echo long >> /root/order; $(pass open); echo to its end; exit 7"
for number in 1 2 3; do queue "s$number" "echo s$number >> /root/order"; done
must "a script runs, others wait" reaches long running
before=$(unit MainPID)
start_sampling

inside cp /root/newer /root/unsigned
check "what nobody signed is refused" exits_with 2 inside baton agent upgrade /root/unsigned
sign unsigned other
check "and what another key has signed" exits_with 77 inside baton agent upgrade /root/unsigned
check "the program is what it was" same "$(inside baton --version)" "$own"

# That of the agent that answers.
version() { inside baton agent info --json | grep -o '"version": *"[^"]*"' | head -n 1 | cut -d '"' -f 4; }
as_before() { # VERSION: the unit is active, the script runs and the others wait
  same "$(unit ActiveState)" active && same "$(version)" "$1" && is long running && is_held &&
    same "$(inside cat /root/order)" long
}
check "a signed newer version is taken" says "to 9.9.9" inside baton agent upgrade /root/newer
check "it serves, and the script goes on" as_before 9.9.9
check "in the same process" same "$(unit MainPID)" "$before"
check "systemd has restarted nothing" same "$(unit NRestarts)" 0
check "the unit is as it was" same "$(unit SubState) $(unit Result)" "running success"
check "the old program is kept" same "$(inside /usr/bin/baton.previous --version)" "$own"
pinged=$(unit WatchdogTimestampMonotonic)
has_pinged() { [[ $(unit WatchdogTimestampMonotonic) != "$pinged" ]]; }
check "it tells the watchdog that it lives" eventually 8 has_pinged

check "one that ends at once is rolled back" exits_with 1 inside baton agent upgrade /root/ends
check "it did run" inside test -e /root/ends.ran
check "the version before serves, and the script goes on" as_before 9.9.9
check "systemd has started it" agent_is_not "$before"
check "its program is at its path" same "$(inside baton --version)" "baton 9.9.9"
must "less time for the next" configure 3s
before=$(unit MainPID)
check "one that hangs is rolled back" exits_with 1 inside baton agent upgrade /root/hangs
check "it did run" inside test -e /root/hangs.ran
check "the version before serves again, and the script goes on" as_before 9.9.9
check "in another process" agent_is_not "$before"
check "the agent says why" says "did not serve within 3s" inside baton agent info

# Whoever stops the unit wants no agent.
must "much time for the next" configure 5min
inside rm /root/hangs.ran
background upgrade baton agent upgrade /root/hangs
must "the next one is on trial" eventually 20 inside test -e /root/hangs.ran
check "systemctl stop ends it" inside systemctl stop baton.service
no_guard() { not inside pgrep --full '^[^ ]*baton[^ ]* guard '; }
check "its guard ends" eventually 30 no_guard
check_not "and has started no agent" inside pgrep --full '^[^ ]*baton[^ ]* agent run'
check "the unit is stopped" same "$(unit ActiveState)" inactive
check "with the version before at its path" same "$(inside baton --version)" "baton 9.9.9"
check "what runs has its mutex" is_held
inside systemctl start baton.service
check "systemctl start finds it" as_before 9.9.9
check "the caller is told how it ended" exits_with 1 result upgrade 30

stop_sampling
check "the mutex was never free ($TRIES tries)" same "${FREE[*]}" ""
check "and the program was there all the time" inside test ! -s /root/missing
check "there was something to see" test "$TRIES" -gt 100
open_gate open
check "the script has its outcome" reaches long "exited with 7"
check "and its output" says "to its end" inside baton logs long
check "those that waited run" reaches s3 "exited with 0"
check "each once, in their order" same "$(inside cat /root/order)" $'long\ns1\ns2\ns3'
