set +e
echo hello > /srv/shared/x; chmod 666 /srv/shared/x
held_now as_user alpha lock_tool hold /mnt/alpha-4.2/x ex 5 10
time cat /srv/shared/.locks/list
as_user alpha cat /mnt/alpha-4.2/.locks/list
as_user alpha cat /mnt/alpha-3/.locks/list
as_user alpha head -3 /mnt/alpha-3/.locks/README
as_user alpha head -3 /mnt/alpha-4.0/.locks/status
as_user alpha ls -la /mnt/alpha-4.0/.locks/
as_user alpha ls -la /mnt/alpha-3/.locks/
as_user alpha ls -la /mnt/alpha-3/.locks/files
as_user alpha ls -la /mnt/alpha-4.2/.locks/files
as_user alpha cat '/mnt/alpha-3/.locks/list?ref=%2Fx'
as_user alpha cat '/mnt/alpha-4.2/.locks/list?ref=%2Fx'
as_user alpha cat '/mnt/alpha-4.2/.locks/files/x'
as_user alpha cat '/mnt/alpha-3/.locks/files/x'
head -50 /proc/fs/nfsd/clients/*/{info,states}
as_user alpha bash -c 'echo mine >/mnt/alpha-3/mine; echo /mine > /mnt/alpha-3/.locks/filelock'; echo $?
as_user alpha cat /mnt/alpha-3/.locks/filelock /mnt/alpha-3/.locks/reply
as_user alpha bash -c 'echo mine >/mnt/alpha-4.2/mine2; echo /mine2 > /mnt/alpha-4.2/.locks/filelock'; echo $?
as_user alpha cat /mnt/alpha-4.2/.locks/filelock /mnt/alpha-4.2/.locks/reply
ls -la /srv/shared
as_user alpha bash -c 'echo new > /mnt/alpha-4.2/.locks/filelock'; echo $?
time lock_tool fill /srv/files/d 20000; mkdir /srv/files/d;  time lock_tool fill /srv/files/d 20000
time lock_tool count /srv/shared/d
time lock_tool count /srv/shared/d
time on alpha lock_tool count /mnt/alpha-3/d
time on alpha lock_tool count /mnt/alpha-4.2/d
cat /tmp/latchfs.log
