#!/usr/bin/env bash
# NFS-Ganesha exports a mount of latchfs to two clients. Started by scripts/test-nfs in namespaces of
# its own (mounts, network, processes, host name), which end with it and take everything along:
# processes, mounts, sockets below /run, addresses.
#
# usage: ganesha.sh WORK RESULTS RECIPE      LATCHFS_BIN, LOCK_TOOL and NFS_CLIENT are programs.
#
# The clients speak from 10.8.0.2 and .3, names alpha and beta: namespaces of their own, so that a
# server's callback and statd's notice go to another host.
set -euo pipefail
dir=$(cd "$(dirname "$0")" && pwd)
work=$1 results=$2 recipe=$3
# shellcheck source=tests/nfs/checks.sh
source "$dir/checks.sh"
trap 'note "died at ${BASH_SOURCE[0]}:$LINENO"' ERR

readonly server=10.8.0.1 shared=/srv/shared
readonly table=${LATCHFS_TABLE:?}
declare -A host_pid address=([alpha]=10.8.0.2 [beta]=10.8.0.3)

on() { # on HOST COMMAND...
  local host=$1
  shift
  if [[ $host == server ]]; then ${run:-} "$@"; else ${run:-} nsenter -t "${host_pid[$host]}" -m -n -u -- "$@"; fi
}
# client HOST VERSION ACT...: a session of nfs_client.
client() {
  local host=$1 version=$2
  shift 2
  on "$host" "$NFS_CLIENT" "$version" "$server" "$shared" "$@"
}

# What belongs to hosts: never the machine's own.
private_state() {
  mount -t tmpfs run /run
  mount -t tmpfs state /var/lib
  mkdir -p /run/rpcbind /run/lock /run/ganesha /run/dbus /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/ganesha
  chown -R statd /var/lib/nfs/sm /var/lib/nfs/sm.bak
}

make_client() {
  local host=$1
  # shellcheck disable=SC2016
  unshare --mount --uts --net --propagation private -- bash -euc "$(declare -f private_state)"'
    hostname "$1"
    private_state
    : >"$2"
    exec sleep infinity' - "$host" "$work/$host.ready" &
  host_pid[$host]=$!
  within 60 test -e "$work/$host.ready"
  ip link add "to-$host" type veth peer name eth0 netns "${host_pid[$host]}"
  ip link set "to-$host" master lan up
  on "$host" ip link set lo up
  on "$host" ip addr add "${address[$host]}/24" dev eth0
  on "$host" ip link set eth0 up
  on "$host" rpcbind
}

make_network() {
  hostname server
  printf '%s\n' '127.0.0.1 localhost' "$server server" "${address[alpha]} alpha" "${address[beta]} beta" \
    >"$work/hosts"
  mount --bind "$work/hosts" /etc/hosts
  ip link set lo up
  ip link add lan type bridge
  ip addr add "$server/24" dev lan
  ip link set lan up
}

mount_latchfs() {
  "$LATCHFS_BIN" "$work/files" "$shared" -o "allow_other,table=$table,log=$work/latchfs.log"
}
ganesha_pid=
answers() { rpcinfo -T tcp "$server" "$1" "$2" >/dev/null 2>&1; }
# Ganesha says by its ports that it is up; its grace period is over when the first lock is given.
start_ganesha() {
  ganesha.nfsd -F -f "$recipe/ganesha.conf" -L "$work/ganesha.log" -p "$work/ganesha.pid" -N NIV_EVENT &
  ganesha_pid=$!
  within 60 answers nfs 4 && within 60 answers nlockmgr 4
}
stop_ganesha() { # stop_ganesha SIGNAL
  kill "-$1" "$ganesha_pid" || true
  wait "$ganesha_pid" 2>/dev/null || true
}

private_state
mount -t tmpfs shm /dev/shm
mkdir -p "$work/files" "$work/srv"
chmod 1777 "$work/files"
mkdir -p "$work/srv/shared"
mount --bind "$work/srv" /srv
make_network
rpcbind
rpc.statd --no-notify
make_client alpha
make_client beta
mount_latchfs
start_ganesha || not_ok "Ganesha starts" "$(tail -n 3 "$work/ganesha.log")"
# shellcheck source=tests/nfs/ganesha_checks.sh
source "$dir/ganesha_checks.sh"
stop_ganesha TERM
# Whoever still holds something was told above why.
for pid in $(jobs -p); do
  [[ " ${host_pid[*]} " == *" $pid "* ]] || kill -9 "$pid" 2>/dev/null || true
done
umount "$shared"
note "took $SECONDS s"
end_checks
