#!/usr/bin/env bash
# Plants every bug of src/testing/mutant.rs, one at a time, and runs whoever must find it. Prints who
# did; exits 1 if a bug was not found, or if a test fails without one.
#
#     tests/planted_bugs.sh
set -euo pipefail
cd "$(dirname "$0")/.."

cargo_test() { cargo test --quiet --no-default-features --features testing "$@"; }

found=$(cargo_test --test sim planted_bugs_are_caught -- --nocapture | grep -E '^[a-z_]+: (seed|test) ')
grep ': seed ' <<<"$found"
missed=0
while read -r name path; do
    if ! cargo_test --lib -- --exact "$path" >/dev/null 2>&1; then
        echo "$name: $path fails without it" >&2 && missed=1
    elif SKEIN_MUTANT=$name cargo_test --lib -- --exact "$path" >/dev/null 2>&1; then
        echo "$name: not found by $path" >&2 && missed=1
    else
        echo "$name: $path"
    fi
done < <(sed -n 's/^\([a-z_]*\): test \(.*\)/\1 \2/p' <<<"$found")
exit $missed
