# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# The control tree from clients.

locks=$shared/.locks
mkdir -p "$store/ctl"
chmod 1777 "$store/ctl"
put_ctl() { # put_ctl NAME TEXT [UID]
  printf '%s\n' "$2" >"$store/ctl/$1"
  chown "${3:-$user}" "$store/ctl/$1"
}
# How many locks of /ctl/FILE a client sees.
seen() { # seen HOST VERSION FILE
  as_user "$1" cat "/mnt/$1-$2/.locks/list?ref=%2Fctl%2F$3" | jq '.grants | length'
}

for version in 3 4.2; do
  tree=/mnt/alpha-$version/.locks
  is "v$version: README" "$(as_user alpha cat "$tree/README")" "$(<"$locks/README")"
  matches "v$version: status" "$(as_user alpha cat "$tree/status" | jq -r .table)" machine
  matches "v$version: ls" "$(as_user alpha ls "$tree" | tr '\n' ' ')" "README *filelock files list *status *waiters "
  is "v$version: it is in no listing" "$(as_user alpha ls -A "/mnt/alpha-$version" | grep -c '^\.locks$' || true)" 0
  put_ctl "l-$version" text
  is "v$version: no lock yet" "$(seen alpha "$version" "l-$version")" 0
  held_now as_user_at server lock_tool hold "$shared/ctl/l-$version" ex 0 10
  holder=$held
  becomes "v$version: a lock shows" 1 seen alpha "$version" "l-$version"
  is "v$version: in the file's own listing, too" \
    "$(as_user alpha cat "$tree/files/ctl/l-$version" | jq '.grants | length')" 1
  is "v$version: what is told is whole JSON" "$(as_user alpha cat "$tree/list" | jq -r '.paging.next')" ""
  # Release by the user who holds it, from the client.
  request=$(jq -c ".grants[] | select(.path == \"/ctl/l-$version\") | {ref: .path, offset, size, owner_id}" "$locks/list")
  # shellcheck disable=SC2016
  works "v$version: the holder's user releases it" as_user alpha bash -c 'printf "%s\n" "$1" | dd of="$2/release" conv=notrunc,fsync' - "$request" "$tree"
  becomes "v$version: and it is gone" 0 seen alpha "$version" "l-$version"
  end_holder "$holder"

  # Root of a client is nobody here.
  put_ctl "r-$version" text 1001
  held_now as_guest lock_tool hold "$shared/ctl/r-$version" ex 0 10
  holder=$held
  request=$(jq -c ".grants[] | select(.path == \"/ctl/r-$version\") | {ref: .path, offset, size, owner_id}" "$locks/list")
  # shellcheck disable=SC2016
  fails "v$version: root of a client releases nobody's lock" on alpha bash -c 'printf "%s\n" "$1" | dd of="$2/release" conv=notrunc,fsync' - "$request" "$tree"
  # shellcheck disable=SC2016
  fails "v$version: nor does another user" as_user alpha bash -c 'printf "%s\n" "$1" | dd of="$2/release" conv=notrunc,fsync' - "$request" "$tree"
  is "v$version: it is still there" "$(jq "[.grants[] | select(.path == \"/ctl/r-$version\")] | length" "$locks/list")" 1
  end_holder "$holder"

  # Filelocks: a client's user keeps local users out, and the other way round.
  put_ctl "mine-$version" text
  chmod 666 "$store/ctl/mine-$version"
  # shellcheck disable=SC2016
  works "v$version: echo > filelock" as_user alpha bash -c 'echo "$1" >"$2/filelock"' - "/ctl/mine-$version" "$tree"
  # (For its attribute timeout a client may believe what it has just written there.)
  listed_by() { as_user alpha cat "$tree/filelock" | jq -r ".filelocks[] | select(.path == \"/ctl/mine-$version\") | .uid" 2>/dev/null || true; }
  becomes "v$version: it is listed" "$user" listed_by
  # shellcheck disable=SC2016
  fails "v$version: a local user may not write" as_guest bash -c 'echo other >>"$1"' - "$shared/ctl/mine-$version"
  # shellcheck disable=SC2016
  works "v$version: who locked it may" as_user alpha bash -c 'echo own >>"$1"' - "/mnt/alpha-$version/ctl/mine-$version"
  put_ctl "theirs-$version" text 1001
  chmod 666 "$store/ctl/theirs-$version"
  # shellcheck disable=SC2016
  works "v$version: a local user locks a file" as_guest bash -c 'echo "$1" >"$2/filelock"' - "/ctl/theirs-$version" "$locks"
  # shellcheck disable=SC2016
  fails "v$version: a client's user may not write it" as_user alpha dd "if=/dev/zero" "of=/mnt/alpha-$version/ctl/theirs-$version" bs=1 count=1 conv=notrunc,fsync
  # shellcheck disable=SC2016
  fails "v$version: nor may a client's root" on alpha dd "if=/dev/zero" "of=/mnt/alpha-$version/ctl/theirs-$version" bs=1 count=1 conv=notrunc,fsync
  # shellcheck disable=SC2016
  fails "v$version: nor take it off" as_user alpha bash -c 'printf "%s\n" "$1" | dd of="$2/unfilelock" conv=notrunc,fsync' - "/ctl/theirs-$version" "$tree"
  # shellcheck disable=SC2016
  fails "v$version: a file that is not there cannot be locked" as_user alpha bash -c 'echo /ctl/none | dd of="$1/filelock" conv=notrunc,fsync' - "$tree"
  # shellcheck disable=SC2016
  works "v$version: unfilelock" as_user alpha bash -c 'printf "%s\n" "$1" | dd of="$2/unfilelock" conv=notrunc,fsync' - "/ctl/mine-$version" "$tree"
  is "v$version: and it is unlocked" "$(jq -r ".filelocks[] | select(.path == \"/ctl/mine-$version\") | .path" "$locks/filelock")" ""
done

# What the server copies (NFSv4.2) is written by a thread of the kernel that is root for whoever asked.
tree=/mnt/alpha-4.2
printf 'root'"'"'s\n' >"$store/ctl/victim"
chmod 600 "$store/ctl/victim"
{ printf '/ctl/victim\n' && dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\0' '\n'; } >"$store/ctl/request"
chown "$user" "$store/ctl/request"
size=$(stat -c %s "$store/ctl/request")
put_ctl copied text
put_ctl frozen text
chmod 666 "$store/ctl/frozen"
copied_by() { # copied_by WHEN_READY FILE: a line when the file may be copied to
  { "$1" && echo; } | as_user alpha lock_tool copy "$tree/ctl/request" "$2" 2>&1 || true
}
at_once() { true; }
is "v4.2: the server copies a file" "$(copied_by at_once "$tree/ctl/copied")" "$size"
root_freezes() { # once the copier has it open
  until find /proc/[0-9]*/fd -lname '*/frozen' 2>/dev/null | grep -q .; do sleep 0.1; done
  echo /ctl/frozen >"$locks/filelock"
}
matches "v4.2: not onto a filelocked one" "$(copied_by root_freezes "$tree/ctl/frozen")" "*EACCES*"
is "v4.2: which stays what it was" "$(<"$store/ctl/frozen")" text
echo /ctl/frozen >"$locks/unfilelock"
matches "v4.2: nor a request into the control tree" "$(copied_by at_once "$tree/.locks/filelock")" "*EACCES*"
is "v4.2: which asks for nothing" "$(jq '[.filelocks[] | select(.path == "/ctl/victim")] | length' "$locks/filelock")" 0
