# shellcheck shell=bash
# Sourced by scripts/test-nfs and scripts/bench after common.sh: a virtual machine with Debian's
# kernel, whose NFS server and client we have nowhere else. It is made of this machine's programs:
# an initramfs of what is named below with the libraries it needs. Nothing is installed for it but
# packages; the kernel is unpacked in a directory that is kept between runs.

# shellcheck disable=SC2034
readonly nfs_vm_packages=(qemu-system-x86 busybox-static kmod cpio iproute2 util-linux e2fsprogs jq
  nfs-kernel-server nfs-common rpcbind acl)
readonly nfs_vm_programs=(bash cp dd find sha256sum sort touch ls cat ip jq nsenter unshare mount umount setpriv rpcbind rpcinfo exportfs
  nfsdcld rpc.mountd rpc.nfsd rpc.statd sm-notify mount.nfs umount.nfs setfacl)
readonly nfs_vm_modules=(virtio_pci virtio_blk fuse nfsd nfs nfsv3 nfsv4 lockd veth)

# nfs_vm_kernel CACHE: the unpacked kernel package's directory, on standard output. It is fetched
# once; the newest of Debian's is good enough for as long as the cache lives.
nfs_vm_kernel() {
  local cache=$1 package
  if [[ ! -f $cache/kernel/done ]]; then
    mkdir -p "$cache"
    rm -rf "$cache"/kernel "$cache"/*.deb
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }')
    if [[ -z $package ]]; then
      apt-get update -q >/dev/null || die "apt-get update failed"
      package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
    fi
    (cd "$cache" && { apt-get download -q "$package" || { apt-get update -q && apt-get download -q "$package"; }; }) \
      >/dev/null 2>&1 || die "could not fetch $package"
    dpkg-deb -x "$cache"/*.deb "$cache/kernel" || die "could not unpack $package"
    rm -f "$cache"/*.deb
    # Debian's kernel packages leave this to their installation.
    depmod -b "$cache/kernel" "$(basename "$cache"/kernel/lib/modules/*)" 2>/dev/null
    touch "$cache/kernel/done"
  fi
  printf '%s\n' "$cache/kernel"
}

# nfs_vm_add ROOT FILE...: copies programs with the libraries they load.
nfs_vm_add() {
  local root=$1 file
  shift
  for file in "$@"; do
    mkdir -p "$root/usr/bin"
    cp -L "$file" "$root/usr/bin/"
    ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true
  done | sort -u | while read -r file; do
    mkdir -p "$root/usr$(dirname "${file#/usr}")"
    cp -nL "$file" "$root/usr$(dirname "${file#/usr}")/"
  done
}

# nfs_vm_plugins ROOT DIR: what a program loads by itself, from DIR.
nfs_vm_plugins() {
  mkdir -p "$1$2"
  cp -L "$2"/*.so "$1$2/"
  nfs_vm_add "$1" "$2"/*.so
}

# nfs_vm_root ROOT KERNEL FILE...: the machine's files, and ours among its programs.
nfs_vm_root() {
  local root=$1 kernel=$2 name version
  shift 2
  local -a files=("$@")
  version=$(basename "$kernel"/lib/modules/*)
  mkdir -p "$root"/{dev,proc,sys,run,tmp,etc,root,mnt,srv,var/lib,recipe,checks} "$root"/usr/{bin,sbin,lib,lib64}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  ln -s ../run "$root/var/run"
  cp "$(command -v busybox)" "$root/usr/bin/busybox"
  for name in "${nfs_vm_programs[@]}"; do
    files+=("$(PATH=$PATH:/usr/sbin:/sbin command -v "$name")") || die "no program $name here"
  done
  nfs_vm_add "$root" "${files[@]}"
  # By their usual places: mount(8) and mountd look there.
  for name in mount.nfs umount.nfs rpc.statd sm-notify; do ln -s "../bin/$name" "$root/usr/sbin/$name"; done
  # Not in any program's list of libraries: names are looked up by these.
  cp -L /lib/x86_64-linux-gnu/libnss_files.so.2 "$root/usr/lib/x86_64-linux-gnu/" 2>/dev/null || true
  cp /etc/netconfig /etc/protocols /etc/rpc /etc/services "$root/etc/" 2>/dev/null || true
  mkdir -p "$root/lib/modules/$version"
  for name in "${nfs_vm_modules[@]}"; do
    modprobe -d "$kernel" -S "$version" --show-depends "$name" | awk '$1 == "insmod" { print $2 }'
  done | sort -u | while read -r name; do
    mkdir -p "$root/$(dirname "${name#"$kernel"}")"
    cp "$name" "$root/${name#"$kernel"}"
  done
  depmod -b "$root" "$version" 2>/dev/null
}

# nfs_vm_image DIR: the files in DIR/root as the machine's, and an empty disk.
nfs_vm_image() {
  local dir=$1
  (cd "$dir/root" && find . | cpio --quiet -o -H newc >../initramfs)
  rm -f "$dir/disk"
  truncate -s 2G "$dir/disk"
  mkfs.ext4 -q -F -N 150000 -E lazy_itable_init=1 "$dir/disk"
}

# nfs_vm_command DIR KERNEL SECONDS GROUP...: sets vm_command, which boots it and ends with it. The
# kernel's words go to DIR/console, what the checks say to DIR/results. Emulated: it needs no more
# than any machine has.
nfs_vm_command() {
  local dir=$1 kernel=$2 limit=$3 groups
  shift 3
  groups=$(IFS=, && printf '%s' "$*")
  # shellcheck disable=SC2034
  vm_command=(qemu-system-x86_64 -accel "tcg,thread=multi" -cpu max -smp 2 -m 1536
    -nodefaults -display none -no-reboot -kernel "$kernel"/boot/vmlinuz-* -initrd "$dir/initramfs"
    -append "console=ttyS0 panic=-1 quiet limit=$limit checks=$groups"
    -drive "file=$dir/disk,format=raw,if=virtio,cache=unsafe"
    -serial "file:$dir/console" -serial "file:$dir/results")
}

# need_nfs_packages: installs without starting a service: this machine is nobody's server.
need_nfs_packages() {
  local policy=/usr/sbin/policy-rc.d made=no
  local -a wanted=("${nfs_vm_packages[@]}" nfs-ganesha nfs-ganesha-vfs libnfs-dev)
  [[ -n $(missing_packages "${wanted[@]}") ]] || return 0
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made=yes
  fi
  need_packages "${wanted[@]}"
  [[ $made == no ]] || rm -f "$policy"
}

# doc_blocks FILE DIR: each block of FILE that follows a line "<!-- file: NAME -->", as DIR/NAME. So
# what the document tells people to do is what is tried.
doc_blocks() {
  awk -v dir="$2" '
    match($0, /^<!-- file: [a-z.]+ -->$/) { name = dir "/" substr($0, 12, RLENGTH - 15); next }
    /^```/ && name != "" { if (inside) { name = ""; inside = 0; close(name) } else inside = 1; next }
    inside { print >name }' "$1"
}
