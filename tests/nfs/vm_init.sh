#!/bin/busybox sh
# shellcheck shell=dash
# /init of the virtual machine: makes it one, runs the checks named on the kernel's command line
# (checks=NAME,…: /checks/vm_NAME.sh), and ends it whatever becomes of them.
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/usr/bin:/usr/sbin:/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
for module in virtio_pci virtio_blk fuse nfsd nfs nfsv3 nfsv4 lockd veth; do
  modprobe "$module" || echo "# no module $module" >/dev/ttyS1
done
bash /checks/vm_main.sh >/dev/console 2>&1 </dev/null ||
  echo "not ok the checks ran to their end: status $?" >/dev/ttyS1
sync
poweroff -f
