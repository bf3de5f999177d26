"""Three processes of the program in a temporary directory, without mDNS, on free ports."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time

PATIENCE = 60.0


class Node:
    """One process with its data directory."""

    def __init__(self, home, name):
        self.name, self.dir, self.log = name, home / name, home / f"{name}.log"
        self.url = None
        self.process = None

    def start(self, *flags):
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SKEIN_")},
            # Soon in files, so that what is read comes from memory and files alike.
            "SKEIN_STORAGE_FLUSH_AGE": "1s",
        }
        command = [os.environ["SKEIN"], "start", "--data-dir", self.dir, "--name", self.name]
        command += ["--mesh", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-mdns", *flags]
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
                    self.url = words["http"]
                    break
            else:
                raise AssertionError(f"{self.name} did not start")
        finally:
            watchdog.cancel()
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def skein(self, *arguments):
        command = [os.environ["SKEIN"], *arguments, "--data-dir", self.dir]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout

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
    """Nodes a, b and c; `edge` and `other` are the two that do not write at the start."""

    def __init__(self):
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="skein-clients-"))
        self.nodes = [Node(self.home, name) for name in "abc"]

    def __enter__(self):
        try:
            first, *rest = self.nodes
            first.start("--new-cluster")
            eventually("a has a writer", lambda: first.status()["writer"])
            token = self.home / "token"
            token.write_text(first.skein("token", "create", "--uses", "2"))
            seed = next(node for node in first.status()["nodes"] if node["name"] == "a")["mesh_addr"]
            for node in rest:
                node.start("--join", f"@{token}", "--seed", seed)
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
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(subprocess.SubprocessError):
            if answer := ask():
                return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"after {PATIENCE:.0f} s still not: {what}")
        time.sleep(0.1)
