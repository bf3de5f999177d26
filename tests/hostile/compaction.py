"""A node that puts files together in the background takes no more memory for it than it is given."""

import random
import shutil
import tempfile
import time
from pathlib import Path

from cluster import MIB, Node, Peak, need

# The least that may be given, in MiB, and what a process may need besides: its allocator keeps some of what it took.
GIVEN, SLACK = 64, 8
# Bodies, each later than those before it, and rows of one. A flush has about so many rows that it is not put together with
# the one before it: that is left to compaction. All files at once would take more than is given.
BODIES, ROWS, FLUSH = 100, 100_000, "20MiB"
# Of a build without optimisation, on a machine that does other things.
LONGEST = 120


def lines(number, dice):
    first = number * ROWS
    return "".join(f"small,host=h{row % 50} n={dice.getrandbits(32)}i {row}\n" for row in range(first, first + ROWS))


def figures(node):
    status, text = node.over_unix("GET", "/metrics")
    need(status == 200, f"/metrics: {status} {text}")
    named = dict(line.split(" ", 1) for line in text.splitlines() if line.startswith("skein_compact"))
    return {name: int(float(named[f"skein_{name}"])) for name in ("compactions", "compacted_files", "compaction_read_bytes")}


def files(node):
    return sorted(path.stat().st_size for path in node.dir.glob("engine/data/big/small/*.parquet"))


def run(skein):
    home = Path(tempfile.mkdtemp(prefix="skein-compaction-"))
    node = Node(home, "node")
    try:
        # Nothing is put together yet.
        node.start(skein, {}, "--new-cluster", storage={"compaction_memory": 0, "flush_bytes": FLUSH})
        dice = random.Random(1)
        for number in range(BODIES):
            status, text = node.over_unix("POST", "/write?db=big", lines(number, dice))
            need(status == 204, f"a write is answered {status} {text}")
        # The day of all these is over, so as few files as may be have it in the end.
        status, text = node.over_unix("POST", "/write?db=big", f"small,host=h0 n=0i {3 * 86_400 * 10**9}")
        need(status == 204, f"a write is answered {status} {text}")
        before = settled(node, lambda: files(node))
        node.stop()
        # Nothing else happens now: what the process grows by is what it takes for this.
        node.start(skein, {}, storage={"compaction_memory": f"{GIVEN}MiB"})
        peak = Peak(node)
        done = settled(node, lambda: figures(node))
        grown = peak.growth()
        need(done["compacted_files"] > 2, f"next to nothing was put together: {done} of {len(before)} files")
        need(grown < GIVEN + SLACK, f"memory has grown by {grown:.0f} MiB where {GIVEN} and {SLACK} are allowed: {done}")
        count = node.over_unix("GET", "/api/v3/query_sql?db=big&q=SELECT%20count(*)%20AS%20n%20FROM%20small")
        need(count == (200, f'[{{"n":{BODIES * ROWS + 1}}}]'), f"the points are not those that were written: {count}")
        return f"{done['compacted_files']} files of {done['compaction_read_bytes'] / MIB:.0f} MiB put together, {len(before)} files are {len(files(node))}, memory grown by {grown:.0f} MiB of {GIVEN}"
    except BaseException:
        print("---- end of the node's log", *node.said().splitlines()[-15:], sep="\n", flush=True)
        raise
    finally:
        if node.process:
            node.kill()
        shutil.rmtree(home, ignore_errors=True)


def settled(node, ask):
    """What it says once it has said so for twelve seconds: a look at the files comes every ten."""
    end, since, last = time.monotonic() + LONGEST, time.monotonic(), None
    while time.monotonic() - since < 12 or last is None:
        need(time.monotonic() < end, f"still no end after {LONGEST} s: {last}; files of {[size >> 10 for size in files(node)]} KiB")
        now = ask()
        something = now if isinstance(now, list) else now["compactions"]
        if now != last or not something:
            since, last = time.monotonic(), now
        time.sleep(0.5)
    return last
