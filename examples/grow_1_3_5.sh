#!/usr/bin/env bash
# One node becomes three becomes five, while a client writes on. Five lose two and go on.
#
#     cargo build && examples/grow_1_3_5.sh
. "$(dirname "$0")/cluster.sh"

main() {
    say "one node"
    start a
    until_true "a has a writer" has_writer a
    write a 100
    feed a
    voters=$(token a voter 4)
    seed=$(field a mesh_addr)

    say "three"
    start b --join "@$voters" --seed "$seed"
    start c --join "@$voters" --seed "$seed"
    until_true "three voters are up" up a voter 3
    has_all c

    say "a fourth waits for a fifth: four tolerate no more losses than three"
    start d --join "@$voters" --seed "$seed"
    until_true "d is a member and has the data" counts_at_least d 100
    up a voter 3 || fail "a fourth voter was promoted alone"
    say "five"
    start e --join "@$voters" --seed "$seed"
    until_true "five voters are up" up a voter 5
    fed 3
    "$SKEIN" status --data-dir "$dir/e"
    fed_and_found a e

    say "two are killed, the writer among them"
    victim=$(writer a)
    other=$(printf '%s\n' a b c d e | grep -v "$victim" | head -n 1)
    rest=$(printf '%s\n' a b c d e | grep -v -e "$victim" -e "$other")
    stop "$victim" KILL
    stop "$other" KILL
    for name in $rest; do
        write "$name" 10
    done
    for name in $rest; do
        until_true "$name has all" home_counts "$name" "$points"
        echo "$name has the $points points of this script"
    done
}

# Points of this script, not of the client.
own() { # NAME
    "$SKEIN" query -d home --format csv --consistency linearizable --data-dir "$dir/$1" \
        "SELECT count(*) AS n FROM cpu WHERE host = 'h'" 2>/dev/null | tail -n 1 | tr -d '\r'
}

home_counts() { [ "$(own "$1")" = "$2" ]; }

counts_at_least() { [ "$(own "$1")" -ge "$2" ]; }

has_all() { # NAME
    until_true "$1 has what was written before it was there" counts_at_least "$1" 100
    echo "$1 has what was written before it was there"
}

run
