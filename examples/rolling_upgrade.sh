#!/usr/bin/env bash
# Node by node to another version while a client writes on: drained, stopped, started as the new program,
# undrained; no write fails and none is lost. Then the upgrade is finalised, and the old version refused.
#
#     cargo build && SKEIN_OLD=/path/to/skein-of-before examples/rolling_upgrade.sh
#
# Without $SKEIN_OLD the old version is this program without what was added last, if it was built with
# `--features testing`; without that, both are the same: that shows the way, not a mixed cluster.
. "$(dirname "$0")/cluster.sh"

new=$SKEIN
old=${SKEIN_OLD:-$SKEIN}
# The bits of docs/wire.md, "Versions".
without=
[ -n "${SKEIN_OLD:-}" ] || without='env SKEIN_WITHOUT_FEATURES=10'

says() { # NAME WORDS
    "$new" status --data-dir "$dir/$1" | grep -q "$2"
}

main() {
    say "three voters of $("$old" --version), the old one"
    for name in a b c; do before[$name]=$without; done
    SKEIN=$old
    three a b c
    SKEIN=$new
    feed a b c
    fed 5
    for name in a b c; do
        say "$name: drain, stop, start as $("$new" --version)"
        # A version that does not know draining refuses it: SIGTERM hands over too.
        until_true "$name is drained, or draining is not known everywhere" drained "$name"
        stop "$name" TERM
        fed 2
        before[$name]=
        start "$name"
        until_true "three voters are up" up "$name" voter 3
        fed 2
    done
    for name in a b c; do
        until_true "$name is undrained" "$new" node undrain "$name" --data-dir "$dir/$name"
    done

    local mixed=
    until_true 'a knows what every member knows' says a '^features\|skein finalise'
    if says a 'skein finalise'; then mixed=yes; fi
    say 'finalise: from now on nobody goes back'
    until_true 'the upgrade is finalised' "$new" finalise --data-dir "$dir/a"
    "$new" finalise --data-dir "$dir/b"
    if [ -n "$mixed" ]; then
        stop c TERM
        before[c]=$without
        SKEIN=$old
        launch c --mesh 127.0.0.1:0 --no-mdns
        SKEIN=$new
        until_true 'c ends in the old version' ended c
        tail -n 1 "$dir/c.log"
        before[c]=
        start c
        until_true 'three voters are up' up c voter 3
    fi
    fed_and_found a b c
}

drained() {
    local why
    why=$("$new" node drain "$1" --data-dir "$dir/$1" 2>&1) && return
    grep -q 'Upgrade every member first' <<<"$why"
}

ended() { ! kill -0 "${pid[$1]}" 2>/dev/null; }

run
