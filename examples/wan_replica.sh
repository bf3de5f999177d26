#!/usr/bin/env bash
# A full copy on the other side of a bad line: 80 ms there and back, 2 % of all packets lost. The voter's
# writes do not wait for it, it catches up by itself, and it reads its own writes.
#
#     cargo build && examples/wan_replica.sh
. "$(dirname "$0")/cluster.sh"

main() {
    # Somewhere in the ports that systems do not hand out by themselves.
    base=$((10000 + RANDOM % 10000))
    mesh[home]=127.0.0.1:$base
    mesh[far]=127.0.0.1:$((base + 1))
    say "the line: 40 ms each way, 2 % loss"
    python3 examples/wan_relay.py "${mesh[home]}" "${mesh[far]}" 40 2 >"$dir/relay" &
    others+=($!)
    until_true "the line is there" test -s "$dir/relay"
    read -r to_home to_far <"$dir/relay"

    # Each says that it is at the far end of the line, so nobody finds a shorter way.
    before[home]="env SKEIN_MESH_ADVERTISE=127.0.0.1:$to_home"
    before[far]="env SKEIN_MESH_ADVERTISE=127.0.0.1:$to_far"
    start home --profile wan
    until_true "home has a writer" has_writer home
    write home 2000
    say "a reader joins over the line and fetches what was there before"
    start far --join "@$(token home reader 1)" --seed "127.0.0.1:$to_home"
    until_true "far has all" counts far 2000 local
    until_true "home measures the line" far_rtt
    echo "round trip as home measures it: $(rtt) ms"
    [ "$(rtt)" -ge 75 ] || fail "the nodes found a way around the line"

    say "writes at home do not wait for the line; writes at the far end take one trip"
    timed home
    timed far
    say "and the far end reads its own writes"
    count far "$points"

    say "the line is cut while home writes on"
    kill -STOP "${others[0]}"
    write home 3000
    count home "$points"
    kill -CONT "${others[0]}"
    began=$(now_ms)
    until_true "far has caught up" counts far "$points" local
    echo "far had the 3000 points $(($(now_ms) - began)) ms after the line was back"
    tail -n 1 "$dir/relay"
}

timed() { # NAME
    local began
    began=$(now_ms)
    write "$1" 1
    echo "one point at $1: $(($(now_ms) - began)) ms, the program's start included"
}

# Whole milliseconds to far, as home has it.
rtt() { nodes home | grep '"name":"far"' | sed -n 's/.*"rtt_ms":\([0-9]*\).*/\1/p'; }

far_rtt() { [ -n "$(rtt)" ]; }

python3 -c '' 2>/dev/null || skip "needs python3"
run
