#!/usr/bin/env python3
"""Bad clients against real processes: what they send is refused, costs little, and disturbs nobody who means well.

    python3 tests/hostile/hostile.py PROGRAM [SECTION...]

A voter that writes and a gateway in front of it are started twice in temporary directories, both with API tokens
and small limits, the second time with very few places and under strace. Each section is hostile at both ends;
after it the same processes answer, and the tables are those that were written. It prints a line with its
figures, and the first violation ends the run with exit code 1. The section `compaction` has a node of its own.
"""

import http.client
import resource
import signal
import sys
import time
from pathlib import Path

# Nothing is left beside the sources.
sys.dont_write_bytecode = True

import bodies  # noqa: E402
import compaction  # noqa: E402
import connections  # noqa: E402
import files  # noqa: E402
import http2  # noqa: E402
import smuggling  # noqa: E402
from cluster import Cluster, need  # noqa: E402

# MiB that all bodies may take, and what a process may need besides. What large buffers took is given back within a
# fraction of a second, so that as much again may be there for a moment.
BODIES, SLACK = 64, 32
REQUESTS, CONNECTIONS = 4, 24
ROOMY = {"max_body": "8MiB", "max_inflated": "16MiB", "max_bodies": f"{BODIES}MiB", "header_timeout": "3s", "body_timeout": "3s", "answer_timeout": "3s",
         # Whoever reads no answer holds a place for its time: here are enough for all of them.
         "max_queries": 128}
NARROW = {"max_body": "8MiB", "max_requests": REQUESTS, "max_connections": CONNECTIONS, "header_timeout": "6s", "body_timeout": "5s", "answer_timeout": "5s"}

SECTIONS = {
    "smuggling": (ROOMY, smuggling.run),
    "decompression": (ROOMY, lambda cluster: bodies.decompression(cluster, BODIES, SLACK)),
    "lengths": (ROOMY, lambda cluster: bodies.announced(cluster, BODIES, SLACK)),
    "slow": (ROOMY, connections.slow),
    "http2": (ROOMY, lambda cluster: http2.run(cluster, 64)),
    "limits": (NARROW, lambda cluster: connections.limits(cluster, REQUESTS, CONNECTIONS, 32)),
    "files": (NARROW, files.run),
}


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    need(len(sys.argv) > 1 and set(sys.argv[2:]) <= {*SECTIONS, "compaction"}, f"usage: hostile.py PROGRAM [{'|'.join(SECTIONS)}|compaction...]")
    skein, wanted = Path(sys.argv[1]).resolve(), sys.argv[2:] or [*SECTIONS, "compaction"]
    # The slow clients of both ends are here, and a process may begin with room for few.
    room, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if room != resource.RLIM_INFINITY and room < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096 if most == resource.RLIM_INFINITY else min(most, 4096), most))
    began = time.monotonic()
    for limits in (ROOMY, NARROW):
        names = [name for name, (wants, _) in SECTIONS.items() if name in wanted and wants is limits]
        if not names:
            continue
        untraced = "files" not in names or files.untraceable()
        if untraced and "files" in names:
            print(f"SKIPPED: system calls of the section files: {untraced}", flush=True)
        with Cluster(skein, traced=not untraced, **limits) as cluster:
            cluster.sound("the start")
            for name in names:
                since = time.monotonic()
                try:
                    figures = SECTIONS[name][1](cluster)
                except (OSError, http.client.HTTPException) as error:
                    ended = [end.name for end in cluster.ends if end.process.poll() is not None]
                    need(False, f"in the section {name} a client got no answer: {error!r}; processes that have ended: {ended}")
                cluster.sound(f"the section {name}")
                print(f"{name}: {figures} ({time.monotonic() - since:.0f} s)", flush=True)
    if "compaction" in wanted:
        since = time.monotonic()
        print(f"compaction: {compaction.run(skein)} ({time.monotonic() - since:.0f} s)", flush=True)
    print(f"hostile clients: {len(wanted)} sections passed in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
