# shellcheck shell=bash disable=SC2154,SC2034,SC2209
# Who owns a lock: the client, as far as the system tells.

mkdir -p "$store/own"
chmod 1777 "$store/own"
: >"$store/own/file"
chown "$user" "$store/own/file"
column() { # column PATH FIELD
  jq -r ".grants[] | select(.path == \"$1\") | .$2" "$shared/.locks/list"
}
by_address() { jq -r '.grants[].path' "$shared/.locks/list?owner_address=$1"; }

number=0
for client in alpha beta; do
  number=$((number + 1))
  address=10.9.$number.2
  for version in 3 4.0 4.2; do
    path=/own/$client-$version
    : >"$store$path"
    chown "$user" "$store$path"
    held_now as_user "$client" lock_tool hold "/mnt/$client-$version$path" ex 0 10
    if [[ $version == 3 ]]; then
      is "v3: a lock of $client names it" "$(column "$path" owner_name)" "$client"
    else
      matches "v$version: a lock of $client names it" "$(column "$path" owner_name)" "*$client*"
    fi
    is "v$version: with its address" "$(column "$path" owner_address)" "$address"
    matches "v$version: and is found by it" "$(by_address "$address")" "*$path*"
    is "v$version: its user" "$(column "$path" uid)" "$user"
  done
done
held_now as_user_at server lock_tool hold "$shared/own/file" ex 0 10
is "a local lock names the server" "$(column /own/file owner_name)" server
is "a client's locks are the client's only" "$(by_address 10.9.1.2 | grep -cv alpha || true)" 0

# What one client holds is broken by one request.
before=$(by_address 10.9.2.2 | wc -l)
if echo '{"owner_address": "10.9.1.2"}' >"$shared/.locks/release"; then
  is "all locks of a client are released" "$(by_address 10.9.1.2)" ""
else
  not_ok "all locks of a client are released" "$(<"$shared/.locks/reply")"
fi
is "and the other client's stay" "$(by_address 10.9.2.2 | wc -l)" "$before"
is "and the local ones" "$(column /own/file owner_name)" server
