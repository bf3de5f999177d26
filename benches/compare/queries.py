#!/usr/bin/env python3
"""The queries of `skein bench query` beside DuckDB over the same files, in one run.

    pip install duckdb==2.0.1
    python3 benches/compare/queries.py target/release/skein [--requests 50000] [--runs 7] [--json] [--plot FILE.svg]

A node is started in a directory of its own and filled by `skein bench query`, a thousand rows a request. Once all rows are
in files, each query is asked of both in turn: of the node over HTTP with the whole answer read, of DuckDB in this process.
The answers have to agree. A figure is the median; the first time counts as any other.
"""

import argparse
import contextlib
import glob
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import bars
import duckdb

MS = 1_000_000
# Of the rows, which are a nanosecond apart.
RECENT = 10


def queries(first, rows):
    """Name, SQL of the node, SQL of DuckDB."""
    recent = first + rows // RECENT * (RECENT - 1)
    newest, duck_newest = f"time >= to_timestamp_nanos({recent})", f"time >= make_timestamp_ns({recent})"
    bucket = "date_bin(INTERVAL '1 millisecond', time)"
    # The cheapest way that DuckDB has; its time_bucket has no nanoseconds.
    duck_bucket = f"epoch_ns(time) // {MS}"
    by_host = "SELECT host, count(*), avg(value), max(cpu_user) FROM cpu GROUP BY host"
    one_host = "SELECT count(*), avg(value) FROM cpu WHERE host = 'server017'"

    def buckets(bucket, newest):
        return f"SELECT {bucket} AS t, avg(value), max(cpu_idle) FROM cpu WHERE {newest} GROUP BY t ORDER BY t"

    def of_one(bucket, newest):
        return (
            f"SELECT {bucket} AS t, avg(value) FROM cpu WHERE host = 'server017' AND {newest} GROUP BY t ORDER BY t"
        )

    def of_all(bucket):
        return f"SELECT {bucket} AS t, avg(value) FROM cpu GROUP BY t ORDER BY t"

    return [
        ("count of all", "SELECT count(*) FROM cpu", "SELECT count(*) FROM cpu"),
        ("by host: count, avg, max", by_host, by_host),
        ("buckets of the newest tenth", buckets(bucket, newest), buckets(duck_bucket, duck_newest)),
        ("the same of one host", of_one(bucket, newest), of_one(duck_bucket, duck_newest)),
        ("buckets of all rows", of_all(bucket), of_all(duck_bucket)),
        ("10,000 rows as they come", "SELECT * FROM cpu LIMIT 10000", "SELECT * FROM cpu LIMIT 10000"),
        ("newest 100", *["SELECT * FROM cpu ORDER BY time DESC LIMIT 100"] * 2),
        ("one host, all time", one_host, one_host),
        (
            "95th percentile of all",
            "SELECT approx_percentile_cont(value, 0.95) FROM cpu",
            "SELECT approx_quantile(value, 0.95) FROM cpu",
        ),
        # Behind the nine, of which the mean is made.
        (
            "last value of each host",
            "SELECT host, last_value(value ORDER BY time), max(time) FROM cpu GROUP BY host",
            "SELECT host, arg_max(value, time), max(time) FROM cpu GROUP BY host",
        ),
        ("which hosts there are", *["SELECT DISTINCT host FROM cpu"] * 2),
    ]


NINE = 9


@contextlib.contextmanager
def node(program, home):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SKEIN_")}
    environment["SKEIN_STORAGE_FLUSH_AGE"] = "5s"
    command = [program, "start", "--data-dir", home, "--name", "n1", "--mesh", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--no-mdns", "--new-cluster"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=open(home.parent / "log", "wb"),
        text=True,
        env=environment,
    )
    try:
        for line in process.stdout:
            if line.startswith("ready "):
                yield dict(word.split("=", 1) for word in line.split() if "=" in word)["http"]
                return
        raise SystemExit(f"the node did not start: {(home.parent / 'log').read_text()[-2000:]}")
    finally:
        process.terminate()
        process.wait()


def metric(url, name):
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def in_files(url, home, rows):
    """Waits until every row is in a file and nothing is compacted any more."""
    pattern = f"{home}/engine/data/bench/cpu/*.parquet"
    count = f"SELECT count(*) FROM read_parquet('{pattern}')"
    still = None
    while True:
        there = duckdb.sql(count).fetchall()[0][0] if glob.glob(pattern) else 0
        state = (there, metric(url, "skein_compactions"))
        if state[0] == rows and state == still:
            return
        still = state
        time.sleep(5)


def ask(url, sql):
    query = urllib.parse.urlencode({"db": "bench", "format": "jsonl", "q": sql})
    with urllib.request.urlopen(f"{url}/api/v3/query_sql?{query}", data=b"") as answer:
        return answer.read()


def numbers(rows):
    """What of an answer can be compared whatever a time looks like: how many rows, and what numbers add up to."""
    values = [value for row in rows for value in row if isinstance(value, (int, float)) and abs(value) < 1e12]
    return len(rows), sum(values)


def agree(name, ours, theirs):
    (rows, total), (their_rows, their_total) = ours, theirs
    # Rows as they come differ, and a percentile is an estimate of each.
    slack = math.inf if name == "10,000 rows as they come" else 0.02 if "percentile" in name else 1e-6
    if rows != their_rows or abs(total - their_total) > slack * max(1.0, abs(their_total)):
        raise SystemExit(f"{name}: the answers differ: {ours} and {theirs}")


def measure(url, home, first, rows, runs):
    duck = duckdb.connect()
    duck.execute(f"CREATE VIEW cpu AS SELECT * FROM read_parquet('{home}/engine/data/bench/cpu/*.parquet')")
    duck.execute(f"SET threads = {os.cpu_count()}")
    found = []
    for name, sql, duck_sql in queries(first, rows):
        ours, theirs = [], []
        for _ in range(runs):
            began = time.perf_counter()
            answer = ask(url, sql)
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            table = duck.execute(duck_sql).fetchall()
            theirs.append(time.perf_counter() - began)
        lines = [list(json.loads(line).values()) for line in answer.splitlines()]
        # Buckets are times here and numbers there.
        drop = 1 if "bucket" in name or "the same" in name else 0
        agree(name, numbers([row[drop:] for row in lines]), numbers([row[drop:] for row in table]))
        found.append((name, statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3))
        print(f"{name}: {found[-1][1]:.1f} ms, DuckDB {found[-1][2]:.1f} ms", file=sys.stderr)
    return found


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("program")
    arguments.add_argument("--requests", type=int, default=50_000, help="of a thousand rows each")
    arguments.add_argument("--runs", type=int, default=7)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--plot", type=pathlib.Path, metavar="FILE.svg")
    given = arguments.parse_args()
    rows = given.requests * 1000
    with tempfile.TemporaryDirectory() as temporary:
        home = pathlib.Path(temporary) / "n1"
        with node(given.program, home) as url:
            print(f"writing {rows} rows", file=sys.stderr)
            fill = ["bench", "query", "--url", url, "--requests", str(given.requests), "--runs", "1"]
            fill += ["--ack", "local", "--format", "msgpack", "--json"]
            subprocess.run([given.program, *fill], check=True, stdout=subprocess.DEVNULL)
            in_files(url, home, rows)
            files = glob.glob(f"{home}/engine/data/bench/cpu/*.parquet")
            size = sum(os.path.getsize(file) for file in files)
            first = duckdb.sql(f"SELECT min(epoch_ns(time)) FROM read_parquet('{files[0].rsplit('/', 1)[0]}/*.parquet')")
            found = measure(url, home, first.fetchall()[0][0], rows, given.runs)
    mean = math.exp(statistics.fmean(math.log(ours / theirs) for _, ours, theirs in found[:NINE]))
    if given.plot:
        groups = [(name, (ours, theirs)) for name, ours, theirs in found]
        title = f"{rows:,} rows, ms; each query on a scale of its own"
        given.plot.write_text(bars.svg(title, ["skein, over HTTP", "DuckDB, in process"], groups, "{:,.1f}".format))
    if given.json:
        each = [{"query": name, "skein_ms": ours, "duckdb_ms": theirs} for name, ours, theirs in found]
        setting = {"rows": rows, "files": len(files), "bytes": size, "duckdb": duckdb.__version__}
        print(json.dumps({**setting, "cores": os.cpu_count(), "queries": each, "geometric_mean_of_nine": mean}))
        return
    print(f"{rows} rows in {len(files)} files of {size / 1e6:.0f} MB, {os.cpu_count()} cores, DuckDB {duckdb.__version__}\n")
    print(f"{'QUERY':<30}{'SKEIN MS':>12}{'DUCKDB MS':>12}{'RATIO':>8}")
    for name, ours, theirs in found:
        print(f"{name:<30}{ours:>12.1f}{theirs:>12.1f}{ours / theirs:>8.2f}")
    print(f"\ngeometric mean of the first nine: {mean:.2f}")


if __name__ == "__main__":
    main()
