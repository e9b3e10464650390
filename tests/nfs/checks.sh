# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# Sourced by the NFS checks: what a check is, and waiting. Results go to the file $results, a line
# each: "ok NAME" or "not ok NAME: WHY". `end_checks` writes the last one; without it the run died.

ok() {
  printf 'ok %s\n' "$1" >>"$results"
}
not_ok() { # not_ok NAME WHY
  local why=${2//$'\n'/ | }
  printf 'not ok %s: %s\n' "$1" "${why:0:400}" >>"$results"
}
is() { # is NAME GOT WANTED
  if [[ $2 == "$3" ]]; then ok "$1"; else not_ok "$1" "got '${2:0:150}', not '${3:0:150}'"; fi
}
isnt() { # isnt NAME GOT UNWANTED
  if [[ $2 != "$3" ]]; then ok "$1"; else not_ok "$1" "got '$2'"; fi
}
matches() { # matches NAME GOT GLOB
  # shellcheck disable=SC2053
  if [[ $2 == $3 ]]; then ok "$1"; else not_ok "$1" "got '$2', which is not '$3'"; fi
}
works() { # works NAME COMMAND...
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then ok "$name"; else not_ok "$name" "status $?: ${output:0:300}"; fi
}
fails() { # fails NAME COMMAND...
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then not_ok "$name" "it did not fail: ${output:0:300}"; else ok "$name"; fi
}
note() { printf '# %s\n' "$*" >>"$results"; }
end_checks() { printf 'end of checks\n' >>"$results"; }

# within SECONDS COMMAND...: until it succeeds; that long at most.
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < end)) || return 1
    sleep 0.2
  done
}
# becomes NAME WANTED COMMAND...: what the command says is so in the end (60 seconds at most).
becomes() {
  local name=$1 wanted=$2 got='' end=$((SECONDS + 60))
  shift 2
  while :; do
    got=$("$@" 2>&1) || true
    [[ $got != "$wanted" ]] || break
    ((SECONDS < end)) || break
    sleep 0.2
  done
  is "$name" "$got" "$wanted"
}

# Programs that hold a lock: each says its word in a file of its own.
holders=0
# hold COMMAND...: runs it (a `lock_tool hold`) beside us; its pid is $held, its word is in $word.
# What the command is run by must `exec` it where $run says so: the pid is to be killed.
hold() {
  holders=$((holders + 1))
  word=$work/held.$holders
  : >"$word"
  run=exec "$@" >"$word" 2>&1 </dev/null &
  held=$!
}
said() { [[ $(<"$1") == "$2" ]]; }
# held_now COMMAND...: as hold, and it must be granted.
held_now() {
  hold "$@"
  within 60 said "$word" granted || {
    not_ok "a lock to begin with" "$*: $(<"$word")"
    return 1
  }
}
end_holder() { # end_holder PID [SIGNAL]
  kill "-${2:-TERM}" "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}
