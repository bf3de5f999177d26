#!/usr/bin/env python3
"""The commands of README.md and docs/: each is run, and what it prints must be what stands there.

    tests/docs/docs.py SKEIN [FILES]

A ```console block is run if directly before it stands a comment:

    <!-- run: WORLD -->
    <!-- run: new WORLD
    COMMANDS
    -->

WORLD is `one`, a lone node; `three`, voters a, b and c of which a writes; or `four`, with a reader d besides
that is off. c is asked, in its data directory. A block goes on with the nodes and in the shell of the run
block before it in its file if that had the same WORLD, and with `new` it does not. COMMANDS are run before
the block, must succeed, and find the process of node a in $a.

A command begins with `$ ` and goes on as long as the shell finds it unfinished. What follows is what it
prints, headers that are not documented left out; if nothing does, it has to succeed and no more. Numbers,
times, ids, tokens and blanks may be others, `..` is anything, and `..` in JSON is further fields. An id in a
command is the one that stood at its place in what was printed before, or that of `NODES`.
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of anything that must come about; nothing is measured against it.
PATIENCE = 60
# Which nodes the ids are that stand in commands only.
NODES = {"ylph..": "a", "yexc..": "b", "jchg..": "c"}
# What a command may need: a word of it, and what shows that it is there.
TOOLS = {"xxd": "xxd -v", "msgpack": "python3 -c 'import msgpack'"}
# Asked again until it is as documented.
LOOKS = re.compile(r"skein (query|status|doctor|(node|db|auth|token) list|ca status|backup verify)\b|(?!.*(skein |-X|-d|--data))", re.S)
# Goes on until nobody listens.
ENDLESS = "/cluster/events"

BLOCK = re.compile(r"^<!-- run: (new )?(one|three|four)\b((?:(?!-->).)*)-->\n```console\n(.*?)^```$", re.M | re.S)
# What is documented, and what may be there instead. `{}` is what is documented, itself.
KINDS = {
    "status": (r"^[1-5]\d\d$|(?<=\0)[1-5]\d\d$|(?<=HTTP/1.1 )\d{3}", "{}"),
    "secret": (r"skein_[a-z0-9]*\.*", r"skein_\w+"),
    "token": (r"skein1-voter-[a-z0-9]*\.*", r"skein1-voter-[a-z0-9]+"),
    "time": (r"\d{4}-?\d\d-?\d\dT[\d:.]+", r"\d{4}-?\d\d-?\d\dT[\d:.]+"),
    "id": (r"\b[a-z2-7]{26}\b", "[a-z2-7]{26}"),
    "hash": (r"\b[0-9a-f]{16,}\b", "[0-9a-f]{16,}"),
    "part": (r"\b[0-9a-z]{4}\.\.+", "[0-9a-z]{16,26}|{}.*?"),
    "short": (r"\b[a-z2-7]{6}\b", "{}|SHORT"),
    "cut": (r"\.\.+", ".*?"),
    "number": (r"(?<![A-Za-z_])\d+(?:\.\d+)*|(?<=\s)-(?=\s)", r"\d+(?:\.\d+)*|-"),
    "rule": ("--+", "--+"),
    "blank": (r"\s+", r"\s+"),
    "other": (".", "{}"),
}
IDS = ("secret", "token", "time", "id", "hash", "part", "short")
KIND = re.compile("|".join(f"(?P<{name}>{documented})" for name, (documented, _) in KINDS.items()), re.M | re.S)
LIST = r"\b[a-d] \([a-z2-7]{6}\)(?:, [a-d] \([a-z2-7]{6}\))+"


def need(so, says):
    if not so:
        raise SystemExit(f"FAILED: {says}")


def until(what, ask):
    end = time.monotonic() + PATIENCE
    while not ask():
        need(time.monotonic() < end, f"waited {PATIENCE} s in vain for: {what}")
        time.sleep(0.1)


class Node:
    """A process of the program."""

    def __init__(self, skein, home, name, *flags):
        self.name, self.dir, self.log = name, home / name, home / f"{name}.log"
        command = [skein, "start", "--name", name, "--data-dir", self.dir, "--mesh", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([*command, "--no-mdns", *flags], stdin=subprocess.DEVNULL,
                                            stdout=subprocess.PIPE, stderr=log, text=True)

    def ready(self):
        line = self.process.stdout.readline()
        need(line.startswith("ready "), f"{self.name} is not ready: {self.log.read_text(errors='replace')[-2000:]}")
        said = dict(re.findall(r"(\w+)=(\S+)", line))
        self.url, self.id = said["http"], said["node"]
        return self

    def status(self):
        with urllib.request.urlopen(f"{self.url}/api/v1/cluster", timeout=10) as answer:
            return json.load(answer)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Shell:
    """One bash for all commands, so that functions stay."""

    def __init__(self, home, cwd, env):
        self.script = home / "command"
        self.process = subprocess.Popen(["bash", "--noprofile", "--norc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, cwd=cwd, env=env, start_new_session=True)

    def run(self, command):
        """What it prints, and with what it ends."""
        self.script.write_text(f"{command}\n")
        self.process.stdin.write(f". {self.script} </dev/null; printf '\\n\\1%s\\n' $?\n".encode())
        self.process.stdin.flush()
        said, end, fd = b"", time.monotonic() + PATIENCE, self.process.stdout.fileno()
        while not (ended := re.search(rb"\n\x01(\d+)\n$", said)):
            heard = select.select([fd], [], [], max(0, end - time.monotonic()))[0] and os.read(fd, 1 << 16)
            need(heard, f"no end in {PATIENCE} s, or of the shell itself: {command}\n{said.decode(errors='replace')}")
            said += heard
        return said[:ended.start()].decode(errors="replace").replace("\r", "").rstrip(), int(ended[1])

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class World:
    """Nodes, the shell, and what is known of them."""

    def __init__(self, skein, name):
        self.name, self.nodes, self.shell = name, {}, None
        self.home = Path(tempfile.mkdtemp(prefix="skein-docs-"))
        try:
            self.begin(skein)
        except BaseException:
            self.end()
            raise

    def begin(self, skein):
        (self.home / "bin").mkdir()
        (self.home / "backups").mkdir()
        (self.home / "bin/skein").symlink_to(skein)
        (self.home / ".curlrc").write_text("no-progress-meter\nnoproxy = *\n")
        first = self.nodes["a"] = Node(skein, self.home, "a", "--new-cluster").ready()
        seed = first.status()["nodes"][0]["mesh_addr"]
        for name in {"one": "", "three": "bc", "four": "bcd"}[self.name]:
            command = [skein, "token", "create", "--role", "reader" if name == "d" else "voter", "--data-dir", first.dir]
            token = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            self.nodes[name] = Node(skein, self.home, name, "--join", token, "--seed", seed)
        for node in list(self.nodes.values())[1:]:
            node.ready()
        asked = self.nodes.get("c", first)
        if asked is not first:
            until("three voters, of which a writes", lambda: sorted(
                (node["role"], node["state"], node["is_writer"]) for node in asked.status()["nodes"] if node["name"] != "d"
            ) == [("voter", "up", False)] * 2 + [("voter", "up", True)] and asked.status()["writer"] == first.id)
        if "d" in self.nodes:
            self.nodes["d"].kill()
        self.shorts = [id[:6] for id in (first.status()["cluster_id"], *(node.id for node in self.nodes.values()))]
        self.places = {"localhost:8086": asked.url.removeprefix("http://"), "/backups": f"{self.home}/backups",
                       "/var/lib/skein": f"{self.home}/skein"}
        self.ids = {part: self.nodes[name].id for part, name in NODES.items() if name in self.nodes}
        env = {**os.environ, "PATH": f"{self.home}/bin:{os.environ['PATH']}", "SKEIN_DATA_DIR": str(asked.dir),
               "CURL_HOME": str(self.home), "LC_ALL": "C", **{name: str(node.process.pid) for name, node in self.nodes.items()}}
        self.shell = Shell(self.home, asked.dir, env)

    def end(self):
        for process in (self.shell, *self.nodes.values()):
            if process:
                process.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def run(self, command):
        for documented, real in {**self.ids, **self.places}.items():
            command = command.replace(documented, real)
        said, status = self.shell.run(f"timeout 3 {command}" if ENDLESS in command else command)
        for documented, real in self.places.items():
            said = said.replace(real, documented if documented.startswith("/") else real)
        return said, status

    def differs(self, command, documented):
        """What it printed instead of what is documented, or nothing."""
        end = time.monotonic() + 20
        while True:
            said, status = self.run(command)
            if not documented:
                return status and f"{said}\n(ended with {status})"
            compared = Comparison(self.shorts)
            if compared.holds(documented, said, ENDLESS in command):
                return self.ids.update(compared.ids)
            if not LOOKS.match(command) or time.monotonic() > end:
                return said or "(nothing)"
            time.sleep(0.2)


class Comparison:
    """Whether what is printed may stand for what is documented; and which ids stand for which."""

    def __init__(self, shorts):
        self.shorts, self.ids = "|".join(shorts), []

    def holds(self, documented, real, begins):
        if documented.startswith("HTTP/"):
            real = headers_of(documented, real)
        (documented, values), (real, real_values) = parts(by_name(documented)), parts(by_name(real))
        fits = self.text(documented, real, begins) and len(values) <= len(real_values) and all(map(self.value, values, real_values))
        # One id stands for one.
        return fits and len(set(self.ids)) == len(dict(self.ids))

    def text(self, documented, real, begins=False):
        pattern, ids = "", []
        for found in KIND.finditer(documented):
            instead = KINDS[found.lastgroup][1].replace("{}", re.escape(found[0].rstrip(".") or found[0])).replace("SHORT", self.shorts)
            if found.lastgroup in IDS:
                ids.append(found[0])
            pattern += f"({instead})" if found.lastgroup in IDS else f"(?:{instead})"
        matched = (re.match if begins else re.fullmatch)(pattern, real, re.S)
        if matched:
            self.ids += zip(ids, matched.groups())
        return bool(matched)

    def value(self, documented, real):
        kind = type(documented)
        if documented is None or kind is bool:
            return documented is real
        if kind in (int, float):
            return type(real) in (int, float)
        if kind is not type(real):
            return False
        if kind is str:
            return self.text(documented, real)
        known = [key for key in documented if key != ".."]
        fits = len(known) == len(real) or ".." in documented and len(known) < len(real)
        if kind is list:
            return fits and all(map(self.value, known, real))
        return fits and all(key in real and self.value(documented[key], real[key]) for key in known)


def headers_of(documented, real):
    """An answer with those headers only that are documented."""
    head, _, body = real.partition("\n\n")
    status, *lines = head.split("\n")
    names = re.findall(r"^[\w-]+: ", documented, re.M)
    return "\n".join([status, *(line for name in names for line in lines if line.startswith(name)), body]).rstrip()


def by_name(text):
    """Nodes come in the order of their ids, which are others each time: put rows and lists in that of their names."""
    lines = re.sub(LIST, lambda listed: ", ".join(sorted(listed[0].split(", "))), text).split("\n")
    rows = {at: named[1] for at, line in enumerate(lines) if (named := re.match(r"(?:[a-z2-7]{6} +)?([a-d])  +", line))}
    for at, row in zip(rows, [lines[at] for at in sorted(rows, key=rows.get)]):
        lines[at] = row
    return "\n".join(lines)


def parts(text):
    """The text with a zero for each value in JSON, and those values. One that is cut gets a key or element `..`."""
    text = re.sub(r"([{,]) *\.\.}", r'\1"..":0}', re.sub(r"([\[,]) *\.\.\]", r'\1".."]', text))
    plain, values, at = "", [], 0
    while at < len(text):
        try:
            value, at = json.JSONDecoder(strict=False).raw_decode(text, at) if text[at] in "{[" else (None, at)
        except ValueError:
            value = None
        if value is None:
            plain, at = plain + text[at], at + 1
        else:
            plain += "\0"
            values.append(value)
    return plain, values


@lru_cache
def unfinished(command):
    return command.endswith("\\") or subprocess.run(["bash", "-n", "-c", command], capture_output=True).returncode != 0


def commands(text, line):
    """Line, command and output of each."""
    found = []
    for number, text in enumerate(text.rstrip().split("\n"), line):
        if found and not found[-1][2] and unfinished(found[-1][1]):
            found[-1][1] += f"\n{text}"
        elif text.startswith("$ "):
            found.append([number, text[2:], []])
        else:
            need(found, f"line {number}: a block that is run begins with a command")
            found[-1][2].append(text)
    return [(number, command, "\n".join(output).rstrip()) for number, command, output in found]


@lru_cache
def missing(tool):
    there = subprocess.run(["bash", "-c", TOOLS[tool]], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    if not there:
        print(f"SKIPPED: documented commands with {tool}: it is not here", flush=True)
    return not there


def run_file(skein, path, counts):
    """What differs, as text."""
    text = (ROOT / path).read_text()
    blocks = list(BLOCK.finditer(text))
    need(len(blocks) == text.count("<!-- run:"), f"{path}: a comment `run:` that is not understood, or without a block")
    failures, world = [], None
    try:
        for block in blocks:
            new, name, before, body = block.groups()
            if new or not world or world.name != name:
                if world:
                    world.end()
                world = World(skein, name)
            line = text.count("\n", 0, block.start(4)) + 1
            for command in before.strip().splitlines():
                said, status = world.run(command)
                need(status == 0, f"{path}:{line}: before it {command} ended with {status}:\n{said}")
            for number, command, documented in commands(body, line):
                if any(missing(tool) for tool in TOOLS if re.search(rf"\b{tool}\b", command)):
                    continue
                counts["ran"] += 1
                counts["compared"] += bool(documented)
                if differs := world.differs(command, documented):
                    failures.append(f"{path}:{number}: $ {command}\n--- documented\n{documented or '(success)'}\n--- printed\n{differs}\n")
    finally:
        if world:
            world.end()
    counts["files"] += bool(blocks)
    return failures


def main():
    gone = [tool for tool in ("bash", "curl") if not shutil.which(tool)]
    if gone:
        return print(f"SKIPPED: documented commands: needs {', '.join(gone)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in [name for name in os.environ if name.startswith("SKEIN_")]:
        del os.environ[name]
    skein = Path(sys.argv[1]).resolve()
    files = sys.argv[2:] or ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
    counts = dict.fromkeys(("ran", "compared", "files"), 0)
    failures = [failure for path in files for failure in run_file(skein, path, counts)]
    need(not failures, "\n" + "\n".join(failures))
    print(f"documented commands: {counts['ran']} of {counts['files']} files ran, what {counts['compared']} of them print is as documented")


if __name__ == "__main__":
    main()
