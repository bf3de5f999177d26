#!/usr/bin/env bash
# Makes a CA that a new cluster can be founded with, into an empty directory:
#
#     certs/own-ca.sh DIR [YEARS]
#     skein start --new-cluster --ca-cert DIR/ca.crt --ca-key DIR/ca.key
#
# Needs OpenSSL 3. Keep DIR/ca.key off the nodes once the cluster stands.
set -euo pipefail
umask 077

[ $# -ge 1 ] || { echo "usage: own-ca.sh DIR [YEARS]" >&2; exit 2; }
dir=$1 years=${2:-10}
mkdir -p "$dir"
[ -z "$(ls -A "$dir")" ] || { echo "own-ca.sh: $dir is not empty" >&2; exit 1; }

openssl genpkey -algorithm ed25519 -out "$dir/ca.key"
openssl req -new -x509 -key "$dir/ca.key" -out "$dir/ca.crt" -days $((years * 365)) -subj "/CN=skein" \
    -config /dev/stdin <<-CONF
	[req]
	distinguished_name = dn
	x509_extensions = ca
	[dn]
	[ca]
	basicConstraints = critical, CA:TRUE, pathlen:0
	keyUsage = critical, keyCertSign, cRLSign
	subjectKeyIdentifier = hash
CONF
echo "fingerprint $(openssl x509 -in "$dir/ca.crt" -outform DER | openssl dgst -sha256 -r | cut -d' ' -f1)"
