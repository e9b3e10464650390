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
  ps
  echo w >/proc/sysrq-trigger
) &
trap 'note "died at ${BASH_SOURCE[0]}:$LINENO"' ERR

asked=$(sed -n 's/.*checks=\([^ ]*\).*/\1/p' /proc/cmdline)
name_everybody
start_rpc_of_server
make_client alpha 1
make_client beta 2
start_server
# The lock service for NFSv3.
nlm=$(command -v latchfs-nlm || true)
[[ -z $nlm ]] || start_nlm
for host in alpha beta; do
  for version in 3 4.0 4.2; do
    works "$host mounts by NFSv$version" mount_nfs "$host" "$version"
  done
done
note "up after $SECONDS s"
for group in ${asked//,/ }; do
  began=$SECONDS
  # shellcheck disable=SC1090
  source "/checks/vm_$group.sh"
  note "$group took $((SECONDS - began)) s"
done
end_checks
