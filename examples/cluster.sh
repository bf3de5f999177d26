# What the scripts of this directory share: nodes on this machine, without mDNS, on free ports, below a
# temporary directory, and questions to them. To be sourced by a script that defines `main` and ends with
# `run`; nothing is left behind.
#
# $SKEIN names another program than target/debug/skein.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SKEIN=${SKEIN:-${CARGO_TARGET_DIR:-target}/debug/skein}
unset SKEIN_URL SKEIN_DATA_DIR SKEIN_API_TOKEN

dir=$(mktemp -d)
# Process of each node, and what stands before its command line (a network namespace, variables).
declare -A pid=() before=()
# Other processes that end with the script.
others=()
# Points written so far; each has its number as time, so that all can be counted.
points=0
failure=

run() {
    trap 'clean_up $?' EXIT
    main
    printf '\n%s: passed in %d s\n' "$(basename "$0" .sh)" "$SECONDS"
}

# What this machine or user cannot do.
skip() {
    printf 'SKIPPED: %s: %s\n' "$(basename "$0" .sh)" "$*"
    trap - EXIT
    rm -rf "$dir"
    exit 0
}

say() { printf '\n== %s\n' "$*"; }

fail() {
    failure=$*
    exit 1
}

# --- nodes ---

launch() { # NAME FLAGS..
    local name=$1
    shift
    # shellcheck disable=SC2086
    ${before[$name]:-} "$SKEIN" start --data-dir "$dir/$name" --name "$name" --http 127.0.0.1:0 "$@" \
        >>"$dir/$name.out" 2>>"$dir/$name.log" &
    pid[$name]=$!
}

start() { # NAME FLAGS..
    local name=$1
    shift
    launch "$name" --mesh "${mesh[$name]:-127.0.0.1:0}" --no-mdns "$@"
    until_true "$name answers" answers "$name"
}
declare -A mesh=()

# Or has ended, and then it never will.
answers() {
    kill -0 "${pid[$1]}" 2>/dev/null || fail "$1 has ended"
    status "$1"
}

stop() { # NAME SIGNAL
    kill "-$2" "${pid[$1]}"
    wait "${pid[$1]}" 2>/dev/null || true
    unset "pid[$1]"
}

# A token of that role, made at a node, into a file whose name is printed.
token() { # NAME ROLE USES
    local file
    file=$(mktemp "$dir/token.XXXXXX")
    "$SKEIN" token create --role "$2" --uses "$3" --data-dir "$dir/$1" >"$file"
    echo "$file"
}

# One node makes the cluster, the others join it.
three() { # FIRST SECOND THIRD
    start "$1"
    until_true "$1 has a writer" has_writer "$1"
    local voters seed
    voters=$(token "$1" voter 2)
    seed=$(field "$1" mesh_addr)
    start "$2" --join "@$voters" --seed "$seed"
    start "$3" --join "@$voters" --seed "$seed"
    until_true "three voters are up" up "$1" voter 3
}

# --- questions ---

status() { "$SKEIN" status --json --data-dir "$dir/$1" 2>/dev/null | tr -d ' \n'; }

# One line of the status for each node, as the asked node sees them.
nodes() { status "$1" | sed 's/.*"nodes":\[//' | tr '{' '\n' | grep '"name"'; }

# The value of KEY (a text) that the node reports of itself.
field() { # NAME KEY
    nodes "$1" | grep "\"name\":\"$1\"" | sed "s/.*\"$2\":\"\([^\"]*\)\".*/\1/"
}

writer() { nodes "$1" | grep '"is_writer":true' | sed 's/.*"name":"\([^"]*\)".*/\1/'; }

has_writer() { [ -n "$(writer "$1")" ]; }

# A writer other than that one.
another_writes() { # NAME OTHER_THAN
    local now
    now=$(writer "$1")
    [ -n "$now" ] && [ "$now" != "$2" ]
}

up() { # NAME ROLE HOW_MANY
    [ "$(nodes "$1" | grep "\"role\":\"$2\"" | grep -c '"state":"up"')" = "$3" ]
}

knows() { [ "$(nodes "$1" | wc -l)" = "$2" ]; } # NAME HOW_MANY

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

now_ms() { echo $(($(date +%s%N) / 1000000)); }

until_true() { # WHAT COMMAND..
    local what=$1 deadline=$((SECONDS + 60))
    shift
    until "$@" >/dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || fail "after 60 s still not: $what"
        sleep 0.1
    done
}

# --- a client that never stops ---

# Writes a point at a time, at the node that took the last one or else at the next that takes it, until told
# to stop; keeps the numbers that were acknowledged, and how often no node took one.
feed() { # NAMES..
    (
        n=1000000 at=$1
        while [ ! -e "$dir/feed.stop" ]; do
            n=$((n + 1))
            for name in "$at" "$@" none; do
                if [ "$name" = none ]; then
                    echo "$n" >>"$dir/feed.failed"
                elif echo "cpu,host=feed usage=$n ${n}000000000" |
                    timeout 5 "$SKEIN" write -d home --data-dir "$dir/$name" - >/dev/null 2>>"$dir/feed.log"; then
                    echo "$n" >>"$dir/feed.acked"
                    at=$name
                    break
                fi
            done
        done
    ) &
    others+=($!)
    until_true "the first point of the client is acknowledged" test -s "$dir/feed.acked"
}

# At least so many more points of the client have been acknowledged.
fed() { # HOW_MANY
    local wanted=$(($(wc -l <"$dir/feed.acked") + $1))
    until_true "$1 more points are acknowledged" eval "[ \$(wc -l <'$dir/feed.acked') -ge $wanted ]"
}

# Stops the client; no write may have failed, and each acknowledged point must be found at each node.
fed_and_found() { # NAMES..
    local acked failed=0
    touch "$dir/feed.stop"
    wait "${others[@]}"
    others=()
    acked=$(wc -l <"$dir/feed.acked")
    [ ! -e "$dir/feed.failed" ] || failed=$(wc -l <"$dir/feed.failed")
    for name in "$@"; do
        "$SKEIN" query -d home --format csv --consistency linearizable --data-dir "$dir/$name" \
            "SELECT CAST(usage AS BIGINT) AS n FROM cpu WHERE host = 'feed'" | tr -d '\r' | sort >"$dir/found"
        missing=$(sort "$dir/feed.acked" | comm -23 - "$dir/found" | wc -l)
        echo "$name: of $acked points acknowledged to the client $missing are missing; $failed writes failed"
        [ "$missing" = 0 ] || fail "$missing acknowledged points are missing at $name"
    done
    [ "$failed" = 0 ] || fail "$failed writes failed: $(tail -n 3 "$dir/feed.log")"
    rm -f "$dir"/feed.*
}

clean_up() { # EXIT_STATUS
    trap - EXIT
    if [ "$1" -ne 0 ]; then
        tail -n 25 "$dir"/*.log >&2 || true
        printf '\n%s: %s\n' "$(basename "$0" .sh)" "${failure:-a command failed}" >&2
    fi
    for process in "${pid[@]}" "${others[@]}"; do
        # What was frozen would not hear it.
        kill -CONT "$process" 2>/dev/null || true
        kill -TERM "$process" 2>/dev/null || true
    done
    for _ in $(seq 100); do
        [ -n "$(jobs -pr)" ] || break
        sleep 0.1
    done
    for process in "${pid[@]}" "${others[@]}"; do
        kill -KILL "$process" 2>/dev/null || true
    done
    wait 2>/dev/null || true
    ! declare -F after >/dev/null || after
    rm -rf "$dir"
    exit "$1"
}
