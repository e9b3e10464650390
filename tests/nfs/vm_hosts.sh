# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# Sourced in the virtual machine: three hosts. The server is the machine itself; alpha and beta are
# network, mount and UTS namespaces of their own, each with its rpcbind, statd and state, and joined
# with the server by a veth pair each (10.9.1.0/24, 10.9.2.0/24). Mount namespaces keep the rpcbind
# sockets apart, which kernel and programs find by path.

declare -A host_pid
readonly shared=/srv/shared store=/srv/files
readonly user=1000

# on HOST COMMAND...: there, as root. With run=exec the pid is the program's own.
on() {
  local host=$1
  shift
  ${run:-} nsenter -t "${host_pid[$host]}" -m -n -u -- "$@"
}
# as_user HOST COMMAND...: there, as an ordinary user.
as_user() {
  local host=$1
  shift
  ${run:-} nsenter -t "${host_pid[$host]}" -m -n -u -S "$user" -G "$user" -- "$@"
}
# HOST may be `server`, too.
as_user_at() {
  if [[ $1 == server ]]; then
    shift
    ${run:-} setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@"
  else
    as_user "$@"
  fi
}

# Another ordinary user, on the server.
as_guest() { ${run:-} setpriv --reuid 1001 --regid 1001 --clear-groups -- "$@"; }

state_of_nfs() {
  mkdir -p /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/v4recovery /var/lib/nfs/nfsdcld
  : >/var/lib/nfs/etab
  : >/var/lib/nfs/rmtab
  chown -R statd /var/lib/nfs/sm /var/lib/nfs/sm.bak
}

# Names as a server's and a client's administrators have them.
name_everybody() {
  printf '%s\n' root:x:0:0:root:/root:/bin/sh statd:x:103:65534::/var/lib/nfs:/bin/false \
    _rpc:x:102:65534::/run/rpcbind:/bin/false nobody:x:65534:65534::/:/bin/false \
    user:x:1000:1000::/tmp:/bin/sh guest:x:1001:1001::/tmp:/bin/sh >/etc/passwd
  printf '%s\n' root:x:0: nogroup:x:65534: user:x:1000: guest:x:1001: >/etc/group
  printf '%s\n' 'passwd: files' 'group: files' 'hosts: files' 'services: files' 'rpc: files' \
    'protocols: files' 'netgroup: files' >/etc/nsswitch.conf
  printf '%s\n' '127.0.0.1 localhost' '10.9.1.1 server' '10.9.1.2 alpha' '10.9.2.2 beta' >/etc/hosts
  # The server has an address in each of its networks: a host's view of it is the reachable one.
  sed 's/10.9.1.1/10.9.2.1/' /etc/hosts >/etc/hosts.beta
  cp /etc/hosts /etc/hosts.alpha
}

make_client() { # make_client HOST NUMBER
  local host=$1 number=$2 ready=$work/$1.ready
  # shellcheck disable=SC2016
  unshare --mount --uts --net --propagation private -- bash -c '
    hostname "$1"
    mount --bind "/etc/hosts.$1" /etc/hosts
    mount -t tmpfs run /run
    mount -t tmpfs state /var/lib
    mkdir -p /run/rpcbind /run/lock
    : >"$2"
    exec sleep 1000000' - "$host" "$ready" &
  host_pid[$host]=$!
  within 60 test -e "$ready"
  ip link add "to-$host" type veth peer name eth0 netns "${host_pid[$host]}"
  ip addr add "10.9.$number.1/24" dev "to-$host"
  ip link set "to-$host" up
  on "$host" ip link set lo up
  on "$host" ip addr add "10.9.$number.2/24" dev eth0
  on "$host" ip link set eth0 up
  # shellcheck disable=SC2016
  on "$host" bash -c "$(declare -f state_of_nfs); state_of_nfs"
  on "$host" rpcbind
  on "$host" rpc.statd --no-notify
}

start_rpc_of_server() {
  hostname server
  ip link set lo up
  mkdir -p /run/rpcbind /run/lock /run/rpc_pipefs /var/lib
  mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
  mount -t nfsd nfsd /proc/fs/nfsd
  state_of_nfs
  rpcbind
  rpc.statd --no-notify
  # (Where Debian's /etc/nfs.conf says it is.)
  nfsdcld --pipefsdir /run/rpc_pipefs
}

# Lease and grace period of NFSv4: as short as the kernel takes them.
readonly lease=10
grace=$lease
# (lockd registers in several steps, and rpc.nfsd fails if the lock service takes its place back in
# between.)
start_nfsd() { within 60 try_nfsd; }
try_nfsd() {
  local said
  said=$(rpc.nfsd -L "$lease" -G "$grace" 8 2>&1) && return
  note "rpc.nfsd fails: ${said//$'\n'/ | }"
  stop_nfsd
  return 1
}
stop_nfsd() { rpc.nfsd 0; }

mount_latchfs() { latchfs "$store" "$shared" -o "allow_other,log=/tmp/latchfs.log"; }

start_server() {
  mkdir -p "$store" "$shared"
  mount -t ext4 /dev/vda "$store"
  chmod 1777 "$store"
  bash -eu /recipe/sysctl
  mount_latchfs
  cp /recipe/exports /etc/exports
  exportfs -ra
  start_nfsd
  rpc.mountd
  # From here on there is something to reclaim. Clients notice a restart when they renew their lease,
  # after up to two thirds of it, and then they need time.
  grace=20
}

# The lock service for NFSv3: the document's command, with a shorter grace period.
no_nlm() { ! pidof latchfs-nlm >/dev/null; }
start_nlm() {
  local -a command
  read -r -a command </recipe/nlm
  "${command[@]}" --grace=5 --log=/tmp/nlm.log
}
stop_nlm() { # stop_nlm SIGNAL
  # shellcheck disable=SC2046
  kill "-$1" $(pidof latchfs-nlm)
  within 60 no_nlm
}

restart_mountd() {
  # shellcheck disable=SC2046
  kill $(pidof rpc.mountd)
  within 30 no_mountd
  rpc.mountd
}
no_mountd() { ! pidof rpc.mountd >/dev/null; }

# mount_nfs HOST VERSION: at /mnt/VERSION. Attributes are believed for a second (the least).
mount_nfs() {
  local host=$1 version=$2 number=1
  [[ $host == beta ]] && number=2
  on "$host" mkdir -p "/mnt/$host-$version"
  on "$host" mount -t nfs -o "vers=$version,proto=tcp,actimeo=1,timeo=100" "10.9.$number.1:$shared" \
    "/mnt/$host-$version"
}
