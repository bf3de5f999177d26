#!/usr/bin/env bash
# Three nodes on this machine: start, join, write at each, ask another, kill the writer, write on,
# count. Without mDNS, on free ports, in a temporary directory; nothing is left behind.
#
#     cargo build && examples/three_nodes.sh
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
    say "a makes a cluster"
    start a
    until_true "a has a writer" has_writer a

    say "b and c join with one token and a's address"
    token=$dir/token
    "$SKEIN" token create --uses 2 --data-dir "$dir/a" >"$token"
    seed=$(field a mesh_addr)
    start b --join "@$token" --seed "$seed"
    start c --join "@$token" --seed "$seed"
    until_true "three voters are up" voters_up a 3
    "$SKEIN" status --data-dir "$dir/a"

    say "write 100 points at each, count at the next"
    write a 100
    write b 100
    write c 100
    count b 300
    count c 300
    count a 300

    victim=$(writer a)
    others=$(printf '%s\n' a b c | grep -v "$victim")
    first=$(head -n 1 <<<"$others")
    last=$(tail -n 1 <<<"$others")
    say "kill the writer, $victim, and write on at $first and $last"
    kill -KILL "${pid[$victim]}"
    wait "${pid[$victim]}" 2>/dev/null || true
    unset "pid[$victim]"
    began=$(date +%s%N)
    write "$first" 1
    echo "next acknowledged write after $((($(date +%s%N) - began) / 1000000)) ms"
    write "$last" 99
    count "$first" 400
    count "$last" 400

    say "start $victim again: same directory, no token, other ports"
    start "$victim"
    until_true "$victim has caught up" counts "$victim" 400 local
    until_true "three voters are up" voters_up "$victim" 3
    say "400 points acknowledged, 400 found at every node"
}

say() { printf '\n== %s\n' "$*"; }

start() { # NAME FLAGS..
    local name=$1
    shift
    "$SKEIN" start --data-dir "$dir/$name" --name "$name" --mesh 127.0.0.1:0 --http 127.0.0.1:0 --no-mdns "$@" \
        >>"$dir/$name.out" 2>>"$dir/$name.log" &
    pid[$name]=$!
    until_true "$name answers" status "$name"
}

status() { "$SKEIN" status --json --data-dir "$dir/$1" 2>/dev/null | tr -d ' \n'; }

# One line of the status for each node, as the asked node sees them.
nodes() { status "$1" | sed 's/.*"nodes":\[//' | tr '{' '\n' | grep '"name"'; }

# The value of KEY (a text) that the node reports of itself.
field() { # NAME KEY
    nodes "$1" | grep "\"name\":\"$1\"" | sed "s/.*\"$2\":\"\([^\"]*\)\".*/\1/"
}

writer() { nodes "$1" | grep '"is_writer":true' | sed 's/.*"name":"\([^"]*\)".*/\1/'; }

has_writer() { [ -n "$(writer "$1")" ]; }

voters_up() { # NAME HOW_MANY
    [ "$(nodes "$1" | grep '"role":"voter"' | grep -c '"state":"up"')" = "$2" ]
}

points=0
write() { # NAME HOW_MANY
    local to=$((points + $2))
    seq "$((points + 1))" "$to" | sed 's/.*/cpu,host=h usage=& &000000000/' |
        "$SKEIN" write -d home --data-dir "$dir/$1" - >/dev/null
    points=$to
    echo "wrote $2 at $1"
}

ask() { # NAME CONSISTENCY
    "$SKEIN" query -d home --format csv --consistency "$2" --data-dir "$dir/$1" \
        'SELECT count(*) AS n FROM cpu' 2>/dev/null | tail -n 1 | tr -d '\r'
}

counts() { [ "$(ask "$1" "$3")" = "$2" ]; } # NAME WANTED CONSISTENCY

count() { # NAME WANTED
    local found
    found=$(ask "$1" linearizable)
    echo "$1 counts $found"
    [ "$found" = "$2" ] || fail "$1 counts $found points, not $2"
}

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
        printf '\nthree_nodes: %s\n' "${failure:-a command failed}" >&2
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
