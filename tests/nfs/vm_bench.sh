# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# Lock and unlock of one byte by fcntl(2), pairs a second, of one client: scripts/bench-nfs. Figures
# are notes: "figure ROUND NAME VALUE".

readonly rounds=5 pairs=100
: >"$store/bench"
mkdir -p "$store/plain"
: >"$store/plain/bench"
chown -R "$user:$user" "$store/bench" "$store/plain"

loop() { # loop NAME COUNT SITE FILE
  local name=$1 count=$2 site=$3 file=$4 round
  # The first lock of a client looks servers up and monitors them.
  as_user_at "$site" lock_tool loop "$file" 10 >/dev/null
  for ((round = 1; round <= rounds; round++)); do
    note "figure $round $name $(as_user_at "$site" lock_tool loop "$file" "$count")"
  done
}

loop local-ext4 20000 server "$store/bench"
loop local-latchfs 2000 server "$shared/bench"
loop v4.2-latchfs $pairs alpha /mnt/alpha-4.2/bench
loop v3-latchfs-nlm $pairs alpha /mnt/alpha-3/bench

# lockd's turn, on ext4 itself: the other client asks it first.
stop_nlm TERM
echo "$store/plain *(rw,sync,fsid=2,no_subtree_check)" >>/etc/exports
exportfs -ra
on beta mkdir -p /mnt/plain-3 /mnt/plain-4.2
for version in 3 4.2; do
  on beta mount -t nfs -o "vers=$version,proto=tcp,actimeo=1" "10.9.2.1:$store/plain" "/mnt/plain-$version"
done
loop v3-lockd-ext4 $pairs beta /mnt/plain-3/bench
loop v4.2-nfsd-ext4 $pairs beta /mnt/plain-4.2/bench

# Ganesha's: everybody forgets the kernel's server first.
if command -v ganesha.nfsd >/dev/null; then
  for host in alpha beta; do
    for at in $(on "$host" sed -n 's/^[^ ]* \(\/mnt\/[^ ]*\) nfs.*/\1/p' /proc/mounts); do on "$host" umount "$at"; done
  done
  exportfs -ua
  stop_nfsd
  ln -sf /proc/self/mounts /etc/mtab
  mkdir -p /run/ganesha /var/lib/nfs/ganesha
  sed 's/\(Lease_Lifetime\|Grace_Period\) = [0-9]*/\1 = 5/' /recipe/ganesha.conf >/tmp/ganesha.conf
  # (The kernel's own client of this machine is not there: mountd's ports are free, too.)
  # shellcheck disable=SC2046
  kill $(pidof rpc.mountd)
  ganesha.nfsd -f /tmp/ganesha.conf -L /tmp/ganesha.log -p /run/ganesha.pid
  ganesha_up() { rpcinfo -T tcp 10.9.1.1 nlockmgr 4 >/dev/null 2>&1 && rpcinfo -T tcp 10.9.1.1 nfs 4 >/dev/null 2>&1; }
  within 60 ganesha_up || note "$(tail -n 3 /tmp/ganesha.log)"
  # Its grace period.
  sleep 10
  mount_nfs alpha 3
  mount_nfs alpha 4.2
  loop v3-ganesha $pairs alpha /mnt/alpha-3/bench
  loop v4.2-ganesha $pairs alpha /mnt/alpha-4.2/bench
fi
ok "the figures were measured"
