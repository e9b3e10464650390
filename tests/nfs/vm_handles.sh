# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# File handles that clients keep: over dropped caches, over another daemon, and when the file is no
# more. Large directories.

# shellcheck source=tests/nfs/vm_keeper.sh
source /checks/vm_keeper.sh

versions=(3 4.0 4.2)
mkdir -p "$store/kept"
chmod 1777 "$store/kept"
put() { # put FILE TEXT
  printf '%s\n' "$2" >"$store/kept/$1"
  chown "$user:$user" "$store/kept/$1"
}

daemon_gone() { ! pidof latchfs >/dev/null; }
kill_daemon() {
  # shellcheck disable=SC2046
  kill -9 $(pidof latchfs)
  within 30 daemon_gone
  umount -l "$shared"
}

for version in "${versions[@]}"; do
  put "f-$version" one
  keeper "$version" as_user alpha lock_tool keep "/mnt/alpha-$version/kept/f-$version"
  is "v$version: a file is opened" "$reply" open
done
for round in 1 2; do
  sync
  echo 3 >/proc/sys/vm/drop_caches
  for version in "${versions[@]}"; do
    ask "$version" read
    is "v$version: it is read after caches were dropped ($round)" "$reply" "read one"
  done
done

# Locks that clients hold meanwhile. (Not by NFSv4.0: the kernel lets such a client reclaim after one
# restart of its server, but not after the next, whatever it exports: docs/nfs.md.)
declare -A lock_holder=()
for version in 3 4.2; do
  put "lock-$version" text
  held_now as_user alpha lock_tool hold "/mnt/alpha-$version/kept/lock-$version" ex 0 0
  lock_holder[$version]=$held
done
kept_locks() { jq -r '.grants[].path | select(startswith("/kept/"))' "$shared/.locks/list" | sort | tr '\n' ' '; }

# While the daemon is gone its directory must not be taken for the mount.
kill_daemon
exportfs -f
as_user alpha timeout 5 touch /mnt/alpha-3/underneath 2>/dev/null || true
is "nothing is written to the directory below a mount that is gone" "$(ls -A "$shared")" ""
is "who mounts is told nothing of exports that are right" "$(mount_latchfs 2>&1)" ""
# The server must be restarted: NFSv4 clients reclaim what they had. What a client asked for meanwhile
# is asked again by nobody else than a new rpc.mountd, which must be there before they do (as systemd
# has it: docs/nfs.md).
stop_nfsd
restart_mountd
exportfs -ra
start_nfsd
becomes "locks of NFS clients outlive the daemon" "/kept/lock-3 /kept/lock-4.2 " kept_locks
for version in "${versions[@]}"; do
  becomes "v$version: files are there again" one as_user alpha cat "/mnt/alpha-$version/kept/f-$version"
done
for version in "${!lock_holder[@]}"; do
  is "v$version: and hold" "$(as_user_at server lock_tool try "$shared/kept/lock-$version" ex 0 0)" "denied EAGAIN"
  end_holder "${lock_holder[$version]}"
  becomes "v$version: until they are given back" granted as_user_at server lock_tool try "$shared/kept/lock-$version" ex 0 0
done
ask 3 read
is "v3: a handle outlives the daemon" "$reply" "read one"
ask 3 "write two"
is "v3: and is written" "$reply" written
is "v3: to the file" "$(<"$store/kept/f-3")" two
for version in 4.0 4.2; do
  ask "$version" read
  is "v$version: a file that was open while the daemon was replaced is read" "$reply" "read one"
  end_keeper "$version"
done

# The same inode number, another file: its handle is another one.
number=$(lock_tool inode "$store/kept/f-3")
rm "$shared/kept/f-3"
echo 3 >/proc/sys/vm/drop_caches
recreated=no
for ((i = 0; i < 2000; i++)); do
  put "new-$i" "someone else's"
  if [[ $(lock_tool inode "$store/kept/new-$i") == "$number" ]]; then
    recreated=yes
    break
  fi
  ((i % 50)) || echo 2 >/proc/sys/vm/drop_caches
done
is "a new file has the old one's inode number" "$recreated" yes
ask 3 read
is "v3: the old handle is stale" "$reply" "read ESTALE"
ask 3 "write overwritten"
is "v3: and writes nothing" "$reply" "write ESTALE"
is "the new file is as it was" "$(<"$store/kept/new-$i")" "someone else's"
end_keeper 3
# The same behind the mount's back.
put behind one
keeper behind as_user alpha lock_tool keep /mnt/alpha-3/kept/behind
rm "$store/kept/behind"
ask behind read
matches "v3: a file that was removed behind the mount" "$reply" "read @(ESTALE|one)"
end_keeper behind

# What is off about an export is said when the mount is made.
kill_daemon
echo "$shared *(rw)" >/etc/exports
echo 1 >/proc/sys/fs/leases-enable
said_at_mount=$(mount_latchfs 2>&1)
for word in fsid= "'mp'" fs.leases-enable; do
  matches "who mounts is told of $word" "$said_at_mount" "*$word*"
done
cp /recipe/exports /etc/exports
bash -eu /recipe/sysctl
