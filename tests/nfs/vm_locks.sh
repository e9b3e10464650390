# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# Locks among five sites: the server's own processes, and two clients by different versions.
# A site is HOST or HOST:VERSION; files are named from the root of the mount.

sites=(server alpha:3 beta:3 alpha:4.0 beta:4.2)
path_at() { # path_at SITE FILE
  case $1 in
    server) printf '%s/%s' "$shared" "$2" ;;
    *) printf '/mnt/%s/%s' "${1/:/-}" "$2" ;;
  esac
}
# lock_at SITE ACT FILE ARG...: lock_tool there, as the ordinary user.
lock_at() {
  local site=$1 act=$2 file=$3
  shift 3
  as_user_at "${site%:*}" lock_tool "$act" "$(path_at "$site" "$file")" "$@"
}
make_files() { # make_files NAME...
  local name
  for name in "$@"; do
    : >"$store/locks/$name"
    chown "$user:$user" "$store/locks/$name"
  done
}
mkdir -p "$store/locks"
chmod 1777 "$store/locks"
# listed FIELD [FILTER]: of all grants below locks/.
listed() { jq -r ".grants[] | select(.path | startswith(\"/locks/\")) | ${2:+select($2) |} $1" "$shared/.locks/list"; }
nothing_listed() { [[ -z $(listed .path) ]]; }
nobody_waits() { [[ $(jq '.waiters | length' "$shared/.locks/waiters") == 0 ]]; }

check_conflicts() {
  local holder other ex sh
  for holder in "${sites[@]}"; do
    make_files "m-$holder"
    hold lock_at "$holder" hold "locks/m-$holder" ex 0 100
    ex=$held
    within 60 said "$word" granted || not_ok "$holder locks" "$(<"$word")"
    hold lock_at "$holder" hold "locks/m-$holder" sh 200 100
    sh=$held
    within 60 said "$word" granted || not_ok "$holder locks shared" "$(<"$word")"
    for other in "${sites[@]}"; do
      [[ $other != "$holder" ]] || continue
      is "$holder holds, $other is refused" "$(lock_at "$other" try "locks/m-$holder" ex 50 10)" "denied EAGAIN"
      is "$holder holds, $other asks who" "$(lock_at "$other" test "locks/m-$holder" sh 50 10)" "held ex 0 100"
      is "$holder holds shared, $other shares" "$(lock_at "$other" try "locks/m-$holder" sh 250 10)" granted
      is "$holder holds shared, $other is refused" "$(lock_at "$other" try "locks/m-$holder" ex 299 10)" "denied EAGAIN"
      is "$holder holds, $other has bytes beside it" "$(lock_at "$other" try "locks/m-$holder" ex 100 100)" granted
    done
    end_holder "$ex"
    end_holder "$sh"
  done
  within 60 nothing_listed || not_ok "locks end with their processes" "$(listed .path)"
}

# All pairs beside each other: an NFSv4 client that waits asks again after up to 30 seconds.
check_blocking() {
  local holder other pair
  local -A of_holder=() of_waiter=() word_of=()
  for holder in "${sites[@]}"; do
    for other in "${sites[@]}"; do
      [[ $other != "$holder" ]] || continue
      pair=$holder-$other
      make_files "w-$pair"
      hold lock_at "$holder" hold "locks/w-$pair" ex 0 0
      of_holder[$pair]=$held
      within 60 said "$word" granted || not_ok "$pair: a lock to wait for" "$(<"$word")"
      hold lock_at "$other" hold "locks/w-$pair" ex 10 10 wait
      of_waiter[$pair]=$held word_of[$pair]=$word
    done
  done
  sleep 2
  for pair in "${!of_waiter[@]}"; do
    is "$pair: the second one waits" "$(<"${word_of[$pair]}")" ""
  done
  for pair in "${!of_holder[@]}"; do end_holder "${of_holder[$pair]}"; done
  for pair in "${!of_waiter[@]}"; do
    within 90 said "${word_of[$pair]}" granted || true
    is "$pair: and is granted" "$(<"${word_of[$pair]}")" granted
    end_holder "${of_waiter[$pair]}"
  done
}

check_cancel() {
  local site waiter holder by
  for site in "${sites[@]}"; do
    by=server
    [[ $site != server ]] || by=alpha:4.0
    make_files "c-$site"
    hold lock_at "$by" hold "locks/c-$site" ex 0 0
    holder=$held
    within 60 said "$word" granted || not_ok "$site: a lock to wait for" "$(<"$word")"
    hold lock_at "$site" hold "locks/c-$site" ex 0 0 wait
    waiter=$held
    sleep 1
    is "$site waits" "$(<"$word")" ""
    kill -9 "$waiter"
    wait "$waiter" 2>/dev/null || true
    within 60 nobody_waits || not_ok "$site: a waiter that is killed waits no more" "$(jq -c .waiters "$shared/.locks/waiters")"
    end_holder "$holder"
    becomes "$site: what a killed one waited for is free" granted lock_at "$by" try "locks/c-$site" ex 0 0
    is "$site: and is not his" "$(listed .path ".path == \"/locks/c-$site\"")" ""
  done
}

client_status() { # client_status NAME_PART: what the server says of an NFSv4 client
  local info
  for info in /proc/fs/nfsd/clients/*/info; do
    grep -q "name: .*$1" "$info" && sed -n 's/^status: //p' "$info"
  done
}
expire_client() {
  local info
  for info in /proc/fs/nfsd/clients/*/info; do
    if grep -q "name: .*$1" "$info"; then echo expire >"$(dirname "$info")/ctl"; fi
  done
}

# A client that nobody hears of any more. Its lease ends, but the server keeps its locks as long as
# no other NFS client asks for them in the kernel's own table: for ours, until it is told.
check_silent_client() {
  local file=locks/silent holder
  make_files silent
  hold lock_at alpha:4.2 hold "$file" ex 0 0
  holder=$held
  within 60 said "$word" granted || not_ok "a lock of the client that falls silent" "$(<"$word")"
  ip link set to-alpha down
  becomes "v4: a client that is not heard of is a courtesy client" courtesy client_status 'NFSv4.2 alpha'
  is "v4: and keeps its lock" "$(lock_at server try "$file" ex 0 0)" "denied EAGAIN"
  expire_client 'NFSv4.2 alpha'
  becomes "v4: until the server is told to expire it" granted lock_at server try "$file" ex 0 0
  ip link set to-alpha up
  end_holder "$holder"
  becomes "v4: the client works again when it is back" granted lock_at alpha:4.2 try "$file" ex 0 0
}

nlm_port() { # what clients are told
  local program version transport port rest
  rpcinfo -p | while read -r program version transport port rest; do
    [[ $program/$version/$transport != 100021/4/tcp ]] || printf '%s\n' "$port"
  done
}
# nfsd stops and starts: NFSv4 clients reclaim in its grace period, others have to wait for its end.
# NFSv3's locks are the lock service's, which finds lockd in its place with rpcbind then.
check_server_restart() {
  local version file port
  local -A holder=()
  port=$(nlm_port)
  for version in 3 4.0 4.2; do
    make_files "restart-$version"
    hold lock_at "alpha:$version" hold "locks/restart-$version" ex 0 0
    holder[$version]=$held
    within 60 said "$word" granted || not_ok "v$version: a lock to reclaim" "$(<"$word")"
  done
  stop_nfsd
  is "a stopped server holds no locks but the lock service's" "$(listed .path)" /locks/restart-3
  start_nfsd
  for version in 4.0 4.2; do
    file=locks/restart-$version
    # (In the grace period it waits; after that the lock is the first client's again.)
    is "v$version: nobody else gets what is reclaimed" "$(lock_at beta:4.2 try "$file" ex 0 0)" "denied EAGAIN"
    is "v$version: nor a process of the server" "$(lock_at server try "$file" ex 0 0)" "denied EAGAIN"
    end_holder "${holder[$version]}"
    becomes "v$version: and it ends" granted lock_at server try "$file" ex 0 0
  done
  becomes "v3: the lock service has its place back" "$port" nlm_port
  is "v3: what was locked is" "$(lock_at server try locks/restart-3 ex 0 0)" "denied EAGAIN"
  is "v3: for other clients, too" "$(lock_at beta:3 try locks/restart-3 ex 0 0)" "denied EAGAIN"
  end_holder "${holder[3]}"
  becomes "v3: and it ends" granted lock_at server try locks/restart-3 ex 0 0
  make_files after
  is "v3: locks are given again" "$(lock_at alpha:3 try locks/after ex 0 0)" granted
}

# The client says that it has rebooted: what it held is nobody's.
check_rebooted_client() {
  local file=locks/rebooted holder
  make_files rebooted
  hold lock_at beta:3 hold "$file" ex 0 0
  holder=$held
  within 60 said "$word" granted || not_ok "v3: a lock of a client that reboots" "$(<"$word")"
  is "v3: it is held" "$(lock_at server try "$file" ex 0 0)" "denied EAGAIN"
  on beta sm-notify -f
  becomes "v3: a client's reboot frees its locks" granted lock_at server try "$file" ex 0 0
  end_holder "$holder"
}

check_nlm_restart() {
  local file=locks/reclaim holder signal
  make_files reclaim
  hold lock_at alpha:3 hold "$file" ex 0 0
  holder=$held
  within 60 said "$word" granted || not_ok "v3: a lock to reclaim" "$(<"$word")"
  for signal in TERM KILL; do
    stop_nlm "$signal"
    becomes "v3: SIG$signal to the lock service frees its locks" "" listed .path
    start_nlm
    # (Asked without locking: a lock of a moment would be in the way of the reclaim.)
    becomes "v3: after SIG$signal its clients reclaim" "held ex 0 0" lock_at server test "$file" ex 0 0
    is "v3: and nobody else gets it" "$(lock_at server try "$file" ex 0 0)" "denied EAGAIN"
  done
  end_holder "$holder"
  becomes "v3: and what was reclaimed ends" granted lock_at server try "$file" ex 0 0
}

for part in conflicts blocking cancel silent_client server_restart rebooted_client nlm_restart; do
  began_part=$SECONDS
  "check_$part"
  note "locks: $part took $((SECONDS - began_part)) s"
done
