# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# A directory of 100,000 names, listed by a client of each version (by both at the same time: it is
# what takes longest here). Version 4 looks each of them up; version 3 only where it is told to, as
# the trees of vm_files.sh have it.
readonly entries=100000
mkdir -p "$store/many"
lock_tool fill "$store/many" "$entries" >/dev/null
on beta mkdir -p /mnt/beta-names
on beta mount -t nfs -o "vers=3,proto=tcp,actimeo=1,timeo=100,nordirplus" "10.9.2.1:$shared" /mnt/beta-names
on beta lock_tool count /mnt/beta-names/many >"$work/count-3" &
counting[3]=$!
on beta lock_tool count /mnt/beta-4.2/many >"$work/count-4.2" &
counting[4]=$!
for version in 3 4.2; do
  wait "${counting[${version%.*}]}" || true
  is "v$version: a directory of $entries names" "$(<"$work/count-$version")" "$entries $entries"
done
on beta umount /mnt/beta-names
