#!/usr/bin/env python3
"""The load of `skein bench write` on InfluxDB 1 and VictoriaMetrics too, in turn, in one run.

    apt-get install --no-install-recommends influxdb victoria-metrics
    python3 benches/compare/ingest.py target/release/skein [--seconds 10] [--rounds 3] [--json] [--plot FILE.svg]

Line protocol, a thousand rows a request, twelve connections, the generator on the same cores as the server. Each server
starts with an empty directory and its defaults: skein and InfluxDB sync a write before they acknowledge it, VictoriaMetrics has
no log. A figure is the median of the rounds; processor time is that of the server alone, with all it did meanwhile.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import bars

PATIENCE = 60


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def influxdb(home, port):
    """Its defaults but for places and for what it would tell its makers."""
    home.joinpath("influxdb.conf").write_text(f"""
reporting-disabled = true
bind-address = "127.0.0.1:{free_port()}"
[meta]
  dir = "{home}/meta"
[data]
  dir = "{home}/data"
  wal-dir = "{home}/wal"
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
""")
    return ["influxd", "run", "-config", home / "influxdb.conf"]


def victoria_metrics(home, port):
    # What is older than its retention it drops, which looks fast.
    listen = f"-httpListenAddr=127.0.0.1:{port}"
    return ["victoria-metrics", f"-storageDataPath={home}/data", listen, "-retentionPeriod=100y"]


OTHERS = {"InfluxDB": ("influxd", influxdb), "VictoriaMetrics": ("victoria-metrics", victoria_metrics)}


@contextlib.contextmanager
def running(command, home, url):
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE
        while not answers(url):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command[0]} did not start: {(home / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def answers(url):
    try:
        urllib.request.urlopen(f"{url}/query?q=CREATE%20DATABASE%20bench", data=b"", timeout=5).close()
    except urllib.error.HTTPError:
        # It is there, and needs no database.
        return True
    except OSError:
        return False
    return True


def bench(program, *arguments):
    ran = subprocess.run([program, "bench", *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    load = json.loads(ran.stdout)["writer"]
    cpu = load["nodes_cpu_ns_per_row"]
    # The generator is no node, and not of this server.
    others = [process["ns_per_row"] for process in load["cpu"] if process["process"] == "bench"]
    return {"rows_per_s": load["rows_per_s"], "cpu_ns_per_row": cpu, "generator_ns_per_row": sum(others), "errors": load["errors"]}


def one(program, name, seconds):
    with tempfile.TemporaryDirectory() as temporary:
        if name == "skein":
            return bench(program, "write", "--nodes", "1", "--ack", "local", "--seconds", str(seconds))
        home, port = pathlib.Path(temporary), free_port()
        url = f"http://127.0.0.1:{port}"
        with running(OTHERS[name][1](home, port), home, url) as pid:
            return bench(program, "foreign", "--url", url, "--pid", str(pid), "--seconds", str(seconds))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("program")
    arguments.add_argument("--seconds", type=int, default=10)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--plot", type=pathlib.Path, metavar="FILE.svg")
    given = arguments.parse_args()
    names = ["skein"]
    for name, (program, _) in OTHERS.items():
        if shutil.which(program):
            names.append(name)
        else:
            print(f"SKIPPED: {name}: there is no {program}", file=sys.stderr)
    rounds = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            rounds[name].append(one(given.program, name, given.seconds))
            print(f"{name}: {rounds[name][-1]}", file=sys.stderr)
    found = {}
    for name, each in rounds.items():
        found[name] = {key: statistics.median(one[key] for one in each) for key in ("rows_per_s", "cpu_ns_per_row")}
    ours = found["skein"]
    for other in found.values():
        other["skein_rows_ratio"] = ours["rows_per_s"] / other["rows_per_s"]
        other["skein_cpu_ratio"] = ours["cpu_ns_per_row"] / other["cpu_ns_per_row"]
    if given.plot:
        groups = [
            ("rows per second", [of["rows_per_s"] for of in found.values()]),
            ("server's CPU per row, ns", [of["cpu_ns_per_row"] for of in found.values()]),
        ]
        given.plot.write_text(bars.svg("Line protocol, a thousand rows a request", list(found), groups, "{:,.0f}".format))
    if given.json:
        setting = {"rounds": given.rounds, "seconds": given.seconds, "cores": os.cpu_count()}
        print(json.dumps({**setting, "servers": found, "each": rounds}))
        return
    print(f"{given.rounds} rounds of {given.seconds} s, {os.cpu_count()} cores\n")
    print(f"{'SERVER':<18}{'ROWS/S':>12}{'CPU NS/ROW':>12}{'SKEIN: ROWS':>14}{'CPU':>8}")
    for name, of in found.items():
        ratios = f"{of['skein_rows_ratio']:>13.1f}x{of['skein_cpu_ratio']:>8.2f}" if name != "skein" else ""
        print(f"{name:<18}{of['rows_per_s']:>12,.0f}{of['cpu_ns_per_row']:>12,.0f}{ratios}")


if __name__ == "__main__":
    main()
