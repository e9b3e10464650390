# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# A tree copied in over each version of NFS, compared by its checksums on the server and by the
# other client, after every cache was dropped.

drop_caches() {
  sync
  echo 3 >/proc/sys/vm/drop_caches
  echo 3 >/proc/sys/vm/drop_caches
}

make_tree() { # make_tree DIR: with an ordinary user's files only
  local dir=$1 i
  mkdir -p "$dir/deep/er/est" "$dir/with spaces/ünïcödé 目录"
  for ((i = 0; i < 120; i++)); do
    printf 'file %d\n%*s\n' "$i" $((i * 37)) "$i" >"$dir/deep/er/f$i"
  done
  printf 'a\n' >"$dir/with spaces/ünïcödé 目录/name with spaces, \"quotes\" and \\"
  : >"$dir/empty"
  dd if=/dev/urandom of="$dir/large" bs=1M count=4 2>/dev/null
  ln "$dir/deep/er/f1" "$dir/deep/hard"
  ln -s ../empty "$dir/deep/symbolic"
  ln -s 'nowhere at all' "$dir/dangling"
  chmod 0640 "$dir/deep/er/f2"
  chmod 0700 "$dir/with spaces"
  chown -R "$user:$user" "$dir"
}

# What a tree is: names, types, modes, sizes, targets, link counts, checksums.
manifest() { # manifest SITE DIR
  # shellcheck disable=SC2016
  as_user_at "$1" bash -c 'cd "$1" &&
    find . -type d -printf "%P %y %m\n" -o -printf "%P %y %m %s %n %l\n" | sort &&
    find . -type f -exec sha256sum {} + | sort' - "$2"
}

make_tree "$work/tree"
wanted=$(manifest server "$work/tree")
for version in 3 4.0 4.2; do
  works "v$version: a tree is copied in" as_user alpha cp -a "$work/tree" "/mnt/alpha-$version/tree-$version"
  drop_caches
  is "v$version: the tree on the server" "$(manifest server "$shared/tree-$version")" "$wanted"
  is "v$version: the tree for the other client" "$(manifest beta "/mnt/beta-$version/tree-$version")" "$wanted"
done
dd if=/dev/urandom of="$work/large" bs=1M count=20 2>/dev/null
chown "$user" "$work/large"
works "v4.2: 20 MiB are copied in" as_user alpha cp "$work/large" /mnt/alpha-4.2/large
drop_caches
is "v3: and are the same for the other client" \
  "$(as_user beta sha256sum /mnt/beta-3/large | cut -d " " -f 1)" "$(sha256sum "$work/large" | cut -d " " -f 1)"
is "the tree in the directory behind it" "$(manifest server "$store/tree-3")" "$wanted"
fails "v3: a stranger's directory is closed" on alpha setpriv --reuid 1001 --regid 1001 --clear-groups \
  ls "/mnt/alpha-3/tree-3/with spaces"

# A file of somebody else's that all may write.
printf 'theirs\n' >"$store/open"
chown 1005:1005 "$store/open"
chmod 0666 "$store/open"
for version in 3 4.2; do
  # shellcheck disable=SC2016
  works "v$version: a file that all may write is written anew" as_user alpha bash -c 'echo "$1" >"$1"' - "/mnt/alpha-$version/open"
  works "v$version: and touched" as_user alpha touch "/mnt/alpha-$version/open"
  is "v$version: and has its owner" "$(cat "$store/open") $(stat -c %u "$store/open")" "/mnt/alpha-$version/open 1005"
done

# A team's directory: who has its group as one of his others may all that the group may, and who has
# not, nothing.
mkdir -p "$store/team/out"
: >"$store/team/shared"
: >"$store/team/told"
chown -R 1005:3000 "$store/team"
chmod 2770 "$store/team" "$store/team/out"
chmod 0660 "$store/team/shared"
chmod 0640 "$store/team/told"
member() { on alpha setpriv --reuid 1002 --regid 1002 --groups 3001,3000 -- "$@"; }
stranger() { on alpha setpriv --reuid 1002 --regid 1002 --groups 3001 -- "$@"; }
for version in 3 4.2; do
  team=/mnt/alpha-$version/team
  # shellcheck disable=SC2016
  team_work='cd "$1" && mkdir d && : >f && echo x >shared && cat told && truncate -s 5 shared && ln f l &&
    ln -s f s && mv d out/d && mv out/d e && mkfifo p && touch shared && chmod g+s e && chgrp 3000 f &&
    rm l s p && rmdir e && rm f'
  works "v$version: a member of the group works in its directory" member bash -c "$team_work" - "$team"
  fails "v$version: who is none does not" stranger bash -c "$team_work" - "$team"
  fails "v$version: nor makes anything there" stranger mkdir "$team/d"
  is "v$version: all is as before" "$(cd "$store/team" && echo *)" "out shared told"
  # shellcheck disable=SC2016
  works "v$version: the set-group-ID bit stays" member bash -c 'mkdir "$1/g" && chmod 2750 "$1/g"' - "$team"
  is "v$version: and the group" "$(stat -c '%a %u %g' "$store/team/g")" "2750 1002 3000"
  # shellcheck disable=SC2016
  fails "v$version: the group writes nothing that it only reads" member bash -c 'echo x >"$1/told"' - "$team"
  rmdir "$store/team/g"
done
# By an ACL: group 3001 may, the directory's own may not.
mkdir "$store/acl"
chown 1005:3002 "$store/acl"
chmod 0750 "$store/acl"
setfacl -m g:3001:rwx "$store/acl"
for version in 3 4.2; do
  works "v$version: a group that an ACL names" stranger mkdir "/mnt/alpha-$version/acl/d"
  works "v$version: makes and removes" stranger rmdir "/mnt/alpha-$version/acl/d"
  fails "v$version: another does not" on alpha setpriv --reuid 1002 --regid 1002 --groups 3000 -- mkdir "/mnt/alpha-$version/acl/d"
done
works "v4.2: files are removed" as_user alpha rm -r /mnt/alpha-4.2/tree-4.0
is "and are gone for the other client" "$(as_user beta ls -d /mnt/beta-3/tree-4.0 2>&1 | grep -c 'No such file')" 1
