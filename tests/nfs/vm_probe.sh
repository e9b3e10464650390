set +e
echo one > /srv/shared/f; chown 1000 /srv/shared/f
source /checks/vm_keeper.sh
keeper v as_user alpha lock_tool keep /mnt/alpha-4.2/f; echo $reply
kill -9 $(pidof latchfs); sleep 1; umount -l /srv/shared; exportfs -f; mount_latchfs; exportfs -f
as_user alpha cat /mnt/alpha-4.2/f
dmesg | tail -3
rpcdebug -m nfs -s proc state 2>/dev/null
printf '%s\n' read >&"${keeper_in[v]}"
sleep 5; cat /proc/${keeper_pid[v]}/stack; ps | grep 10.9; cat /proc/fs/nfsd/clients/*/states; 
for i in 1 2 3; do cat /proc/fs/nfsd/clients/*/info | grep -E 'renew|name'; on alpha cat /proc/self/mountstats | grep -E 'xprt|READ:|OPEN|TEST_STATEID|EXCHANGE|SEQ|RECLAIM|CLOSE:|OPEN_NOATTR:' | grep -v ': 0 0 0' ; sleep 3; done
read -t 5 -u "${keeper_out[v]}" reply; echo "reply $reply"
