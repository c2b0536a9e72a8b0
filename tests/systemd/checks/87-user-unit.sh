# shellcheck shell=bash
# A person's own agent, as docs/service.md has it: a unit of that user's manager. The doctor looks at that one.

box_with_package
inside useradd --create-home carol
uid=$(inside id -u carol)
as_carol() { inside_as carol env XDG_RUNTIME_DIR="/run/user/$uid" "$@"; }
carols_doctor_says() { # VERDICT CHECK TEXT
  local said
  # Without the variable, as under su and cron.
  said=$(inside_as carol baton doctor || true)
  printf '%s\n' "$said"
  grep -qE "^  $1 +$2 .*$3" <<< "$said"
}

inside systemctl start "user@$uid.service"
file=.config/systemd/user/baton.service
sed -n '/^```ini$/,/^```$/{/^```/d;p}' docs/service.md | on_box "/home/carol/$file"
inside chown -R carol: /home/carol/.config
inside_as carol sh -c 'mkdir -p ~/.config/baton && echo "listen = \"127.0.0.1:10960\"" > ~/.config/baton/agent.toml'
must "the documented unit starts" as_carol systemctl --user enable --now baton
pid=$(as_carol systemctl --user show baton --property MainPID --value)
check "its agent is that user's" says "pid $pid" inside_as carol baton doctor
must "carol lingers" inside loginctl enable-linger carol
check "the doctor is green: no error, no warning" inside_as carol baton doctor --strict
check "with what the unit says" carols_doctor_says ok settings "baton.service is as baton wants it"
check "also when the system's service has stopped" eval 'inside systemctl stop baton && inside_as carol baton doctor --strict'
inside_as carol sh -c "sed -i s/KillMode=process/KillMode=mixed/ ~/$file" && as_carol systemctl --user daemon-reload
check "a setting that lets a restart kill scripts is found" carols_doctor_says error settings KillMode=mixed
as_carol systemctl --user stop baton
check "so is a stopped one" carols_doctor_says warning unit "baton.service is inactive"
check "with what starts it" eval '(inside_as carol baton doctor --json || true) | grep -qF "systemctl --user start baton.service"'
