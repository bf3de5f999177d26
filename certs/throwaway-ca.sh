#!/usr/bin/env bash
# Makes a throw-away CA and one node certificate in the form a Skein cluster gives its nodes, and
# checks them. For reading and for tests: a running cluster makes its own CA and never uses this
# one. Everything goes into a temporary directory that is removed at the end, or into an empty
# directory that you name:
#
#     certs/throwaway-ca.sh [DIR]
set -euo pipefail
umask 077

fail() { echo "throwaway-ca: $*" >&2; exit 1; }

if [ $# -gt 0 ]; then
    dir=$1
    mkdir -p "$dir"
    [ -z "$(ls -A "$dir")" ] || fail "$dir is not empty"
else
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
fi
cd "$dir"

# Lower-case base32 without padding, as ids are written everywhere.
base32_id() { base32 | tr -d '=\n' | tr 'A-Z' 'a-z'; }
# A node's id: the first 16 bytes of the SHA-256 of its public key (SubjectPublicKeyInfo, DER).
node_id() { openssl pkey -in "$1" -pubout -outform DER | openssl dgst -sha256 -binary | head -c 16 | base32_id; }
utc() { date -u -d "$1" +%Y%m%d%H%M%SZ; }

cluster=$(openssl rand 16 | base32_id)

# An authority: 10 years, may sign node certificates and nothing below them.
make_ca() { # NAME
    openssl genpkey -algorithm ed25519 -out "$1.key"
    openssl req -new -x509 -key "$1.key" -out "$1.crt" -days 3650 -subj "/CN=skein $cluster" -config /dev/stdin <<-CONF
	[req]
	distinguished_name = dn
	x509_extensions = ca
	[dn]
	[ca]
	basicConstraints = critical, CA:TRUE, pathlen:0
	keyUsage = critical, keyCertSign, cRLSign
	subjectKeyIdentifier = hash
	CONF
}

make_ca ca
make_ca other-ca

# A node: 30 days, backdated an hour for clocks that are behind, good for both ends of a
# connection. What the node asks for in its request does not matter; the authority decides.
openssl genpkey -algorithm ed25519 -out node.key
node=$(node_id node.key)
openssl req -new -key node.key -subj "/CN=whatever it likes" -out node.csr
cat > sign.conf <<-CONF
	[ca]
	default_ca = skein
	[skein]
	database = issued
	rand_serial = yes
	new_certs_dir = .
	default_md = default
	policy = any
	x509_extensions = node
	email_in_dn = no
	[any]
	commonName = supplied
	[node]
	basicConstraints = critical, CA:FALSE
	keyUsage = critical, digitalSignature
	extendedKeyUsage = serverAuth, clientAuth
	authorityKeyIdentifier = keyid
	subjectAltName = DNS:mesh.internal, URI:skein://$cluster/$node
CONF
: > issued
openssl ca -batch -notext -config sign.conf -cert ca.crt -keyfile ca.key -in node.csr -out node.crt \
    -subj "/CN=$node" -startdate "$(utc '1 hour ago')" -enddate "$(utc '30 days')" 2>sign.log ||
    fail "signing failed: $(cat sign.log)"
rm -f issued* sign.* ./*.pem node.csr

# What a peer checks.
says() { openssl x509 -in node.crt -noout "$@"; }
for purpose in sslserver sslclient; do
    openssl verify -CAfile ca.crt -purpose "$purpose" node.crt >/dev/null || fail "not good for $purpose"
    if openssl verify -CAfile other-ca.crt -purpose "$purpose" node.crt >/dev/null 2>&1; then
        fail "another authority's certificate passes"
    fi
done
says -ext subjectAltName | grep -qF "URI:skein://$cluster/$node" || fail "the URI is missing"
[ "$(openssl x509 -in node.crt -noout -pubkey)" = "$(openssl pkey -in node.key -pubout)" ] || fail "not the node's key"
says -checkend $((29 * 86400)) >/dev/null || fail "expires too early"
if says -checkend $((31 * 86400)) >/dev/null; then fail "lasts too long"; fi
since=$(($(date +%s) - $(date -d "$(says -startdate | cut -d= -f2)" +%s)))
[ "$since" -ge 3600 ] && [ "$since" -lt 3900 ] || fail "backdated by $since s, not by an hour"
# A node cannot sign for others.
if openssl x509 -req -in <(openssl req -new -key other-ca.key -subj /CN=x) -CA node.crt -CAkey node.key \
    -CAcreateserial -out forged.crt -days 1 2>/dev/null &&
    openssl verify -CAfile ca.crt -untrusted node.crt forged.crt >/dev/null 2>&1; then
    fail "a node's signature passes for the authority's"
fi
rm -f forged.crt ./*.srl other-ca.*

echo "cluster     $cluster"
echo "node        $node"
echo "fingerprint $(openssl x509 -in ca.crt -outform DER | openssl dgst -sha256 -r | cut -d' ' -f1)"
says -startdate -enddate | sed 's/=/   /'
if [ $# -gt 0 ]; then echo "files       $dir"; else echo "verified; nothing is kept"; fi
