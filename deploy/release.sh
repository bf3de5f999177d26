#!/usr/bin/env bash
# Makes what is handed out: one archive for this machine's kind with the stripped program, manual, shell completions,
# the systemd unit, licences; and its checksum beside it.
#
#     deploy/release.sh [DIRECTORY]        (dist by default)
#
# The program is built from the lock file. $SKEIN names one that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-dist}")
if [ -z "${SKEIN:-}" ]; then
    cargo build --release --locked --bin skein
    SKEIN=${CARGO_TARGET_DIR:-target}/release/skein
fi

version=$("$SKEIN" --version)
version=${version#skein }
kind=$(uname -m)-$(uname -s | tr '[:upper:]' '[:lower:]')
name=skein-$version-$kind
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/$name
mkdir -p "$tree/bin" "$tree/completions" "$out"

install -m 0755 "$SKEIN" "$tree/bin/skein"
# A release build is stripped already; one that is not is made so.
strip --strip-all "$tree/bin/skein"
"$tree/bin/skein" completions bash >"$tree/completions/skein.bash"
"$tree/bin/skein" completions zsh >"$tree/completions/_skein"
"$tree/bin/skein" completions fish >"$tree/completions/skein.fish"
"$tree/bin/skein" man "$tree/man/man1"
"$tree/bin/skein" service print >"$tree/skein.service"
install -m 0644 README.md CHANGELOG.md SECURITY.md LICENSE-MIT LICENSE-APACHE "$tree/"

# The same input gives the same archive: names sorted, nobody's, as old as the commit.
when=$(git log -1 --format=%ct 2>/dev/null || echo 0)
tar --sort=name --mtime="@$when" --owner=0 --group=0 --numeric-owner -C "$work" -cf - "$name" |
    gzip -n -"${SKEIN_GZIP:-9}" >"$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >SHA256SUMS)
echo "$name.tar.gz"
