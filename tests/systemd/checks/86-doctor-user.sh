# shellcheck shell=bash
# `baton doctor` of root, where the service is another user's: it looks at that user's mutexes.

# One line of the doctor, whatever its exit status.
doctor_says() { # VERDICT CHECK TEXT
  local said
  said=$(inside baton doctor || true)
  printf '%s\n' "$said"
  grep -qE "^  $1 +$2 .*$3" <<< "$said"
}

box_with_package
inside useradd --system deploy
inside baton service uninstall --purge > /dev/null 2>&1
must "the service is another user's" inside baton service install --user deploy
check "root's doctor is green: no error, no warning" inside baton doctor --strict
check "it looks at that user's mutexes, and says whose they are" \
  doctor_says ok shared "/run/lock/baton-deploy is the same for the agent; it is for user deploy"
check "and at their folder" doctor_says ok folder "/run/lock/baton-deploy, user $(inside id -u deploy)"
check "and at cleaners" doctor_says ok cleaners "baton-deploy.conf keeps /run/lock/baton-deploy"
gate open
inside chmod 755 /root /root/gates && inside chmod 666 /root/gates/open
queue running "$(pass open)"
must "a script runs" reaches running running
check "it is green while one runs" inside baton doctor --strict
check "the supervisor has the same mutexes" doctor_says ok shared "and what runs under it"
check "who holds them it does not read, and says how to see it" doctor_says unknown machine "for user deploy to read"
# shellcheck disable=SC2016 # for the shell in there
check "which works" says "script running" inside sh -c \
  "$(inside baton doctor | sed -n 's/.*hint: `\(runuser.*\) baton mutex status`.*/\1 baton mutex status machine/p' | head -n 1)"
open_gate open
reaches running "exited with 0" > /dev/null
check "a folder that is named is looked at, and does not fit" exits_with 1 \
  inside env BATON_MUTEX_DIR=/run/lock/baton baton doctor
inside systemctl stop baton
check "without the agent it is no error" inside baton doctor
check "and the same mutexes" doctor_says ok shared "/run/lock/baton-deploy; no agent runs"
inside chown root /run/lock/baton-deploy && inside chmod 777 /run/lock/baton-deploy
check "what is wrong with them is found" doctor_says error folder "others may write /run/lock/baton-deploy"
inside chown deploy /run/lock/baton-deploy && inside chmod 755 /run/lock/baton-deploy
must "root's service again" inside baton service uninstall --purge
inside baton service install > /dev/null 2>&1
check "has root's mutexes" doctor_says ok shared "/run/lock/baton is the same for the agent$"
check "and is green" inside baton doctor --strict
