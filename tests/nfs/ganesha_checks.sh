# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# Sourced by ganesha.sh: files, locks and the control tree over NFSv3 and NFSv4.0.

# After its start Ganesha opens nothing for writing until its grace period is over.
grace_over() { client alpha 4 echo text probe; }
: >"$work/files/probe"
chmod 666 "$work/files/probe"
works "the grace period ends" within 60 grace_over

# --- files
tree=$work/tree
mkdir -p "$tree/deep/er" "$tree/with spaces/ünïcödé 目录"
for ((i = 0; i < 200; i++)); do printf 'file %d\n%*s\n' "$i" $((i * 37)) "$i" >"$tree/deep/er/f$i"; done
printf 'a\n' >"$tree/with spaces/ünïcödé 目录/name with \"quotes\""
: >"$tree/empty"
dd if=/dev/urandom of="$tree/large" bs=1M count=20 2>/dev/null
ln -s ../empty "$tree/deep/symbolic"
chmod 0640 "$tree/deep/er/f2"
manifest() {
  (cd "$1" && find . -type d -printf '%P %y %m\n' -o -printf '%P %y %m %s %l\n' | sort &&
    find . -type f -exec sha256sum {} + | sort)
}
wanted=$(manifest "$tree")
for version in 3 4; do
  works "v$version: a tree is copied in" client alpha "$version" put "$tree" "tree-$version"
  is "v$version: the tree on the server" "$(manifest "$shared/tree-$version")" "$wanted"
  works "v$version: it is copied out by the other client" client beta "$version" get "tree-$version" "$work/back-$version"
  is "v$version: and is the same" "$(manifest "$work/back-$version")" "$wanted"
done
mkdir "$work/files/large"
"$LOCK_TOOL" fill "$work/files/large" 100000 >/dev/null
for version in 3 4; do
  is "v$version: a directory of 100000 names" "$(client alpha "$version" count large)" "100000 100000"
done

# --- locks: sites are local, and HOST:VERSION
sites=(local alpha:3 beta:3 alpha:4 beta:4)
lock_at() { # lock_at SITE ACT FILE ARG...
  local site=$1 act=$2 file=$3
  shift 3
  case $site in
    local) ${run:-} "$LOCK_TOOL" "$act" "$shared/$file" "$@" ;;
    *) client "${site%:*}" "${site#*:}" "$act" "$file" "$@" ;;
  esac
}
make_file() {
  : >"$work/files/$1"
  chmod 666 "$work/files/$1"
}
listed() { jq -r ".grants[] | ${2:+select($2) |} $1" "$shared/.locks/list"; }
nothing_listed() { [[ -z $(listed .path) ]]; }

make_file first
for holder in "${sites[@]}"; do
  make_file "m-$holder"
  hold lock_at "$holder" hold "m-$holder" ex 0 100
  ex=$held
  within 60 said "$word" granted || not_ok "$holder locks" "$(<"$word")"
  hold lock_at "$holder" hold "m-$holder" sh 200 100
  sh=$held
  within 60 said "$word" granted || not_ok "$holder locks shared" "$(<"$word")"
  for other in "${sites[@]}"; do
    [[ $other != "$holder" ]] || continue
    is "$holder holds, $other is refused" "$(lock_at "$other" try "m-$holder" ex 50 10)" "denied EAGAIN"
    is "$holder holds shared, $other shares" "$(lock_at "$other" try "m-$holder" sh 250 10)" granted
    is "$holder holds shared, $other is refused" "$(lock_at "$other" try "m-$holder" ex 299 10)" "denied EAGAIN"
    is "$holder holds, $other has bytes beside it" "$(lock_at "$other" try "m-$holder" ex 100 100)" granted
  done
  end_holder "$ex"
  end_holder "$sh"
done
within 60 nothing_listed || not_ok "locks end with their holders" "$(listed .path)"
hold lock_at local hold first ex 5 10
within 60 said "$word" granted || true
# (Ganesha's TEST says "free" of other processes' locks, on ext4 too: docs/nfs.md. Its own it knows.)
note "v3 asks who holds what a local process does: $(lock_at alpha:3 test first sh 0 0)"
end_holder "$held"
hold lock_at beta:3 hold first ex 5 10
within 60 said "$word" granted || true
is "v3 asks who holds" "$(lock_at alpha:3 test first sh 0 0)" "held ex 5 10"
end_holder "$held"

# Blocking, all pairs. (A v3 waiter says "blocked" first.)
waits_still() { [[ $(<"$1") == @(|blocked) ]]; }
got_it() { [[ $(tail -n 1 "$1") == granted ]]; }
for other in "${sites[@]}"; do
  for holder in "${sites[@]}"; do
    [[ $other != "$holder" && ${other%:*} != "${holder%:*}" ]] || continue
    make_file "w-$holder-$other"
    hold lock_at "$holder" hold "w-$holder-$other" ex 0 0
    first=$held
    within 60 said "$word" granted || not_ok "$holder: a lock to wait for" "$(<"$word")"
    hold lock_at "$other" hold "w-$holder-$other" ex 10 10 wait
    if [[ $other == *:3 ]]; then within 60 said "$word" blocked || true; else sleep 0.5; fi
    if waits_still "$word"; then ok "$other waits for $holder"; else not_ok "$other waits for $holder" "$(<"$word")"; fi
    end_holder "$first"
    if within 60 got_it "$word"; then ok "$other is granted after $holder"; else not_ok "$other is granted after $holder" "$(<"$word")"; fi
    end_holder "$held"
  done
done

# Cancel: what waited holds nothing afterwards.
hold lock_at local hold first ex 0 0
first=$held
within 60 said "$word" granted || true
is "v3: a request that waits is taken back" "$(lock_at beta:3 cancel first ex 0 0 | tail -n 1)" cancelled
end_holder "$first"
becomes "v3: and holds nothing" granted lock_at local try first ex 0 0

# A client that dies without a word: its lease ends.
hold lock_at alpha:4 hold first ex 0 0
within 60 said "$word" granted || not_ok "v4: a lock of who dies" "$(<"$word")"
end_holder "$held" KILL
is "v4: a dead client's lock stays for its lease" "$(lock_at local try first ex 0 0)" "denied EAGAIN"
becomes "v4: and ends with it" granted lock_at local try first ex 0 0

# What its locks look like.
hold lock_at alpha:4 hold first ex 0 0
within 60 said "$word" granted || true
note "the listing of a lock by Ganesha: $(listed 'del(.file_id, .path, .acquired_at) | tostring')"
is "a lock by Ganesha is Ganesha's process's" "$(listed .comm '.path == "/first"')" ganesha.nfsd
is "and is found by its path" "$(jq '.grants | length' "$shared/.locks/list?ref=%2Ffirst")" 1
end_holder "$held"

# --- restarts
# A client's statd says that the client was restarted: statd here tells Ganesha, which asked for it.
hold lock_at alpha:3 hold first ex 0 0
within 60 said "$word" granted || not_ok "v3: a lock of who restarts" "$(<"$word")"
is "v3: it is held" "$(lock_at local try first ex 0 0)" "denied EAGAIN"
# (Of whom alpha's statd would tell, had alpha one: RPC program, version, procedure are the callback's.)
# shellcheck disable=SC2016
on alpha bash -c 'mkdir -p /var/lib/nfs/sm && printf "7f000001 000186b5 00000003 00000010 %032d server alpha\n" 0 >/var/lib/nfs/sm/server'
on alpha sm-notify -f
becomes "v3: a client's restart frees its locks" granted lock_at local try first ex 0 0
end_holder "$held"

# Ganesha dies, and its clients reclaim from the next one.
declare -A holder=() word_of=()
for version in 3 4; do
  make_file "restart-$version"
  hold lock_at "alpha:$version" hold "restart-$version" ex 0 10
  holder[$version]=$held word_of[$version]=$word
  within 60 said "$word" granted || not_ok "v$version: a lock to reclaim" "$(<"$word")"
done
stop_ganesha KILL
within 60 nothing_listed || not_ok "locks end with Ganesha" "$(listed .path)"
# Time to reclaim in. (At its first start nobody had anything to reclaim.)
sed -i 's/Grace_Period = [0-9]*/Grace_Period = 25/' "$recipe/ganesha.conf"
start_ganesha || {
  not_ok "Ganesha starts again" "$(tail -n 3 "$work/ganesha.log")"
  return 0
}
for version in 3 4; do kill -USR1 "${holder[$version]}"; done
for version in 3 4; do
  reclaimed() { [[ $(tail -n 1 "${word_of[$version]}") == reclaimed ]]; }
  within 60 reclaimed || true
  is "v$version: a client reclaims its lock" "$(tail -n 1 "${word_of[$version]}")" reclaimed
  is "v$version: a local process is refused" "$(lock_at local try "restart-$version" ex 0 0)" "denied EAGAIN"
done
for version in 3 4; do
  # (Who asks in the grace period waits for its end.)
  is "v$version: another client is refused" "$(lock_at "beta:$version" try "restart-$version" ex 0 0)" "denied EAGAIN"
  end_holder "${holder[$version]}"
  becomes "v$version: what was reclaimed ends" granted lock_at local try "restart-$version" ex 0 0
done

# --- the control tree
# user_client UID VERSION ACT...: on alpha, as that user.
user_client() {
  local uid=$1 version=$2
  shift 2
  nsenter -t "${host_pid[alpha]}" -m -n -u -S "$uid" -G "$uid" -- "$NFS_CLIENT" "$version" "$server" "$shared" "$@"
}
local_user() { # local_user UID COMMAND...
  local uid=$1
  shift
  ${run:-} setpriv --reuid "$uid" --regid "$uid" --clear-groups -- "$@"
}
filelock_of() { jq -r ".filelocks[] | select(.path == \"$1\") | .uid" "$shared/.locks/filelock"; }
filelock_seen() { # filelock_seen VERSION PATH: by a client
  client alpha "$1" cat .locks/filelock | jq -r ".filelocks[] | select(.path == \"$2\") | .uid"
}
request_for() { # request_for PATH: to release what is held on it
  jq -c ".grants[] | select(.path == \"$1\") | {ref: .path, offset, size, owner_id}" "$shared/.locks/list"
}
for version in 3 4; do
  for uid in 1000 1001; do
    other=$((2001 - uid))
    file=filelock-$version-$uid
    make_file "$file"
    chown "$uid" "$work/files/$file"
    is "v$version: user $uid of a client locks a file" "$(user_client "$uid" "$version" echo "/$file" .locks/filelock)" written
    is "v$version: it is his" "$(filelock_of "/$file")" "$uid"
    becomes "v$version: and is listed for clients" "$uid" filelock_seen "$version" "/$file"
    # shellcheck disable=SC2016
    fails "v$version: a local user may not write it" local_user "$other" bash -c 'echo other >>"$1"' - "$shared/$file"
    is "v$version: who locked it may" "$(user_client "$uid" "$version" echo text "$file")" written
    # (libnfs says EFAULT of each write that is refused by NFSv3.)
    matches "v$version: another of the client's users may not" "$(user_client "$other" "$version" echo text "$file")" "denied E@(ACCES|FAULT)"
    matches "v$version: nor take it off" "$(user_client "$other" "$version" echo "/$file" .locks/unfilelock)" "denied E@(ACCES|FAULT)"
    is "v$version: he takes it off" "$(user_client "$uid" "$version" echo "/$file" .locks/unfilelock)" written
    is "v$version: and it is off" "$(filelock_of "/$file")" ""
    # Release of a local process's lock by its user.
    hold local_user "$uid" "$LOCK_TOOL" hold "$shared/$file" ex 3 4
    within 60 said "$word" granted || not_ok "a lock of user $uid" "$(<"$word")"
    request=$(request_for "/$file")
    matches "v$version: another user does not release it" "$(user_client "$other" "$version" echo "$request" .locks/release)" "denied E@(ACCES|FAULT)"
    matches "v$version: nor does a client's root" "$(client alpha "$version" echo "$request" .locks/release)" "denied E@(ACCES|FAULT)"
    is "v$version: its user releases it" "$(user_client "$uid" "$version" echo "$request" .locks/release)" written
    is "v$version: and it is gone" "$(request_for "/$file")" ""
    end_holder "$held"
  done
done
# Ganesha reads as root, whoever asks: it is shown what everybody may see.
mkdir -m 700 "$work/files/private"
: >"$work/files/private/secret"
hold local_user 0 "$LOCK_TOOL" hold "$shared/private/secret" ex 3 4
within 60 said "$word" granted || not_ok "a lock on a private file" "$(<"$word")"
is "root sees it" "$(listed .path)" /private/secret
echo '{"owner_address": "10.8.0.99"}' >"$shared/.locks/release" || true
isnt "root has a reply" "$(<"$shared/.locks/reply")" "{}"
for version in 3 4; do
  is "v$version: a private file's lock is not shown" "$(user_client 1000 "$version" cat .locks/list | jq -c .grants)" "[]"
  is "v$version: nor to a client's root" "$(client alpha "$version" cat .locks/list | jq -c .grants)" "[]"
  is "v$version: nor is anybody's reply" "$(user_client 1001 "$version" cat .locks/reply)" "{}"
done
end_holder "$held"
for version in 3 4; do
  is "v$version: README" "$(client alpha "$version" cat .locks/README)" "$(<"$shared/.locks/README")"
  hold lock_at local hold first ex 7 1
  within 60 said "$word" granted || true
  seen() { client alpha "$version" cat '.locks/list?ref=%2Ffirst' | jq -r '.grants[].offset'; }
  becomes "v$version: a lock shows in the list" 7 seen
  end_holder "$held"
  becomes "v$version: and does not when it is gone" "" seen
done
