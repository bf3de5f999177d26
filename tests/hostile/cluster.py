"""A voter that writes and a gateway in front of it: two processes of the program, and clients that mean well."""

import contextlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

# Of anything that must come about; nothing is measured against it.
PATIENCE = 30
MIB = 1 << 20
# Answers of HTTP/1. An error that repeats a request line has no status behind the version.
ANSWER = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def need(so, says):
    if not so:
        raise SystemExit(f"FAILED: {says}")


def until(what, ask):
    end = time.monotonic() + PATIENCE
    while not ask():
        need(time.monotonic() < end, f"waited {PATIENCE} s in vain for: {what}")
        time.sleep(0.05)


class OverUnix(http.client.HTTPConnection):
    """To the socket in the data directory, where a client is an administrator."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


def ask(connection, method, target, body=None, headers=None):
    """Status and text of the answer to one request."""
    with contextlib.closing(connection):
        connection.request(method, target, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")


class Node:
    """A process of the program."""

    def __init__(self, home, name):
        self.name, self.dir, self.log, self.trace = name, home / name, home / f"{name}.log", home / f"{name}.trace"
        self.process, self.pid = None, None

    def start(self, skein, limits, *flags, traced=False, storage=None):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SKEIN_")}
        # As deploy/skein.service has it.
        environment["MALLOC_MMAP_THRESHOLD_"] = "4194304"
        for section, given in (("HTTP", limits), ("STORAGE", storage or {})):
            environment |= {f"SKEIN_{section}_{name.upper()}": str(value) for name, value in given.items()}
        # On loopback alone nobody would ask for tokens.
        command = [skein, "start", "--name", self.name, "--data-dir", self.dir, "--mesh", "127.0.0.1:0", "--http", "0.0.0.0:0"]
        if traced:
            command = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", self.trace, *command]
        with open(self.log, "wb") as log:
            # A session of its own, so that what traces it ends with it.
            self.process = subprocess.Popen([*command, "--no-mdns", *flags], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                            stderr=log, text=True, env=environment, start_new_session=True)
        watchdog = threading.Timer(PATIENCE, self.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        need(line.startswith("ready "), f"{self.name} is not ready: {self.log.read_text(errors='replace')[-2000:]}")
        self.address = ("127.0.0.1", int(re.search(r"http=http://0\.0\.0\.0:(\d+)", line)[1]))
        self.pid = self.process.pid
        if traced:
            self.pid = int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def over_unix(self, method, target, body=None):
        return ask(OverUnix(str(self.dir / "skein.sock"), timeout=PATIENCE), method, target, body)

    def admin(self, method, target, body=None):
        status, text = self.over_unix(method, target, body and json.dumps(body))
        need(status in (200, 201), f"{method} {target} at {self.name}'s socket: {status} {text}")
        return json.loads(text)

    def ask(self, method, target, body=None, headers=None):
        return ask(http.client.HTTPConnection(*self.address, timeout=PATIENCE), method, target, body, headers)

    def memory(self, line):
        """A line of its status, in bytes."""
        said = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"^{line}:\s+(\d+) kB", said, re.M)[1]) * 1024

    def sockets(self):
        """How many it has open."""
        count = 0
        for entry in os.scandir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                count += os.readlink(entry.path).startswith("socket:")
        return count

    def said(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        ended = self.process.wait(timeout=PATIENCE)
        need(ended == 0, f"the process of the {self.name} has ended with {ended}")

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Peak:
    """How far the memory of a process rises from here on: its high-water mark over what it has now, in MiB."""

    def __init__(self, node):
        self.node = node
        # The mark falls to what is there.
        Path(f"/proc/{node.pid}/clear_refs").write_text("5")
        self.before = node.memory("VmRSS")

    def growth(self):
        return max(0, self.node.memory("VmHWM") - self.before) / MIB

    def below(self, allowed, when):
        grown = self.growth()
        need(grown < allowed, f"the memory of the {self.node.name} has grown by {grown:.0f} MiB, {allowed} are allowed, {when}")


def grown(peaks):
    return "grown by " + ", ".join(f"{end.name} {peak.growth():.0f} MiB" for end, peak in peaks.items())


def counted(counts):
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items(), key=str))


class Cluster:
    """A voter and a gateway with the same limits, both asking for API tokens; `ends` are both."""

    def __init__(self, skein, traced=False, **limits):
        self.home = Path(tempfile.mkdtemp(prefix="skein-hostile-"))
        self.node, self.gateway = self.ends = [Node(self.home, name) for name in ("node", "gateway")]
        self.skein, self.limits, self.traced, self.points = skein, limits, traced, 0
        self.meanwhile, self.stored = {end.name: 0 for end in self.ends}, {"healthy.point"}

    def __enter__(self):
        try:
            self.node.start(self.skein, self.limits, "--new-cluster", traced=self.traced)
            until("a writer", lambda: self.node.admin("GET", "/api/v1/cluster")["writer"])
            seed = self.node.admin("GET", "/api/v1/cluster")["nodes"][0]["mesh_addr"]
            token = self.home / "join.token"
            token.write_text(self.node.admin("POST", "/api/v1/tokens", {"uses": 1, "role": "gateway"})["token"])
            flags = ["--role", "gateway", "--join", f"@{token}", "--seed", seed]
            self.gateway.start(self.skein, self.limits, *flags, traced=self.traced)
            self.token = self.api_token("read", "write")
            self.bearer = {"authorization": f"Bearer {self.token}"}
            until("a gateway that is ready", lambda: self.gateway.ask("GET", "/readyz")[0] == 200)
            return self
        except BaseException as error:
            self.__exit__(type(error))
            raise

    def __exit__(self, kind, *_):
        for end in self.ends:
            if end.process:
                end.kill()
            if kind is not None:
                print(f"---- end of {end.name}'s log", *end.said().splitlines()[-15:], sep="\n", flush=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def api_token(self, *scopes, databases=None):
        wanted = {"scopes": scopes, "name": f"t{time.monotonic_ns()}", **({"databases": databases} if databases else {})}
        return self.node.admin("POST", "/api/v1/auth/tokens", wanted)["token"]

    def write(self, end, database, lines):
        return end.ask("POST", f"/write?db={database}", lines, self.bearer)

    def query(self, end, database, sql, **more):
        """Everything acknowledged, whichever node is asked."""
        asked = urllib.parse.urlencode({"db": database, "q": sql, "consistency": "linearizable", **more})
        return end.ask("GET", f"/api/v3/query_sql?{asked}", headers=self.bearer)

    def rows(self, database, sql):
        status, text = self.query(self.node, database, sql)
        need(status == 200, f"{sql} in {database}: {status} {text}")
        return json.loads(text)

    def sound(self, after):
        """The same processes answer whoever means well, with exactly what was written."""
        for end in self.ends:
            need(end.process.poll() is None, f"after {after}: the process of the {end.name} has ended with {end.process.poll()}")
            self.points += 1
            status, text = self.write(end, "healthy", f"point n={self.points}i {self.points}")
            need(status == 204, f"after {after}: a write by the {end.name} is answered {status} {text}")
            status, text = self.query(end, "healthy", "SELECT count(*) AS points, max(n) AS last FROM point")
            wanted = [{"points": self.points, "last": self.points}]
            need(status == 200 and json.loads(text) == wanted, f"after {after}: the {end.name} has not {wanted} but {status} {text}")
        said = self.node.admin("GET", "/api/v1/measurements")["measurements"]
        stored = {f"{table['database']}.{table['measurement']}" for table in said}
        need(stored == self.stored, f"after {after}: there are tables {sorted(stored)} instead of {sorted(self.stored)}")
        for end in self.ends:
            panic = re.search(r"[^\n]*panicked at[^\n]*\n?[^\n]*", end.said())
            need(not panic, f"after {after}: a panic at the {end.name}: {panic and panic[0]}")

    def metric(self, end, name):
        status, text = end.ask("GET", "/metrics", headers=self.bearer)
        need(status == 200, f"/metrics of the {end.name}: {status} {text}")
        return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])


class Meanwhile:
    """Writes and questions at both ends, one after the other, while others behave badly; each must be answered rightly."""

    def __init__(self, cluster):
        self.cluster, self.stop, self.wrong = cluster, threading.Event(), []
        self.took = {"write": [], "query": []}
        self.threads = [threading.Thread(target=self.run, args=(end,)) for end in cluster.ends]

    def __enter__(self):
        self.cluster.stored.add("healthy.meanwhile")
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def run(self, end):
        written = self.cluster.meanwhile
        while not self.stop.is_set() and not self.wrong:
            number = written[end.name] + 1
            try:
                self.timed("write", 204, "", self.cluster.write, end, "healthy", f"meanwhile,end={end.name} n={number}i {number}")
                written[end.name] = number
                sql = f"SELECT count(*) AS points, max(n) AS last FROM meanwhile WHERE \"end\" = '{end.name}'"
                wanted = f'[{{"points":{number},"last":{number}}}]'
                self.timed("query", 200, wanted, self.cluster.query, end, "healthy", sql)
            except Exception as error:  # noqa: BLE001
                self.wrong.append(f"at the {end.name}: {error!r}")

    def timed(self, what, status, text, act, *arguments):
        began = time.monotonic()
        answer = act(*arguments)
        self.took[what].append(time.monotonic() - began)
        if (answer[0], answer[1].strip()) != (status, text):
            raise AssertionError(f"a {what} is answered {answer} instead of {status} {text}")

    def figures(self, during):
        need(not self.wrong, f"meanwhile, {during}, {'; '.join(self.wrong)}")
        parts = []
        for what, took in self.took.items():
            need(took, f"meanwhile, {during}, not one {what} was answered")
            took.sort()
            p50, p99 = (1000 * took[int(part * (len(took) - 1))] for part in (0.5, 0.99))
            parts.append(f"{len(took)} {what} p50 {p50:.0f} ms p99 {p99:.0f} ms")
        return ", ".join(parts)


def exchange(address, *pieces):
    """Sends what it is given and reads until the other end closes. An answer may come, and a close, before all is sent."""
    left, heard, deadline = bytearray().join(pieces), bytearray(), time.monotonic() + PATIENCE
    with socket.create_connection(address, timeout=PATIENCE) as stream:
        stream.setblocking(False)
        while True:
            need(time.monotonic() < deadline, f"no end of a connection within {PATIENCE} s, after {bytes(heard[:300])!r}")
            readable, writable, _ = select.select([stream], [stream] if left else [], [], 1)
            try:
                if readable:
                    piece = stream.recv(1 << 16)
                    if not piece:
                        return bytes(heard)
                    heard += piece
                if writable:
                    del left[: stream.send(left[: 1 << 18])]
            except BlockingIOError:
                pass
            except OSError:
                # What had come before a reset counts.
                return bytes(heard)


def statuses(answer):
    return [int(status) for status in ANSWER.findall(answer)]
