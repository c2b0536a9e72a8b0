# shellcheck shell=sh
# Named mutexes for shell scripts: dash, bash, busybox, zsh and other POSIX shells, also under `set -eu`.
#
#   . /usr/share/baton/baton.sh
#
#   with_mutex log write_report "$day"      a function, a builtin or a program, while `log` is held
#   with_mutex log sh -c 'date >> log'
#
#   mutex_acquire metabase --timeout 5m     until it is released, or the script ends
#   ./configure-site.sh
#   mutex_release metabase
#
# BATON names the program; default: baton.
#
# - The mutex is free when the shell that acquired it has ended, however it ended: also by kill -9. A
#   subshell `( … )` or a background job that acquires one is that shell. (Not in ksh93, where a
#   subshell is no process: there it is free when the script has ended.)
# - with_mutex returns the command's status; 75 when the mutex was not obtained, which says why on
#   standard error. `set -e` counts inside a function as if it were called directly.
# - A program that with_mutex runs is protected also when this shell is killed. What a function runs
#   is not, then: only the shell is watched.
# - Who claims a mutex again that it has already (not shared) is refused at once, with status 75.
# - At the exit of the script what is left is released by a trap, after the action that the script's
#   own EXIT trap had at the first mutex_acquire. A script that sets its trap later replaces that: then
#   the mutex is free a moment after the end instead of at the end. In zsh it is by zshexit_functions,
#   and the trap is left alone; where `set -e` ends the script, zsh calls none, and it is that moment.

# Tokens are a shell's own: not those that `set -a` in a calling script has exported.
if [ "${_baton_owner-}" != "$$" ]; then
  _baton_owner=$$
  # NAME:TOKEN,… the last one first.
  _baton_tokens=
  _baton_traps=
fi

# with_mutex NAME COMMAND [ARGUMENT…]
with_mutex() {
  if [ $# -lt 2 ]; then
    _baton_complain 'with_mutex NAME COMMAND [ARGUMENT…]'
    return 2
  fi
  _baton_is_name "$1" || return
  _baton_found=$(command -v "$2") || _baton_found=
  case $_baton_found in
    alias*) ;;
    */*)
      _baton_run_program "$@"
      return
      ;;
  esac
  mutex_acquire "$1" || return
  # Not in a condition: that would switch off `set -e` inside a function.
  _baton_run "$@"
  _baton_status=$?
  mutex_release "$1" || [ "$_baton_status" -ne 0 ] || _baton_status=1
  return "$_baton_status"
}

# mutex_acquire NAME [OPTION…]: the options of `baton mutex acquire`.
mutex_acquire() {
  _baton_is_name "${1-}" || return
  # exec: so the caller is this shell, also when it is a subshell ($$ is not).
  _baton_token=$(exec "${BATON:-baton}" mutex acquire "$@") || return
  _baton_tokens=$1:$_baton_token${_baton_tokens:+,$_baton_tokens}
  # What is claimed from now on is claimed under it: who would wait for itself is refused.
  BATON_MUTEX_HELD=${BATON_MUTEX_HELD:+$BATON_MUTEX_HELD,}$1:$_baton_token
  export BATON_MUTEX_HELD
  [ -n "$_baton_traps" ] || _baton_set_trap
}

# mutex_release NAME: gives back what the last mutex_acquire NAME has acquired.
mutex_release() {
  _baton_is_name "${1-}" || return
  _baton_find "$1" || return
  _baton_tokens=$(_baton_without "$_baton_tokens" "$1:$_baton_token")
  BATON_MUTEX_HELD=$(_baton_without "${BATON_MUTEX_HELD-}" "$1:$_baton_token")
  "${BATON:-baton}" mutex release "$1" "$_baton_token"
}

# mutex_token NAME: prints the token, a fencing number that only grows.
mutex_token() {
  _baton_is_name "${1-}" || return
  _baton_find "$1" || return
  printf '%s\n' "$_baton_token"
}

_baton_complain() {
  printf 'baton: %s\n' "$1" >&2
}

_baton_is_name() {
  case $1 in
    '' | -* | *[!A-Za-z0-9._-]*)
      _baton_complain "'$1' is no name of a mutex"
      return 2
      ;;
  esac
}

# Functions have their own arguments and no variables of their own: a nested with_mutex changes no $1.
_baton_run() {
  shift
  "$@"
}

_baton_run_program() {
  _baton_name=$1
  shift
  "${BATON:-baton}" mutex run "$_baton_name" -- "$@"
}

# Sets _baton_token to the last token of a mutex.
_baton_find() {
  case ,$_baton_tokens in
    *",$1:"*)
      _baton_token=,$_baton_tokens
      _baton_token=${_baton_token#*",$1:"}
      _baton_token=${_baton_token%%,*}
      ;;
    *)
      _baton_complain "mutex '$1' was not acquired here"
      return 1
      ;;
  esac
}

# Prints a list without one of its entries.
_baton_without() {
  _baton_list=,$1,
  case $_baton_list in
    *",$2,"*) _baton_list=${_baton_list%%",$2,"*},${_baton_list#*",$2,"} ;;
  esac
  _baton_list=${_baton_list#,}
  printf '%s' "${_baton_list%,}"
}

# Puts the release of what is left behind the action that the script's EXIT trap has.
_baton_set_trap() {
  _baton_traps='set'
  if [ -n "${ZSH_VERSION-}" ]; then
    # An EXIT trap that a function sets would run at the function's end there.
    _baton_level=${ZSH_SUBSHELL-}
    eval 'zshexit_functions+=(_baton_at_exit)'
    return 0
  fi
  # Through a file: in a command substitution dash knows no traps.
  _baton_file=$(mktemp) || return 0
  trap >| "$_baton_file"
  _baton_listed=$(cat "$_baton_file")
  rm -f "$_baton_file"
  _baton_action=
  case $_baton_listed in
    # EXIT comes first. The others, if any, are set again to what they are.
    "trap -- "*) eval "_baton_note${_baton_listed#trap}" ;;
  esac
  case $_baton_action,$_baton_listed in
    # It came elsewhere: the script's trap is left alone.
    ,*EXIT*) return 0 ;;
  esac
  # shellcheck disable=SC2064 # The action is known now.
  trap "$_baton_action
_baton_release_all" EXIT
}

_baton_note() {
  case ${3-} in
    EXIT | 0) _baton_action=$2 ;;
  esac
}

# Of zsh; `exit` in a subshell calls it as well.
_baton_at_exit() {
  [ "${ZSH_SUBSHELL-}" != "$_baton_level" ] || _baton_release_all
}

_baton_release_all() {
  while [ -n "$_baton_tokens" ]; do
    mutex_release "${_baton_tokens%%:*}" || :
  done
}
