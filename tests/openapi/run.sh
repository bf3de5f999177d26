#!/usr/bin/env bash
# What the node says of its API in OpenAPI against what it answers: schemathesis makes requests from the
# description, good and bad ones, and looks whether status, type, headers and body of each answer are in it.
#
#     cargo build && tests/openapi/run.sh
#
# $SKEIN names another program than target/debug/skein. schemathesis comes from PyPI, at the version in
# requirements.txt, and is kept below target/openapi.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
home=$target/openapi
SKEIN=$(realpath -m "${SKEIN:-$target/debug/skein}")
cd "$root/tests/openapi"
unset SKEIN_URL SKEIN_DATA_DIR SKEIN_API_TOKEN PYTHONPATH

if ! python3 -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo 'SKIPPED: openapi: needs python3 of 3.11 or later with venv'
    exit 0
fi
if ! cmp -s requirements.txt "$home/requirements.txt"; then
    rm -rf "$home/venv"
    mkdir -p "$home"
    python3 -m venv "$home/venv"
    # Wheels only: what is installed runs nothing of its own.
    "$home/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r requirements.txt
    cp requirements.txt "$home/requirements.txt"
fi

work=$(mktemp -d)
node=
cleanup() {
    [ -z "$node" ] || kill "$node" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# Short waits: what waits for a position that nobody writes is answered soon.
SKEIN_HTTP_QUERY_TIMEOUT=1s "$SKEIN" start --data-dir "$work/node" --new-cluster --no-mdns \
    --mesh 127.0.0.1:0 --http 127.0.0.1:0 >"$work/out" 2>"$work/log" &
node=$!
for _ in $(seq 600); do
    grep -q '^ready ' "$work/out" && break
    kill -0 "$node" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
url=$(sed -n 's/^ready .*http=\([^ ]*\).*/\1/p' "$work/out")
# Admin routes ask for a token on loopback too. It opens this node only, which is gone in a minute.
token=$("$SKEIN" auth create --scope admin --data-dir "$work/node")

# Events go on for ten minutes, so nobody waits for their end.
# It leaves files where it runs.
here=$PWD
cd "$work"
if ! PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$home/venv/bin/schemathesis" --config-file "$here/schemathesis.toml" run "$url/api/v1/openapi.json" \
    --header "Authorization: Bearer $token" --exclude-path /api/v1/cluster/events --workers 2 \
    --request-timeout 30 --no-color >"$work/report" 2>&1; then
    cat "$work/report"
    echo '---- end of the log of the node'
    tail -20 "$work/log"
    exit 1
fi
kill -0 "$node" || { echo 'the node has ended' >&2; exit 1; }
sed -n '/^API Operations:/,$p' "$work/report" | grep -E 'Selected|Tested|generated' || true
