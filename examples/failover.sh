#!/usr/bin/env bash
# The writer is killed, frozen and stopped, one after the other, while a client writes on: how long that
# takes, and that nothing acknowledged is lost and no write fails.
#
#     cargo build && examples/failover.sh
. "$(dirname "$0")/cluster.sh"

main() {
    say "three voters, and a client that writes point after point"
    three a b c
    feed a b c
    fed 5

    first=$(writer a)
    say "$first writes: kill -9"
    stop "$first" KILL
    moved "$first" $(printf '%s\n' a b c | grep -v "$first")
    say "$first comes back"
    start "$first"
    until_true "three voters are up" up "$first" voter 3

    second=$(writer "$first")
    say "$second writes: it is frozen (SIGSTOP), which no socket tells"
    kill -STOP "${pid[$second]}"
    moved "$second" $(printf '%s\n' a b c | grep -v "$second")
    say "$second goes on, and finds that it is no writer any more"
    kill -CONT "${pid[$second]}"
    until_true "$second knows who writes" another_writes "$second" "$second"
    until_true "three voters are up" up "$second" voter 3

    third=$(writer a)
    say "$third writes: it is stopped (SIGTERM), hands over and goes"
    began=$(now_ms)
    stop "$third" TERM
    echo "it was gone after $(($(now_ms) - began)) ms"
    moved "$third" $(printf '%s\n' a b c | grep -v "$third")
    start "$third"
    until_true "three voters are up" up "$third" voter 3
    fed_and_found a b c
}

# Waits for another writer and for writes to go on; says how long.
moved() { # WHO OTHERS..
    local who=$1 began
    began=$(now_ms)
    shift
    until_true "another node writes" another_writes "$1" "$who"
    echo "$(writer "$1") writes; seen after $(($(now_ms) - began)) ms"
    fed 3
}

run
