#!/usr/bin/env bash
# Every script of this directory but the two that the gate runs by themselves, beside each other, as many at
# once as there are processors (the first argument says otherwise): most of their time they wait.
#
#     cargo build && examples/all.sh
set -euo pipefail
cd "$(dirname "$0")/.."
at_once=${1:-$(($(nproc) + 1))}
scripts=(disaster_recovery.sh failover.sh rolling_upgrade.sh lan_cluster.sh grow_1_3_5.sh gateway_and_readers.sh
    sensor_to_dashboard.py wan_replica.sh)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

one() { # SCRIPT
    local rc=0
    "examples/$1" >"$2/$1" 2>&1 || rc=$?
    [ "$rc" -eq 0 ] && tail -n 1 "$2/$1" && return
    printf '\n==== %s failed (exit %d)\n' "$1" "$rc" >&2
    cat "$2/$1" >&2
    return 1
}
export -f one

# Each has its end in itself; this is for the one that has not.
printf '%s\n' "${scripts[@]}" | timeout 600 xargs -P "$at_once" -I{} bash -c 'one {} '"$out"
