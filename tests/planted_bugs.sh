#!/usr/bin/env bash
# Plants bugs of src/testing/mutant.rs, one at a time, and runs whoever must find each. Prints a row per
# bug: who found it, and by which check or assertion. Exits 1 if a bug was not found, or if a test of the
# library fails without one.
#
#     tests/planted_bugs.sh                  all of them
#     tests/planted_bugs.sh NAME...          these
#     tests/planted_bugs.sh --list           what there is, and who must find it
set -euo pipefail
cd "$(dirname "$0")/.."

cargo_test() { cargo test --locked --quiet --no-default-features --features testing "$@"; }

# NAME sim WITHIN FAULTS, or NAME test PATH.
list=$(cargo_test --test sim planted_bugs_are_listed -- --nocapture | sed -n 's/^planted //p')
if [ "${1:-}" = --list ]; then
    printf '%s\n' "$list"
    exit
fi

# The first words of whoever failed.
why() { grep -A1 -m1 'panicked at' <<<"$1" | tail -n 1 | cut -c 1-120; }

by_simulation() { # NAME
    local out
    if out=$(SKEIN_MUTANT=$1 cargo_test --test sim planted_bugs_are_caught -- --nocapture 2>&1); then
        sed -n "s/.*\b$1: \(seed .*\)/\1/p" <<<"$out" | cut -c 1-160
    else
        printf 'NOT FOUND: %s\n' "$(why "$out")"
        return 1
    fi
}

by_test() { # NAME PATH
    local out
    if ! out=$(cargo_test --lib -- --exact "$2" 2>&1) || ! grep -q '^test result: ok. 1 passed' <<<"$out"; then
        printf 'NOT FOUND: %s does not pass without it\n' "$2"
        return 1
    elif out=$(SKEIN_MUTANT=$1 cargo_test --lib -- --exact "$2" 2>&1); then
        printf 'NOT FOUND: %s passes with it\n' "$2"
        return 1
    else
        printf '%s: %s\n' "$2" "$(why "$out")"
    fi
}

names=("$@")
[ $# -gt 0 ] || mapfile -t names < <(cut -d ' ' -f 1 <<<"$list")
missed=0
for name in "${names[@]}"; do
    read -r _ kind path _ < <(grep "^$name " <<<"$list" || echo "$name unknown")
    case $kind in
        sim) row=$(by_simulation "$name") || missed=1 ;;
        test) row=$(by_test "$name" "$path") || missed=1 ;;
        *) row='NOT FOUND: there is no such planted bug' && missed=1 ;;
    esac
    printf '%-32s %s\n' "$name" "$row"
done
exit $missed
