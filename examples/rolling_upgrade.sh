#!/usr/bin/env bash
# Node by node to another version while a client writes on: drained, stopped, started as the new program,
# undrained; no write fails and none is lost.
#
#     cargo build && SKEIN_OLD=/path/to/skein-of-before examples/rolling_upgrade.sh
#
# Without $SKEIN_OLD both are the same program: that shows the way, not a mixed cluster.
. "$(dirname "$0")/cluster.sh"

new=$SKEIN
old=${SKEIN_OLD:-$SKEIN}

main() {
    say "three voters of $("$old" --version)"
    SKEIN=$old
    three a b c
    SKEIN=$new
    feed a b c
    fed 5
    for name in a b c; do
        say "$name: drain, stop, start as $("$new" --version)"
        until_true "$name is drained" "$new" node drain "$name" --data-dir "$dir/$name"
        stop "$name" TERM
        fed 2
        start "$name"
        until_true "$name is undrained" "$new" node undrain "$name" --data-dir "$dir/$name"
        until_true "three voters are up" up "$name" voter 3
        fed 2
    done
    fed_and_found a b c
}

run
