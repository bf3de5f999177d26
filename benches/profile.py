#!/usr/bin/env python3
"""Where a node's processor time goes while `skein bench` runs, by groups of symbols.

    CARGO_PROFILE_RELEASE_STRIP=none cargo build --release
    python3 benches/profile.py target/release/skein write --nodes 1 --ack local --seconds 12

Everything behind the program is given to `skein bench`. `perf` looks at one of its nodes (`--node n1`, which writes) once the load
is on, for `--look` seconds. A sample counts for the symbol it lies in, not for who called that. The shares are scaled to what the
bench says the node took per row, so `perf` itself is in all of them. Needs perf and root.
"""

import argparse
import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

# The first that fits, by the object a symbol is in (the kernel, the C library, the program) and by its name.
GROUPS = [
    ("kernel: scheduling, futexes, epoll, the rest", "kernel", r"task|sched|futex|epoll|wake|_lock|_unlock"),
    ("kernel: page cache, file system, block layer", "kernel", r"folio|filemap|ext4|jbd2|blk_|bio_|virtqueue|iowrite|virtio|writeback|dirty|iomap|xa[s_]_|mapping|vring|fsync|block_|submit_bh|get_page|copy_page"),
    ("kernel: sockets, UDP, TCP", "kernel", r"tcp|udp|sock|skb|inet|\bip_|ip6|net_|napi|dev_|\bsk_|nf_|eth_|loopback|csum|msg|_copy_to_iter|_copy_from_iter|softirq|gso|fib_|lookup_established|copy_user|bh_enable"),
    ("kernel: page faults, memory", "kernel", r"fault|pte|pmd|clear_page|alloc_pages|free_pages|vma|mmap|munmap|tlb|zap|rmqueue|lru|memcg|charge|mprotect|madvise|buddy|page_"),
    ("kernel: scheduling, futexes, epoll, the rest", "kernel", r""),
    ("malloc and free", "libc", r"malloc|free|calloc|realloc|memalign|tcache|unlink_chunk|lll_lock|sysmalloc|systrim|arena"),
    ("memcpy, memcmp, memset", "libc", r"mem(move|cpy|cmp|set|chr)"),
    ("libc, the rest", "libc", r""),
    ("parsers, columns included", "skein", r"columnar::ingest|fast_float|line_protocol|msgpack"),
    ("payload: encode, decode, schemas", "skein", r"columnar::batch|flatbuffers|arrow_ipc|columnar::schema|columnar::registry|run_utf8|from_utf8"),
    ("flush: zstd", "skein", r"ZSTD|HUF_|FSE_|HIST_|zstd"),
    ("flush: Parquet and sorting", "skein", r"parquet::|columnar::(flush|runs|merge|parquet|data_file)|thrift"),
    ("memtable", "skein", r"columnar::(memtable|state|latest|series|absorbed|mod)|arrow_(array|buffer|data|select|ord|cast)"),
    ("checksums and digests", "skein", r"crc32|sha2|sha256|sha512|block_data_order|xxhash|gxhash|ring_core"),
    ("QUIC and TLS", "skein", r"quinn|rustls|aes_|chacha|gcm|poly1305|aead"),
    ("HTTP", "skein", r"hyper|axum|tower|http::|httparse|skeinmesh::http|http_body"),
    ("log, replication, write path", "skein", r"skeinmesh::(wal|replication|write_path|raft|node|transport|protocol|disk)"),
    ("tokio and futures", "skein", r"tokio|futures|mio::"),
    ("the rest", "", r""),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", default="n1", help="the node that is looked at")
    parser.add_argument("--after", type=float, default=4, help="seconds from the start of the bench")
    parser.add_argument("--look", type=float, default=5, help="seconds")
    parser.add_argument("--rest", action="store_true", help="the largest symbols of each group, too")
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("bench", nargs=argparse.REMAINDER, help="what `skein bench` is given")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as home:
        data = f"{home}/perf.data"
        command = [given.program, "bench", *given.bench, "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as bench:
            time.sleep(given.after)
            record = ["perf", "record", "-q", "-F", "1999", "-o", data, "-p", str(node(bench.pid, given.node))]
            subprocess.run([*record, "--", "sleep", str(given.look)], check=True, stderr=subprocess.DEVNULL)
            said = json.loads(bench.communicate()[0])
        took = next(one["ns_per_row"] for one in said["writer"]["cpu"] if one["process"] == given.node)
        groups = by_group(symbols(data))
    show(groups, took, given.rest)


def node(bench, name):
    """The process of that node, a child of the bench."""
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int(place.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
            words = place.joinpath("cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == bench and b"--name" in words and words[words.index(b"--name") + 1] == name.encode():
            return int(place.name)
    sys.exit(f"the bench has no node {name}: is it over, or not there yet (--after)?")


def symbols(data):
    """Object, symbol and share of each symbol."""
    report = ["perf", "report", "-i", data, "--no-children", "--no-inline", "-g", "none", "--stdio", "-F", "overhead,dso,symbol", "-t", "\t"]
    lines = subprocess.run(report, check=True, capture_output=True, text=True).stdout.splitlines()
    for line in lines:
        parts = line.split("\t")
        if len(parts) == 3 and parts[0].strip().endswith("%"):
            yield parts[1].strip(), parts[2].strip()[4:], float(parts[0].strip()[:-1]) / 100


def by_group(found):
    groups = {name: collections.Counter() for name, _, _ in GROUPS}
    for where, symbol, share in found:
        place = "kernel" if where.startswith("[") else "libc" if where.startswith(("libc", "libm")) else "skein"
        name = next(name for name, inside, fits in GROUPS if inside in ("", place) and re.search(fits, symbol))
        groups[name][symbol] += share
    return groups


def show(groups, took, rest):
    width = max(map(len, groups))
    for name, held in sorted(groups.items(), key=lambda one: -one[1].total()):
        print(f"{name:<{width}}  {held.total():6.1%}  {held.total() * took:9,.0f} ns")
        for symbol, share in held.most_common(8 if rest else 0):
            print(f"    {share:6.2%}  {symbol[:110]}")
    print(f"{'a row':<{width}}  {'':6}  {took:9,.0f} ns")


if __name__ == "__main__":
    main()
