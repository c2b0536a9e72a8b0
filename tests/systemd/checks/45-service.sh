# shellcheck shell=bash
# `baton service` without the package's units: its own, instances, other users, the journal, a stop that waits, purge.

must "a box boots" boot_box
inside dpkg-deb --extract "$PACKAGE" /opt/baton
inside useradd --create-home deploy
# Found on the PATH, but not where the package has it.
inside ln -s /opt/baton/usr/bin/baton /usr/local/bin/baton
check "a dry run says each file and command, to anybody" says "# write /etc/systemd/system/baton.service" \
  inside_as deploy baton service install --dry-run
check_not "and changes nothing" inside test -e /etc/systemd/system/baton.service
check "only root installs" exits_with 77 inside_as deploy baton service install
check "what is not installed is not started, and it says what installs it" eval '
  exits_with 1 inside baton service start && says "baton service install" not inside baton service restart'
must "install" says "fingerprint: " inside baton service install
check "returned when the agent serves" serves
check "status says so" says "baton.service: active (running)" inside baton service status
before=$(unit MainPID)
check "once more changes nothing" inside baton service install
check "the agent is the same" same "$(unit MainPID)" "$before"

gate open
queue j1 "$(pass open)"
must "a script runs" reaches j1 running
check "systemd says how busy the agent is" eventually 10 says "1 running" unit StatusText
check "the journal finds all of a script" says accepted inside journalctl --output cat BATON_SCRIPT_ID=j1
check "its text says which" says "script_id=j1" inside journalctl --output cat BATON_SCRIPT_ID=j1
check "and all of an instance" says "the agent serves" inside journalctl --output cat BATON_INSTANCE=default PRIORITY=6
check "scripts have no sandbox, and a home" says "home /root" inside baton run --observe -c 'echo home $HOME'

check "a second instance" says "it listens on 0.0.0.0:10951" inside baton service install --instance blue
check "has its own agent" agent_is_not "$before" baton@blue.service
check "both are listed" says "baton@blue.service" inside baton service list
check "one of another user is refused: it would exclude nobody" exits_with 1 \
  inside baton service install --instance mine --user deploy
check "nor may root's become one: its scripts write there" exits_with 75 \
  inside baton service install --user deploy
check "another user is possible, if that is wanted" inside baton service install --instance mine --user deploy --separate-mutex
check "its scripts are that user's" says "home /home/deploy of deploy" \
  inside baton --instance mine run -c 'echo home $HOME of $(id -un)'
check "its mutexes have a folder of their own" same "$(inside stat --format %U /run/lock/baton-deploy)" deploy
check "its configuration is root's: who may write there has what root reads and writes there" \
  same "$(inside stat --format %U /etc/baton/instances/mine /etc/baton/instances/mine/{agent.toml,agent.crt} | sort -u)" root
check "but its key" same "$(inside stat --format %U:%a /etc/baton/instances/mine/agent.key)" deploy:600
check "root trusts for it" inside baton --instance mine agent trust "$(printf '%064d' 0)" --name somebody
check "it may be installed again" inside baton service install --instance mine --separate-mutex
check "not for root: what another user left, root would run" exits_with 1 \
  inside baton service install --instance mine --user root
inside baton service stop --instance mine
check "nor does root run a script there when its agent is away" exits_with 1 \
  inside baton --instance mine run -c true
inside baton service uninstall --instance mine --purge > /dev/null 2>&1
check "root by another name is root" inside baton service install --instance mine --user 0
check "with its mutexes" same "$(inside baton service status --instance mine | sed -n 's/^mutexes: *//p')" /run/lock/baton
inside baton service uninstall --instance mine --purge > /dev/null 2>&1

# The limit of systemd is 2 s, the agent's 1 min: it has to ask for more time again and again.
inside sed -i 's/^#stop_wait.*/stop_wait = "1min"/' /etc/baton/agent.toml
on_box /etc/systemd/system/baton.service.d/60-limit.conf <<< $'[Service]\nTimeoutStopSec=2s'
inside systemctl daemon-reload
must "the agent takes stop_wait without a restart" inside baton agent reload
inside systemctl restart --no-block baton.service
check "a stop waits for what runs, and says so" eventually 10 says "stopping, until" unit StatusText
inside sleep 4
check "longer than systemd would without being asked" same "$(unit ActiveState)" deactivating
open_gate open
check "it ends with what ran" eventually 20 agent_is_not "$before"
check "not killed" same "$(unit Result)" success
check "what ran has its outcome" reaches j1 "exited with 0"

before=$(unit MainPID)
on_box /etc/baton/agent.toml.new <<< 'no_key = 1'
inside sh -c 'cd /etc/baton && cp agent.toml kept && cat agent.toml.new agent.toml > next && mv next agent.toml'
check "a restart with a mistake in agent.toml is refused" exits_with 2 inside baton service restart
check_not "a reload of it fails" inside systemctl reload baton.service
check "the list says whose configuration can't be read, and why" \
  says "the configuration of baton.service can't be read: /etc/baton/agent.toml, line 1" inside baton service list
check "and goes on with the others" says "0.0.0.0:10951" inside baton service list
check "also as JSON" says '"problem":"/etc/baton/agent.toml, line 1: ' inside baton service list --json
check "the agent that serves is not stopped for it" same "$(unit MainPID)" "$before"
inside sh -c 'cd /etc/baton && mv kept agent.toml && rm agent.toml.new'

gate last
queue j2 "$(pass last)"
must "a script runs" reaches j2 running
inside sed -i 's/^stop_wait.*/stop_wait = "0s"/' /etc/baton/agent.toml
check "reload" inside systemctl reload baton.service
eventually 10 says '"0s"' inside baton config show > /dev/null
check "purge is refused while it runs" exits_with 75 inside baton service uninstall --purge
check "and has changed nothing" serves
check "uninstall says that it goes on" says "go on without it: 1" inside baton service uninstall
check "it holds its mutex" is_held
check_not "the unit is gone" inside test -e /etc/systemd/system/baton.service
check "the template stays, for the other instance" inside test -e /etc/systemd/system/baton@.service
must "the next installation" inside baton service install
check "finds it" reaches j2 running
open_gate last
check "with its outcome" reaches j2 "exited with 0"
client=$(inside baton identity)
inside baton target add web-1 web-1:10950 --fingerprint "$(printf '%064d' 1)" > /dev/null
inside baton --instance blue identity > /dev/null
check "a dry run of a purge says what stays" says "# but keep /etc/baton/client.key" \
  inside baton service uninstall --purge --dry-run
check "uninstall --purge" says "/etc/baton/targets.toml stays" inside baton service uninstall --purge
check_not "nothing is left of its state" inside test -e /var/lib/baton/agent.db
check_not "nor of its configuration" inside test -e /etc/baton/agent.toml
check "that of the other instance is" inside test -e /etc/baton/instances/blue/agent.toml
check "which serves" inside baton --instance blue agent status
check "and so is what root is as a client: its key" same "$(inside baton identity)" "$client"
check "and the machines that it knows" says web-1 inside baton target list
check "twice is no error" inside baton service uninstall --purge
check "purging the other instance" inside baton service uninstall --instance blue --purge
check "leaves root's own" same "$(inside find /etc/baton ! -type d -printf '%P\n' | sort)" \
  $'client.crt\nclient.key\ninstances/blue/client.crt\ninstances/blue/client.key\ntargets.toml'
check "and no agent" says "no agent is installed" inside baton service list
