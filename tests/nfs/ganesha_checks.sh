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

# --- the control tree
for version in 3 4; do
  is "v$version: README" "$(client alpha "$version" cat .locks/README)" "$(<"$shared/.locks/README")"
  hold lock_at local hold first ex 7 1
  within 60 said "$word" granted || true
  seen() { client alpha "$version" cat '.locks/list?ref=%2Ffirst' | jq -r '.grants[].offset'; }
  becomes "v$version: a lock shows in the list" 7 seen
  end_holder "$held"
  becomes "v$version: and does not when it is gone" "" seen
done
