cat /proc/fs/nfsd/versions; rpcinfo -p; on alpha rpcinfo -p; on alpha mount | grep nfs; dmesg | tail -20
ls -la /srv/shared /mnt/
on alpha ls -la /mnt/alpha-4.2
echo hello > /srv/shared/x; chmod 666 /srv/shared/x
as_user alpha cat /mnt/alpha-4.2/x
as_user alpha cat /mnt/alpha-3/x
as_user alpha lock_tool try /mnt/alpha-4.2/x ex 0 0
as_user alpha lock_tool try /mnt/alpha-4.0/x ex 0 0
as_user alpha lock_tool try /mnt/alpha-3/x ex 0 0
held_now as_user alpha lock_tool hold /mnt/alpha-4.2/x ex 5 10
cat /srv/shared/.locks/list
as_user alpha cat /mnt/alpha-4.2/.locks/list
as_user alpha cat /mnt/alpha-3/.locks/list
as_user alpha cat /mnt/alpha-3/.locks/README | head -3
cat /tmp/latchfs.log
head -50 /proc/fs/nfsd/clients/*/{info,states}
