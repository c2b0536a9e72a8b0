# shellcheck shell=bash
# The package is upgraded under load: no script is lost, none runs beside another or before its turn, and the mutex of
# one that runs is never free. Edited configuration is kept, and nobody is asked.

boot_box || exit 1
must "the previous package is installed" inside dpkg --install "$PREVIOUS"
must "its agent serves" eventually 30 serves
echo 'queue_length = 500' | inside tee --append /etc/baton/agent.toml > /dev/null
inside systemctl restart baton.service
gate open

# Each notes when it begins and when it ends.
noted() { # ID TEXT
  queue "$1" "echo $1 begin \$(date +%s%N) >> /root/notes; $2; echo $1 end \$(date +%s%N) >> /root/notes"
}
expected=()
for number in $(seq -w 1 10); do noted "a$number" 'sleep 0.1' && expected+=("a$number"); done
noted long "$(pass open)" && expected+=(long)
for number in $(seq -w 1 20); do noted "b$number" 'sleep 0.3' && expected+=("b$number"); done
start_sampling
must "a long script runs, with a backlog behind it" eventually 60 is long running
before=$(unit MainPID)
begin=$(inside date +%s%N)
check "dpkg -i upgrades the package, without a question" inside dpkg --install "$PACKAGE" < /dev/null
end=$(inside date +%s%N)
check "it is the new version" same "$(inside dpkg-query --show --showformat '${Version}' baton)" "$(inside dpkg-deb --field "$PACKAGE" Version)"
check "with a new agent" agent_is_not "$before"
check "the script still runs" is long running
check "edited configuration is kept" inside grep -qx 'queue_length = 500' /etc/baton/agent.toml
open_gate open
# Now in the middle of short scripts: hand-overs happen while the agent is restarted.
must "the backlog goes on" eventually 60 is b03 "exited with 0"
check "the older package replaces it" inside dpkg --install --force-downgrade "$PREVIOUS" < /dev/null
check "and the newer one again" inside dpkg --install "$PACKAGE" < /dev/null
check "the last script of the backlog runs" eventually 120 is b20 "exited with 0"
stop_sampling

all_are_well() {
  local id
  for id in "${expected[@]}"; do is "$id" "exited with 0" || return 1; done
}
check "none is lost: each of ${#expected[@]} has its outcome" all_are_well

# The notes: begin and end of each, in order of arrival, so never two together.
mapfile -t notes < <(inside cat /root/notes)
in_order() {
  local index=0 last=0 id word what time
  for id in "${expected[@]}"; do
    for word in begin end; do
      read -r what _ time <<< "${notes[index]-}"
      [[ ${notes[index]-} == "$id $word "* ]] || { echo "note $index is '${notes[index]-}', not $id $word" && return 1; }
      ((time >= last)) || { echo "$what $word at $time, before $last" && return 1; }
      last=$time index=$((index + 1))
    done
  done
  ((index == ${#notes[@]})) || { echo "${#notes[@]} notes, $index expected" && return 1; }
}
check "one after the other, in order of arrival, each once" in_order
never_free_in_a_script() {
  local note begins=0 time word
  for note in "${notes[@]}"; do
    read -r _ word time <<< "$note"
    if [[ $word == begin ]]; then begins=$time; else free_between "$begins" "$time"; fi
  done
}
check "while a script ran the mutex was never free ($TRIES tries)" same "$(never_free_in_a_script)" ""
check "nor for an instant of the first upgrade" same "$(free_between "$begin" "$end")" ""
check "there was something to see" test "$TRIES" -gt 100
check "and the program was there all the time" inside test ! -s /root/missing
pauses() {
  local note ended=0 longest=0 time word
  for note in "${notes[@]}"; do
    read -r _ word time <<< "$note"
    if [[ $word == end ]]; then ended=$time; elif ((ended && time - ended > longest)); then longest=$((time - ended)); fi
  done
  printf '%d' $((longest / 1000000))
}
check "from one script to the next it took $(pauses) ms at most" test "$(pauses)" -lt 20000

# A deployment that brings the next version of what runs it.
before=$(unit MainPID)
check "a script upgrades the package under itself and goes on" says "to its end" \
  inside baton run --id self -c "dpkg --install --force-downgrade $PREVIOUS && echo to its end"
check "it has its outcome" reaches self "exited with 0"
check "the agent is another one" agent_is_not "$before"

# Who stopped an agent wants it stopped.
inside systemctl stop baton.service
check "an upgrade starts no agent that was stopped" inside dpkg --install "$PACKAGE"
check "it is stopped" same "$(unit ActiveState)" inactive
check "but enabled" inside systemctl --quiet is-enabled baton.service
