"""Three processes of the program in a temporary directory, without mDNS, on free ports."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time
import typing

PATIENCE = 60.0
ROOT = pathlib.Path(__file__).resolve().parents[2]


class At(typing.NamedTuple):
    """Where clients go, and what they bring. On loopback nobody looks at tokens."""

    url: str
    token: str = "unused"
    # The roots that they trust.
    ca: pathlib.Path | None = None
    # The name in the certificate, if they connect to another.
    name: str | None = None
    # Everything acknowledged, at whatever node.
    consistency: str = "linearizable"

    @property
    def grpc(self):
        return self.url.replace("https:", "grpc+tls:").replace("http:", "grpc:")


class Node:
    """One process with its data directory."""

    def __init__(self, home, name):
        self.name, self.dir, self.log = name, home / name, home / f"{name}.log"
        self.at = None
        self.process = None

    def start(self, *flags, http="127.0.0.1:0"):
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SKEIN_")},
            # Soon in files, so that what is read comes from memory and files alike.
            "SKEIN_STORAGE_FLUSH_AGE": "1s",
        }
        command = [os.environ["SKEIN"], "start", "--data-dir", self.dir, "--name", self.name]
        command += ["--mesh", "127.0.0.1:0", "--http", http, "--no-mdns", *flags]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        # Readiness is a line on standard output, so no wait is longer than the start takes.
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                if line.startswith("ready "):
                    words = dict(word.split("=", 1) for word in line.split() if "=" in word)
                    self.at = At(words["http"].replace("0.0.0.0", "127.0.0.1"))
                    break
            else:
                raise AssertionError(f"{self.name} did not start")
        finally:
            watchdog.cancel()
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def skein(self, *arguments, **environment):
        command = [os.environ["SKEIN"], *arguments, "--data-dir", self.dir]
        environment = {**os.environ, **environment}
        ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, env=environment)
        return ran.stdout

    def status(self):
        return json.loads(self.skein("status", "--json"))

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        if self.process.wait(timeout=PATIENCE) != 0:
            raise AssertionError(f"{self.name} ended with {self.process.returncode} after SIGTERM")

    def running(self):
        return self.process is not None and self.process.poll() is None


class Cluster:
    """Voters a, b and c; `edge` and `other` are the two that do not write at the start."""

    def __init__(self):
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="skein-clients-"))
        self.nodes = [Node(self.home, name) for name in "abc"]

    def __enter__(self):
        try:
            first, *rest = self.nodes
            first.start("--new-cluster")
            eventually("a has a writer", lambda: first.status()["writer"])
            for node in rest:
                self.join(node, "voter")
            self.settle()
            self.edge, self.other = [node for node in self.nodes if node is not self.writer()]
            return self
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind, *_):
        for node in self.nodes:
            if node.running():
                node.kill()
            if kind is not None and node.log.exists():
                lines = node.log.read_text(errors="replace").splitlines()
                print(f"---- end of {node.name}'s log", *lines[-25:], sep="\n")
        shutil.rmtree(self.home)

    def join(self, node, role, *flags, **listen):
        first, token = self.nodes[0], self.home / f"{node.name}.token"
        token.write_text(first.skein("token", "create", "--role", role))
        # One that has just been started again has another port, of which the cluster hears a moment later.
        seeds = [flag for n in first.status()["nodes"] if n["mesh_addr"] for flag in ("--seed", n["mesh_addr"])]
        node.start("--join", f"@{token}", *seeds, "--role", role, *flags, **listen)

    def add(self, role, *flags):
        """One more, on all addresses, where API tokens are wanted."""
        node = Node(self.home, role)
        self.nodes.append(node)
        self.join(node, role, *flags, http="0.0.0.0:0")
        return node

    def api_token(self, node, scope, database):
        """By way of `node`, which knows it from then on."""
        admin = (self.nodes[0].dir / "admin.token").read_text().strip()
        command = ["auth", "create", "--scope", scope, "--database", database]
        # It may be ready a moment before it is linked to a voter.
        create = functools.partial(node.skein, *command, SKEIN_API_TOKEN=admin)
        return eventually(f"{node.name} makes an API token", create).strip()

    def certificate(self):
        """Of one's own: roots, and a certificate of them for 127.0.0.1 with its key."""
        made = self.home / "certificate"
        subprocess.run([ROOT / "certs" / "throwaway-ca.sh", made], check=True, stdout=subprocess.DEVNULL)
        ca, certificate, key = made / "ca.crt", made / "edge.crt", made / "edge.key"
        command = ["openssl", "req", "-x509", "-CA", ca, "-CAkey", made / "ca.key", "-subj", "/CN=edge", "-days", "2"]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", key]
        command += ["-out", certificate]
        command += ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1"]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 0, f"openssl makes no certificate: {ran.stderr}"
        return ca, certificate, key

    def settle(self):
        eventually("three voters are up", lambda: all(self.voters(node) == 3 for node in self.nodes))

    @staticmethod
    def voters(node):
        return sum(n["role"] == "voter" and n["state"] == "up" for n in node.status()["nodes"])

    def writer(self):
        """The node that writes, as one that runs knows it."""

        def ask():
            for node in filter(Node.running, self.nodes):
                with contextlib.suppress(subprocess.SubprocessError):
                    status = node.status()
                    names = [n["name"] for n in status["nodes"] if n["id"] == status["writer"]]
                    return next((n for n in self.nodes if n.name in names and n.running()), None)

        return eventually("a writer", ask)


def eventually(what, ask):
    deadline, last = time.monotonic() + PATIENCE, ""
    while True:
        try:
            if answer := ask():
                return answer
        except subprocess.SubprocessError as error:
            last = f": {error} {error.stderr or ''}"
        if time.monotonic() > deadline:
            raise AssertionError(f"after {PATIENCE:.0f} s still not: {what}{last}")
        time.sleep(0.1)
