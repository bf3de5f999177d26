#!/usr/bin/env bash
# Three nodes and no first one: one token generated before anything runs, one command for all, started
# in no order; one is killed while they find each other. Then a fourth with the same token. Without
# mDNS, on loopback, in a temporary directory; nothing is left behind.
#
#     cargo build && examples/chosen_token.sh
#
# $SKEIN names another program than target/debug/skein.
set -euo pipefail
cd "$(dirname "$0")/.."
SKEIN=${SKEIN:-${CARGO_TARGET_DIR:-target}/debug/skein}
unset SKEIN_URL SKEIN_DATA_DIR

dir=$(mktemp -d)
declare -A pid=()
trap 'clean_up $?' EXIT

main() {
    say "a token, before there is a cluster"
    # Somewhere in the ports that systems do not hand out by themselves.
    base=$((20000 + RANDOM % 10000))
    seeds=(--seed "127.0.0.1:$base" --seed "127.0.0.1:$((base + 1))" --seed "127.0.0.1:$((base + 2))")
    "$SKEIN" token generate "${seeds[@]}" >"$dir/token"
    echo "$(cut -c -24 "$dir/token")... with the addresses of all three in it"

    say "c and a, by the same command; each waits for the others"
    together c 2
    together a 0
    until_true "a and c have met" grep -q "2 of 3 nodes seen" "$dir/a.log"
    grep -o "waiting: [^;]*" "$dir/a.log" | tail -n 1
    say "a is killed and started again, and b is started"
    kill -KILL "${pid[a]}"
    wait "${pid[a]}" 2>/dev/null || true
    together a 0
    together b 1
    for name in a b c; do
        until_true "$name is a member" status "$name"
    done
    until_true "three voters are up" voters_up a 3
    "$SKEIN" status --data-dir "$dir/a"
    echo 'cpu,host=h usage=1' | "$SKEIN" write -d home --data-dir "$dir/b" - >/dev/null
    "$SKEIN" query -d home --data-dir "$dir/c" --consistency linearizable 'SELECT host, usage FROM cpu'

    say "later, with the same token: d"
    start d 0
    until_true "d is a member" status d
    until_true "a knows four nodes" knows a 4
    "$SKEIN" token list --data-dir "$dir/d"
}

say() { printf '\n== %s\n' "$*"; }

together() { # NAME NUMBER
    start "$1" "$((base + $2))" --bootstrap-expect 3
}

start() { # NAME PORT FLAGS..
    local name=$1 port=$2
    shift 2
    "$SKEIN" start --data-dir "$dir/$name" --name "$name" --mesh "127.0.0.1:$port" --http 127.0.0.1:0 --no-mdns \
        --join "@$dir/token" "$@" >>"$dir/$name.out" 2>>"$dir/$name.log" &
    pid[$name]=$!
}

status() { grep -q '^ready ' "$dir/$1.out" && "$SKEIN" status --json --data-dir "$dir/$1" 2>/dev/null | tr -d ' \n'; }

# One line of the status for each node, as the asked node sees them.
nodes() { status "$1" | sed 's/.*"nodes":\[//' | tr '{' '\n' | grep '"name"'; }

voters_up() { # NAME HOW_MANY
    [ "$(nodes "$1" | grep '"role":"voter"' | grep -c '"state":"up"')" = "$2" ]
}

knows() { [ "$(nodes "$1" | wc -l)" = "$2" ]; } # NAME HOW_MANY

until_true() { # WHAT COMMAND..
    local what=$1 deadline=$((SECONDS + 60))
    shift
    until "$@" >/dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || fail "after 60 s still not: $what"
        sleep 0.2
    done
}

failure=
fail() {
    failure=$*
    exit 1
}

clean_up() { # EXIT_STATUS
    trap - EXIT
    if [ "$1" -ne 0 ]; then
        tail -n 25 "$dir"/*.log >&2 || true
        printf '\nchosen_token: %s\n' "${failure:-a command failed}" >&2
    fi
    for name in "${!pid[@]}"; do
        kill -TERM "${pid[$name]}" 2>/dev/null || true
    done
    for _ in $(seq 100); do
        [ -n "$(jobs -pr)" ] || break
        sleep 0.1
    done
    for name in "${!pid[@]}"; do
        kill -KILL "${pid[$name]}" 2>/dev/null || true
    done
    wait 2>/dev/null || true
    rm -rf "$dir"
    exit "$1"
}

main
