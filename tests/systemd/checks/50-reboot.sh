# shellcheck shell=bash
# The machine is restarted, in order and not: what ran is lost, what was queued runs, in its order.

box_with_package

fill() { # NAME
  gate "$1"
  queue "$1-ran" "$(pass "$1")"
  local number
  for number in 1 2 3 4 5; do queue "$1-$number" "echo $1-$number >> /root/order"; done
  reaches "$1-ran" running
}

ran_in_order() { # NAME
  reaches "$1-5" "exited with 0" && same "$(inside grep "^$1-" /root/order)" "$(printf "$1-%s\n" 1 2 3 4 5)"
}

must "a script runs, five wait" fill order
must "systemctl reboot" reboot_box
check "the agent serves again" eventually 30 serves
check "what ran is lost" reaches order-ran lost
check "what was queued runs, in its order" ran_in_order order
check "nothing ran twice" same "$(inside wc -l < "$BOX_ROOT/root/order")" 5
check "the machine is free" inside flock --timeout 10 "$MACHINE" true

must "a script runs, five wait" fill power
must "the power fails" crash_box
check "the agent serves again" eventually 30 serves
check "what ran is lost" reaches power-ran lost
check "what was queued runs, in its order" ran_in_order power
check "the history of before is there" is order-5 "exited with 0"
