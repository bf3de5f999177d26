#!/usr/bin/env bash
# Three machines on one LAN, as network namespaces on a bridge: nobody is told an address. One token, and
# mDNS does the rest; then all get other addresses, and find each other again.
#
#     cargo build && sudo examples/lan_cluster.sh
. "$(dirname "$0")/cluster.sh"

net=sk$$
names=(a b c)

main() {
    say "a LAN: three namespaces on a bridge"
    lan || skip "cannot make network namespaces here"
    address 11 12 13

    say "a makes a cluster; b and c have the token and no address"
    begin a --new-cluster
    voters=$(token a voter 2)
    begin b --join "@$voters"
    begin c --join "@$voters"
    until_true "three voters are up" up a voter 3
    "$SKEIN" status --data-dir "$dir/c"
    write b 100
    count c 100

    say "without a token a fourth starts nothing: there is a cluster in sight"
    before[x]=${before[c]}
    launch x --mesh 0.0.0.0:7500
    until_true "x has ended" ended x
    [ ! -s "$dir/x.out" ] || fail "a second cluster was made beside the first"
    grep -o 'skein: .*' "$dir/x.log"

    say "every address changes"
    for name in "${names[@]}"; do
        stop "$name" TERM
    done
    address 111 112 113
    for name in "${names[@]}"; do
        begin "$name"
    done
    until_true "three voters are up" up a voter 3
    write c 100
    count a 200
}

ended() { ! kill -0 "${pid[$1]}" 2>/dev/null || [ -s "$dir/$1.out" ]; } # NAME

begin() { # NAME FLAGS..
    local name=$1
    shift
    before[$name]="ip netns exec $net-$name env SKEIN_DISCOVERY_ALLOW_INTERFACES=veth0"
    launch "$name" --mesh 0.0.0.0:7400 "$@"
    until_true "$name answers" answers "$name"
}

lan() {
    ip link add "$net" type bridge 2>/dev/null || return 1
    ip link set "$net" up
    for name in "${names[@]}"; do
        ip netns add "$net-$name" || return 1
        ip link add "$net$name" type veth peer name veth0 netns "$net-$name" || return 1
        ip link set "$net$name" master "$net" up
        ip -n "$net-$name" link set lo up
        ip -n "$net-$name" link set veth0 up
    done
}

address() { # LAST NUMBER OF EACH
    for name in "${names[@]}"; do
        ip -n "$net-$name" addr flush dev veth0
        ip -n "$net-$name" addr add "10.213.79.$1/24" dev veth0
        # Multicast needs a way out.
        ip -n "$net-$name" route replace default dev veth0
        shift
    done
}

# By the end of the script, whatever its end is.
after() {
    for name in "${names[@]}"; do
        ip netns del "$net-$name" 2>/dev/null || true
    done
    ip link del "$net" 2>/dev/null || true
}

if [ "$(id -u)" -ne 0 ] || ! command -v ip >/dev/null; then
    skip "needs root and iproute2"
fi
run
