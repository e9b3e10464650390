#!/bin/bash
# In the virtual machine: server and clients, then each group of checks that was asked for.
set -euo pipefail
cd /checks
work=/tmp results=/dev/ttyS1
# shellcheck source=tests/nfs/checks.sh
source /checks/checks.sh
# shellcheck source=tests/nfs/vm_hosts.sh
source /checks/vm_hosts.sh
# Who waits for what, on the console, should it not end.
limit=$(sed -n 's/.*limit=\([0-9]*\).*/\1/p' /proc/cmdline)
(
  sleep $((limit - 20))
  # shellcheck disable=SC2009
  ps | grep -v '\['
  for stack in /proc/[0-9]*/stack; do
    grep -qE 'nfs|rpc|fuse|lockd' "$stack" && printf '%s %s\n' "$stack" "$(tr '\0' ' ' <"${stack%stack}cmdline")" && head -n 12 "$stack"
  done
  head -n 20 /proc/net/rpc/*/content
  tail -n 20 /tmp/latchfs.log /tmp/nlm.log
) &
trap 'note "died at ${BASH_SOURCE[0]}:$LINENO"' ERR

asked=$(sed -n 's/.*checks=\([^ ]*\).*/\1/p' /proc/cmdline)
name_everybody
start_rpc_of_server
make_client alpha 1
make_client beta 2
start_server
start_nlm
for host in alpha beta; do
  for version in 3 4.0 4.2; do
    works "$host mounts by NFSv$version" mount_nfs "$host" "$version"
  done
done
note "up after $SECONDS s"

run_group() { # run_group NAME
  local began=$SECONDS
  # shellcheck disable=SC1090
  source "/checks/vm_$1.sh"
  note "$1 took $((SECONDS - began)) s"
}
wanted() { [[ ,$asked, == *,$1,* ]]; }

# What is slow goes on beside what waits.
(
  trap 'note "died at ${BASH_SOURCE[0]}:$LINENO"' ERR
  for group in files listing; do
    if wanted "$group"; then run_group "$group"; fi
  done
) &
slow=$!
for group in locks control owners bench probe; do
  if wanted "$group"; then run_group "$group"; fi
done
wait "$slow" || not_ok "what is slow came to its end" "status $?"
# Alone: it replaces the daemon.
if wanted handles; then run_group handles; fi
end_checks
