# shellcheck shell=bash
# What others than root have of it: named mutexes of their own, no agent needed, and the plain lock file of root's.

box_with_package
inside useradd --create-home alice
check "a user runs a command under a mutex" says "alice" inside_as alice baton mutex run log -- id -un
gate held
inside chmod 755 /root /root/gates && inside chmod 666 /root/gates/held
background holder setpriv --reuid alice --regid alice --init-groups --reset-env \
  baton mutex run log -- sh -c "echo has it; $(pass held)"
has_it() { grep -q 'has it' "$SCRATCH/holder.out"; }
must "holds it" eventually 20 has_it
check "so that another command of hers does not get it" exits_with 75 inside_as alice baton mutex run --no-wait log -- true
check "and sees who has it" says "alice" inside_as alice baton mutex status log
open_gate held
check "the command ends well" result holder 20
check "and the mutex is free" inside_as alice baton mutex run --no-wait log -- true
check "a user runs a script without an agent" says "alice" inside_as alice baton run -c 'id -un'
check_not "a user may not enter the machine's line" inside_as alice ls "${MACHINE%/*}"
check_not "nor call root's agent" inside_as alice env BATON_RUNTIME_DIR=/run/baton baton queue

# A unit with a /tmp of its own shares the mutexes all the same: they are below /run.
gate private
inside systemd-run --quiet --unit private --property PrivateTmp=yes --property Type=exec \
  baton mutex run site -- sh -c "echo from inside > /tmp/mark; $(pass private)"
must "a unit with PrivateTmp holds a mutex" eventually 20 is_held /run/lock/baton/site/os.lock
check "its /tmp is another one" inside test ! -e /tmp/mark
check "outside of it the same mutex is busy" exits_with 75 inside baton mutex run --no-wait site -- true
open_gate private
check "and free when the unit has ended" inside baton mutex run --timeout 20s site -- true
