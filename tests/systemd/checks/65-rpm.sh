# shellcheck shell=bash
# The RPM: its scriptlets on a real systemd, though not on a distribution of RPM's.

boot_box || exit 1
if ! inside sh -c 'command -v rpm > /dev/null && ls /root/packages/*.rpm > /dev/null'; then
  echo '  skipped: no rpm here'
  return
fi
new=/$(cd "$BOX_ROOT" && echo root/packages/*.rpm)
old=/$(cd "$BOX_ROOT" && echo root/packages/previous/*.rpm)
inside rm -rf /var/lib/rpm && inside rpm --initdb
# Debian's packages are not in RPM's database.
rpm() { inside rpm --nodeps --noplugins "$@" < /dev/null; }

must "rpm -i installs the previous package" rpm --install "$old"
check "as RPM's packages do, it starts nothing" same "$(unit ActiveState)" inactive
check "the mutex folder is there" inside test -d /run/lock/baton
must "systemctl enable --now starts the agent" inside systemctl enable --now baton.service
check "every file is as it was packed" same "$(inside rpm --verify --nodeps baton)" ""
check "the licence is among them" says "/usr/share/licenses/baton/LICENSE-MIT" inside rpm --query --list baton
echo '# edited' | inside tee --append /etc/baton/agent.toml > /dev/null
on_box /etc/baton/instances/blue/agent.toml <<< 'listen = "127.0.0.1:10951"'
must "an instance starts" inside systemctl enable --now baton@blue.service
blue=$(unit MainPID baton@blue.service)
gate open
queue long "$(pass open); exit 7"
must "a script runs" reaches long running
before=$(unit MainPID)
start_sampling
check "rpm -U upgrades it" rpm --upgrade "$new"
stop_sampling
check "with a new agent" agent_is_not "$before"
check "the script still runs" is long running
check "in between its mutex was never free ($TRIES tries)" same "$(free_between 0 9999999999999999999)" ""
check "it is still enabled" inside systemctl --quiet is-enabled baton.service
check "so is the instance" inside systemctl --quiet is-enabled baton@blue.service
check "with a new agent, too" agent_is_not "$blue" baton@blue.service
check "edited configuration is kept" inside grep -qx '# edited' /etc/baton/agent.toml
open_gate open
check "its outcome is right" reaches long "exited with 7"
# As baton agent upgrade leaves it.
inside cp /usr/bin/baton /usr/bin/baton.previous
check "rpm -e removes it" rpm --erase baton
check "the agents are stopped" same "$(unit ActiveState) $(unit ActiveState baton@blue.service)" "inactive inactive"
check_not "neither is enabled" inside sh -c 'ls /etc/systemd/system/*.wants/baton*'
check_not "the unit is gone" inside test -e /usr/lib/systemd/system/baton.service
check_not "the program is gone" inside test -e /usr/bin/baton
check_not "and the one before" inside test -e /usr/bin/baton.previous
check "edited configuration stays, aside" inside grep -qx '# edited' /etc/baton/agent.toml.rpmsave
check "history stays" inside test -e /var/lib/baton
