#!/usr/bin/env bash
# The worst day: two of three voters are gone with their disks. What is left says what it knows, carries on
# alone with a word of its operator, and becomes three again. And when everything is gone there is a backup.
#
#     cargo build && examples/disaster_recovery.sh
. "$(dirname "$0")/cluster.sh"

main() {
    say "three voters, some points, and a backup while they run"
    three a b c
    write a 100
    write b 100
    count c 200
    "$SKEIN" backup --output "$dir/b.skein.tar" --data-dir "$dir/c"
    write c 50

    say "b and c burn down; a has no majority and takes no writes"
    stop b KILL
    stop c KILL
    rm -rf "$dir/b" "$dir/c"
    if echo 'mem,host=h used=1 1' | "$SKEIN" write -d home --data-dir "$dir/a" - 2>"$dir/refused"; then
        fail "a write was acknowledged without a majority"
    fi
    cat "$dir/refused"
    stop a TERM

    say "skein recover says what would be lost, and does nothing without a word"
    ! "$SKEIN" recover --data-dir "$dir/a" || fail "it recovered without being told to"
    "$SKEIN" recover --data-dir "$dir/a" --accept-loss >/dev/null
    start a
    until_true "a has a writer" has_writer a
    count a 250
    write a 50

    say "two new machines; the old members are taken out"
    voters=$(token a voter 2)
    seed=$(field a mesh_addr)
    "$SKEIN" node remove b --data-dir "$dir/a"
    "$SKEIN" node remove c --data-dir "$dir/a"
    start d --join "@$voters" --seed "$seed"
    start e --join "@$voters" --seed "$seed"
    until_true "three voters are up" up a voter 3
    count d 300
    count e 300

    say "everything is gone: a new cluster of the backup"
    for name in a d e; do
        stop "$name" KILL
        rm -rf "${dir:?}/$name"
    done
    "$SKEIN" backup verify "$dir/b.skein.tar"
    "$SKEIN" restore "$dir/b.skein.tar" --data-dir "$dir/f"
    start f --new-cluster
    until_true "f has a writer" has_writer f
    count f 200
    write f 10
    count f 210
}

run
