# shellcheck shell=bash
# The lines of the README's section "Install", as they stand there, on a machine that has never seen baton.

mapfile -t lines < <(sed -n '/^## Install$/,/^## /p' README.md | sed -n '/^```sh$/,/^```$/{/^```/d;p}')
check "the README says three lines" same "${#lines[@]}" 3
must "a systemd boots" boot_box
# Nobody is there to say yes.
inside sh -c 'echo "APT::Get::Assume-Yes \"true\";" > /etc/apt/apt.conf.d/99-yes'
for line in "${lines[@]}"; do
  check "$line" inside sh -c "cd $(dirname "$PACKAGE") && $line"
done
check "the agent serves" serves
check "the doctor warns of nothing" inside baton doctor --strict
check "a script runs" says "hello" inside baton run -c 'echo hello'
