# shellcheck shell=bash
# Installing the package: the agent serves when dpkg returns, at the boot too, and everything is in its place.

must "a systemd boots" boot_box
# The clock is the whole machine's.
check_not "what runs in a box can set no clock" says sys_time inside sh -c 'setpriv --dump | grep "bounding set"'
must "dpkg -i installs the package" inside dpkg --install "$PACKAGE"
check "the agent serves when dpkg returns" says "running" inside baton agent status
check "it is enabled" inside systemctl --quiet is-enabled baton.service
check "the start waited for READY" same "$(unit Type) $(unit ActiveState) $(unit SubState)" "notify active running"
check "the unit says how it stands" inside test -n "$(unit StatusText)"
check "systemd finds nothing wrong with the units" inside systemd-analyze verify /usr/lib/systemd/system/baton.service \
  /usr/lib/systemd/system/baton@.service
check "a script runs" says "hello from 0" inside baton run -c 'echo hello from $(id -u)'
check "the mutex folder is root's" same "$(inside stat -c '%U:%G %a' /run/lock/baton)" "root:root 755"
check "no cleaner removes what is in it" inside sh -c 'systemd-tmpfiles --cat-config | grep -qx "x /run/lock/baton"'
check "the state is closed to others" same "$(inside stat -c '%U:%G %a' /var/lib/baton)" "root:root 700"
check "the identity was made here" inside sh -c 'ls /etc/baton/agent*key* && ! dpkg-query --listfiles baton | grep -q "etc/baton/.*key"'
check "it has a manual" says "one at a time" inside sh -c 'gzip --decompress --stdout /usr/share/man/man1/baton.1.gz'
check "dpkg finds every file as it was packed" same "$(inside dpkg --verify baton)" ""
check "bash completes its commands" says "reboot-and-resume" inside bash -c '
  . /usr/share/bash-completion/completions/baton
  COMP_WORDS=(baton re) COMP_CWORD=1
  _baton baton re baton && printf "%s\n" "${COMPREPLY[@]}"'
check "a second dpkg -i changes nothing" inside dpkg --install "$PACKAGE"
check "and the agent serves" says "running" inside baton agent status
