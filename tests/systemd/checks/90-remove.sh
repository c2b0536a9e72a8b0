# shellcheck shell=bash
# Removing the package keeps configuration and history, purging it keeps nothing, and reinstalling finds what was kept.

box_with_package
inside baton run --id kept -c 'exit 3'
fingerprint=$(inside baton agent init --json)
gate open
queue long "$(pass open); echo to its end > /root/end"
must "a script runs" reaches long running
check "dpkg -r removes the package" inside dpkg --remove baton
check "the agent is stopped" same "$(unit ActiveState)" inactive
check_not "the unit is gone" inside test -e /usr/lib/systemd/system/baton.service
check_not "the program is gone" inside test -e /usr/bin/baton
check "configuration stays" inside test -e /etc/baton/agent.toml
check "history stays" inside test -e /var/lib/baton/agent.db
check "what runs has its mutex" is_held
open_gate open
check "and goes on to its end" eventually 20 inside grep -q 'to its end' /root/end

check "reinstalling it" inside dpkg --install "$PACKAGE"
check "the agent serves" eventually 30 serves
check "with its history" is kept "exited with 3"
check "with the outcome of what ended meanwhile" reaches long "exited with 0"
check "with its identity" same "$(inside baton agent init --json)" "$fingerprint"

inside useradd --system deploy
inside baton service install --instance mine --user deploy --separate-mutex > /dev/null 2>&1
check "an instance of another user is there" inside test -e /etc/systemd/system/baton@mine.service.d/50-baton.conf
# As baton agent upgrade leaves them.
inside cp /usr/bin/baton /usr/bin/baton.previous
inside cp /usr/bin/baton /usr/bin/.baton.new
check "dpkg -P purges the package" inside dpkg --purge baton
check "nothing of it is left" same "$(inside sh -c 'ls -d /etc/baton /usr/bin/baton* /usr/bin/.baton* /var/lib/baton* /run/baton* /usr/share/baton \
  /usr/lib/systemd/system/baton* /etc/systemd/system/baton* /etc/systemd/system/*/baton* /etc/tmpfiles.d/baton* /var/lib/systemd/deb-systemd-helper-*/baton* 2> /dev/null')" ""
check_not "systemd knows no such unit" inside systemctl cat baton.service
check "installing it once more" inside dpkg --install "$PACKAGE"
check "begins anew" eventually 30 serves
check_not "without history" inside baton show kept

client=$(inside baton identity)
inside baton target add web-1 web-1:10950 --fingerprint "$(printf '%064d' 1)" > /dev/null
inside baton --instance blue identity > /dev/null
check "purging it again" inside dpkg --purge baton
check "what is root's own as a client stays, and nothing else" same "$(inside find /etc/baton ! -type d -printf '%P\n' | sort)" \
  $'client.crt\nclient.key\ninstances/blue/client.crt\ninstances/blue/client.key\ntargets.toml'
inside dpkg --install "$PACKAGE" > /dev/null 2>&1
check "other machines trust the same key" same "$(inside baton identity)" "$client"
check "which knows them" says web-1 inside baton target list
