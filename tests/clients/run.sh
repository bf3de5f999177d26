#!/usr/bin/env bash
# The clients people have, against three processes of the program: each writes and reads back every
# type at nodes that do not write, once more while the writer is killed, and once more over TLS with
# API tokens, at a reader and at a gateway.
#
#     cargo build && tests/clients/run.sh
#
# $SKEIN names another program than target/debug/skein. Clients come from PyPI and npm at the
# versions of requirements.txt and package-lock.json and are kept below target/clients.
set -euo pipefail
# What the caller names relative to where it stands is resolved before this goes elsewhere.
root=$(cd "$(dirname "$0")/../.." && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
home=$target/clients
SKEIN=$(realpath -m "${SKEIN:-$target/debug/skein}")
cd "$root/tests/clients"
export SKEIN
unset SKEIN_URL SKEIN_DATA_DIR SKEIN_API_TOKEN PYTHONPATH

# The pinned versions want this Python.
if ! python3 -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo 'SKIPPED: clients: needs python3 of 3.11 or later with venv'
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
if command -v npm >/dev/null && ! cmp -s package-lock.json "$home/node/package-lock.json"; then
    rm -rf "$home/node"
    mkdir -p "$home/node"
    cp package.json package-lock.json "$home/node/"
    (cd "$home/node" && npm ci --silent --no-audit --no-fund --ignore-scripts) || {
        rm -rf "$home/node"
        exit 1
    }
fi
CLIENTS_NODE=$home/node
export CLIENTS_NODE
# It logs each certificate that it does not trust, and some are not to be trusted.
export GRPC_VERBOSITY=ERROR

exec "$home/venv/bin/python" -B main.py
