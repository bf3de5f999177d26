#!/usr/bin/env bash
# What deploy/ holds against tools that know its formats, and against the program that it starts.
#
#     cargo build && tests/deploy/run.sh
#
# $SKEIN names another program than target/debug/skein. Schemas and linters come from PyPI, at the versions
# in requirements.txt; promtool from the distribution's archive. What is not to be had is said to be SKIPPED.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
home=$target/deploy
export SKEIN
SKEIN=$(realpath -m "${SKEIN:-$target/debug/skein}")
cd "$root"
unset SKEIN_URL SKEIN_DATA_DIR SKEIN_API_TOKEN PYTHONPATH
mkdir -p "$home"

if ! python3 -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo 'SKIPPED: deploy: needs python3 of 3.11 or later with venv'
    exit 0
fi
if ! cmp -s tests/deploy/requirements.txt "$home/requirements.txt"; then
    rm -rf "$home/venv"
    python3 -m venv "$home/venv"
    # Wheels only: what is installed runs nothing of its own.
    "$home/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r tests/deploy/requirements.txt
    cp tests/deploy/requirements.txt "$home/requirements.txt"
fi

# The package would bring a server that starts; its checker alone is enough.
if ! command -v promtool >/dev/null && [ ! -x "$home/usr/bin/promtool" ] && command -v apt-get >/dev/null; then
    (cd "$home" && apt-get download -qq prometheus >/dev/null 2>&1 && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb) ||
        true
fi
PATH=$home/venv/bin:$home/usr/bin:$PATH exec "$home/venv/bin/python" -B tests/deploy/check.py
