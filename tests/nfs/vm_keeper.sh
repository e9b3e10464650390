# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# Sourced by vm_handles.sh.

# A process that keeps a file open and acts on it: keeper NAME COMMAND..., then ask NAME LINE.
declare -A keeper_pid keeper_in keeper_out
keeper() {
  local name=$1 in out
  shift
  rm -f "$work/keep.in" "$work/keep.out"
  mkfifo "$work/keep.in" "$work/keep.out"
  run=exec "$@" <"$work/keep.in" >"$work/keep.out" &
  keeper_pid[$name]=$!
  exec {in}>"$work/keep.in" {out}<"$work/keep.out"
  keeper_in[$name]=$in keeper_out[$name]=$out
  answer "$name"
}
answer() { # answer NAME: its next line, in $reply
  reply=''
  read -r -t 120 -u "${keeper_out[$1]}" reply || reply='no answer'
}
ask() { # ask NAME LINE
  printf '%s\n' "$2" >&"${keeper_in[$1]}"
  answer "$1"
}
end_keeper() {
  local in=${keeper_in[$1]} out=${keeper_out[$1]}
  # (Not by the end of its input: later keepers have that open, too.)
  kill "${keeper_pid[$1]}" 2>/dev/null || true
  exec {in}>&- {out}<&-
  wait "${keeper_pid[$1]}" || true
}
