# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# A directory of 100,000 names, listed by a client of each version (by both at the same time: it is
# what takes longest here).
readonly entries=100000
mkdir -p "$store/large"
lock_tool fill "$store/large" "$entries" >/dev/null
for version in 3 4.2; do
  on beta lock_tool count "/mnt/beta-$version/large" >"$work/count-$version" &
  counting[${version%.*}]=$!
done
for version in 3 4.2; do
  wait "${counting[${version%.*}]}" || true
  is "v$version: a directory of $entries names" "$(<"$work/count-$version")" "$entries $entries"
done
