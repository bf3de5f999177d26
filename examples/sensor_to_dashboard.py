#!/usr/bin/env python3
"""From sensors to a dashboard: three nodes on this machine, four sensors that each write to the node next to
them over plain HTTP, and a dashboard in the terminal that asks any node in SQL. One node is killed on the
way; sensors go to the next.

    cargo build && examples/sensor_to_dashboard.py

Nothing but Python's own library: what is here can be done in any language. $SKEIN names another program
than target/debug/skein.
"""

import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
SKEIN = os.environ.get("SKEIN") or str(pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/skein")
ROOMS = {"boiler": 61.0, "attic": 17.5, "cellar": 11.0, "kitchen": 21.0}
READINGS = 30
PATIENCE = 60
# Neither a proxy nor the user's own settings are meant here.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ENV = {key: value for key, value in os.environ.items() if not key.startswith("SKEIN_")}


class Node:
    def __init__(self, home, name, *flags):
        self.name, self.dir = name, home / name
        self.log = open(home / f"{name}.log", "wb")
        self.process = subprocess.Popen(
            [SKEIN, "start", "--name", name, "--data-dir", self.dir, "--mesh", "127.0.0.1:0", "--http", "127.0.0.1:0",
             "--no-mdns", *flags],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env=ENV,
        )
        line = next((line for line in self.process.stdout if line.startswith("ready ")), None)
        if line is None:
            raise SystemExit(f"{name} did not start:\n{(home / f'{name}.log').read_text()[-3000:]}")
        self.url = dict(word.split("=", 1) for word in line.split()[1:])["http"]

    def skein(self, *args):
        ran = subprocess.run([SKEIN, *args, "--data-dir", self.dir], stdout=subprocess.PIPE, text=True, check=True, env=ENV)
        return ran.stdout

    def mesh(self):
        nodes = json.loads(self.skein("status", "--json"))["nodes"]
        return next(node["mesh_addr"] for node in nodes if node["name"] == self.name)


def until(what, look):
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        if time.monotonic() > deadline:
            raise SystemExit(f"after {PATIENCE} s still not: {what}")
        time.sleep(0.1)
    return found


def sensor(room, base, nodes, written):
    """Writes its readings, each until a node has acknowledged it. A reading written twice is one reading."""
    dice = random.Random(room)
    at = sorted(ROOMS).index(room)
    for n in range(READINGS):
        # A minute between readings, an hour ago: the script has no hour.
        when = int(time.time()) // 60 * 60 - 3600 + n * 60
        value = base + 2 * math.sin(n / 5) + dice.gauss(0, 0.2)
        line = f"temperature,room={room} celsius={value:.3f} {when}"
        while True:
            url = f"{nodes[at % len(nodes)].url}/write?db=home&precision=s"
            try:
                HTTP.open(urllib.request.Request(url, data=line.encode(), method="POST"), timeout=10).close()
                written[room] = written.get(room, 0) + 1
                break
            except (urllib.error.URLError, OSError):
                at += 1
        time.sleep(0.02)


def query(node, sql):
    asked = {"db": "home", "q": sql, "format": "json", "consistency": "linearizable"}
    with HTTP.open(f"{node.url}/api/v3/query_sql?{urllib.parse.urlencode(asked)}", timeout=30) as answer:
        return json.load(answer)


def dashboard(node):
    rows = query(node, """
        SELECT room, count(*) AS readings, avg(celsius) AS mean, min(celsius) AS low, max(celsius) AS high
        FROM temperature GROUP BY room ORDER BY room""")
    series = query(node, """
        SELECT room, date_bin(INTERVAL '3 minutes', time) AS t, avg(celsius) AS mean
        FROM temperature GROUP BY room, t ORDER BY room, t""")
    bars = "▁▂▃▄▅▆▇█"
    print(f"\nasked {node.name}\n{'room':<9}{'readings':>9}{'mean':>8}{'low':>8}{'high':>8}")
    for row in rows:
        means = [point["mean"] for point in series if point["room"] == row["room"]]
        low, high = min(means), max(means)
        line = "".join(bars[min(7, int((mean - low) / ((high - low) or 1) * 8))] for mean in means)
        print(f"{row['room']:<9}{row['readings']:>9}{row['mean']:>8.1f}{row['low']:>8.1f}{row['high']:>8.1f}  {line}")
    return {row["room"]: row["readings"] for row in rows}


def main(home, nodes):
    nodes.append(Node(home, "a", "--new-cluster"))
    token = home / "token"
    token.write_text(nodes[0].skein("token", "create", "--uses", "2"))
    for name in "bc":
        nodes.append(Node(home, name, "--join", f"@{token}", "--seed", nodes[0].mesh()))
    status = lambda: json.loads(nodes[0].skein("status", "--json"))
    until("three voters", lambda: sum(n["role"] == "voter" and n["state"] == "up" for n in status()["nodes"]) == 3)

    written = {}
    sensors = [threading.Thread(target=sensor, args=(room, base, nodes, written)) for room, base in ROOMS.items()]
    for thread in sensors:
        thread.start()
    until("some readings", lambda: sum(written.values()) > READINGS)
    found = dashboard(nodes[1])
    print(f"\n{nodes[0].name}, which writes, is killed; sensors go on at the others")
    nodes[0].process.kill()
    for thread in sensors:
        thread.join(PATIENCE)
    for node in nodes[1:]:
        found = dashboard(node)
        if found != {room: READINGS for room in ROOMS}:
            raise SystemExit(f"{node.name} shows {found}, acknowledged were {written}")
    print(f"\n{sum(written.values())} readings acknowledged, {sum(found.values())} found at each node that is left")


if __name__ == "__main__":
    place, running, began = pathlib.Path(tempfile.mkdtemp()), [], time.monotonic()
    try:
        main(place, running)
        print(f"\nsensor_to_dashboard: passed in {time.monotonic() - began:.0f} s")
    finally:
        for node in running:
            node.process.send_signal(signal.SIGTERM)
        for node in running:
            try:
                node.process.wait(15)
            except subprocess.TimeoutExpired:
                node.process.kill()
        shutil.rmtree(place, ignore_errors=True)
        sys.stdout.flush()
