# shellcheck shell=bash
# Two agents on one machine: own configuration, state and socket, one machine mutex.

box_with_package
on_box /etc/baton/instances/blue/agent.toml <<< 'listen = "127.0.0.1:10951"'
must "a second instance starts" inside systemctl enable --now baton@blue.service
check "it is another agent" agent_is_not "$(unit MainPID)" baton@blue.service
blue=(--instance blue)
gate open
queue first "echo first >> /root/order; $(pass open)"
must "a script runs on the first" reaches first running
queue second 'echo second >> /root/order' "${blue[@]}"
check "one of the other instance waits for it" reaches second waiting "${blue[@]}"
queue third 'echo third >> /root/order'
check "both stand in the machine's line" says "script second" inside baton mutex status machine
open_gate open
check "it runs when the first has ended" reaches second "exited with 0" "${blue[@]}"
check "then the next one of the first" reaches third "exited with 0"
check "in order of arrival, whichever agent has them" same "$(inside cat /root/order)" $'first\nsecond\nthird'
check_not "neither knows the other's scripts" inside baton show second
before=$(unit MainPID baton@blue.service)
check "an upgrade" inside dpkg --install "$PACKAGE"
check "restarts both" agent_is_not "$before" baton@blue.service
check "and leaves the instance enabled" inside systemctl --quiet is-enabled baton@blue.service
must "systemctl reboot" reboot_box
check "starts both" eventually 30 agent_is_not 0 baton@blue.service
check "with their history" is second "exited with 0" "${blue[@]}"
check "removing the package" inside dpkg --remove baton
check "stops both" same "$(unit ActiveState) $(unit ActiveState baton@blue.service)" "inactive inactive"
check_not "and leaves no link to an instance" inside sh -c 'ls /etc/systemd/system/*.wants/baton@*'
check "reinstalling it" inside dpkg --install "$PACKAGE"
check "starts both again" eventually 30 agent_is_not 0 baton@blue.service
check "and enables the instance" inside systemctl --quiet is-enabled baton@blue.service
check "purging it" inside dpkg --purge baton
check_not "leaves neither a link" inside sh -c 'ls /etc/systemd/system/*.wants/baton@*'
check_not "nor what remembers one" inside test -e /var/lib/baton-instances
