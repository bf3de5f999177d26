#!/usr/bin/env bash
# One voter takes the writes, two readers answer queries, and clients know only a gateway, which holds no
# data and no say. Readers come and go behind it.
#
#     cargo build && examples/gateway_and_readers.sh
. "$(dirname "$0")/cluster.sh"

main() {
    say "a voter, two readers, a gateway: each role has its token"
    start v
    until_true "v has a writer" has_writer v
    seed=$(field v mesh_addr)
    readers=$(token v reader 2)
    start r1 --join "@$readers" --seed "$seed"
    start r2 --join "@$readers" --seed "$seed"
    start g --join "@$(token v gateway 1)" --seed "$seed"
    until_true "two readers are up" up v reader 2
    "$SKEIN" status --data-dir "$dir/g"

    say "writes and queries at the gateway"
    write g 100
    count g 100
    answered_by | sort | uniq -c
    ! asks v || fail "the voter was asked although there are readers"
    [ ! -e "$dir/g/engine" ] || fail "the gateway has an engine"

    say "a reader is killed: the gateway asks the other; writes do not notice"
    stop r1 KILL
    write g 100
    count g 200
    say "both are gone: the voter answers"
    stop r2 KILL
    until_true "the voter answers" asks v
    count g 200
    say "a reader is back"
    start r1
    until_true "r1 has all" counts r1 200 local
    until_true "r1 answers" asks r1
    count r1 200
}

# Ids of the nodes that have answered eight queries.
answered_by() {
    local url
    url=$(sed -n 's/^ready .*http=\([^ ]*\).*/\1/p' "$dir/g.out" | tail -n 1)
    for _ in 1 2 3 4 5 6 7 8; do
        curl -sS -D - -o "$dir/answer" -G "$url/api/v3/query_sql" --data-urlencode db=home \
            --data-urlencode 'q=SELECT count(*) FROM cpu' | tr -d '\r' | sed -n 's/^x-skein-node: //ip'
    done
}

asks() { answered_by | grep "$(field "$1" id)" >/dev/null; } # NAME

command -v curl >/dev/null || skip "needs curl"
run
