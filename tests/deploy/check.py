"""Every file of deploy/ against what knows its format, and the program against what they tell it.

Run by run.sh, which brings the tools.
"""

import io
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import dockerfile_parse
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SKEIN = os.environ["SKEIN"]
PATIENCE = 60


def need(so, says):
    if not so:
        raise SystemExit(f"FAILED: {says}")


def run(*command, **more):
    ran = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    need(ran.returncode == 0, f"{' '.join(map(str, command))} ended with {ran.returncode}:\n{ran.stdout}")
    return ran.stdout


def skipped(what, why):
    print(f"SKIPPED: {what}: {why}")


def settings(name, args, env, files):
    """The program takes the arguments and the variables that the file gives it, and makes of them what is meant."""
    with tempfile.TemporaryDirectory() as home:
        home = pathlib.Path(home)
        args = list(args)
        for at, word in enumerate(args):
            if word.startswith("@"):
                need(word[1:] in files, f"{name}: {word[1:]} is mounted nowhere")
                token = home / "token"
                token.write_text(run(SKEIN, "token", "generate"))
                args[at] = f"@{token}"
        clean = {"PATH": os.environ["PATH"], "HOME": str(home), **env}
        shown = run(SKEIN, *args, "--check", env=clean)
        for key, value in env.items():
            # SKEIN_HTTP_HOSTS is http.hosts; a list is shown as one.
            for part in value.split(","):
                need(part in shown, f"{name}: {key}={value} is not in force:\n{shown}")
        return shown


def container():
    run("hadolint", DEPLOY / "Containerfile")
    parsed = dockerfile_parse.DockerfileParser(fileobj=io.BytesIO((DEPLOY / "Containerfile").read_bytes()))
    steps = parsed.structure
    last = max(at for at, step in enumerate(steps) if step["instruction"] == "FROM")
    final = {step["instruction"]: step["value"] for step in steps[last:]}
    need(re.fullmatch(r"[1-9]\d*:[1-9]\d*", final.get("USER", "")), "the image runs as root, or as a name that Kubernetes cannot judge")
    for instruction in ("ENTRYPOINT", "CMD", "VOLUME"):
        need(final[instruction].startswith("["), f"{instruction} needs a shell, and there is none")
    check = json.loads(final["HEALTHCHECK"].split("CMD", 1)[1])
    entry = json.loads(final["ENTRYPOINT"])
    need(check[0] == entry[0], "the health check is another program than the image has")
    copied = [step["value"].split() for step in steps if step["instruction"] == "COPY" and "--from" not in step["value"]]
    for path in (path for words in copied for path in words[:-1]):
        need((ROOT / path).exists(), f"COPY {path}: not in the source")
    ignored = (ROOT / ".dockerignore").read_text().split()
    need("/target" in ignored and "/.git" in ignored, ".dockerignore lets what was built into the context")
    # What the build needs: every source that is compiled in lies in what is copied.
    built = re.findall(r'path = "([^"]+)"', (ROOT / "Cargo.toml").read_text())
    included = {pathlib.PurePath(path) for path in built if path != "."}
    for source in (ROOT / "src").rglob("*.rs"):
        for path in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            included.add((source.parent / path).resolve().relative_to(ROOT))
    places = [pathlib.PurePath(path) for words in copied for path in words[:-1]]
    for path in included:
        need(any(path == place or place in path.parents for place in places), f"{path} is compiled in and not copied")
    env = {key: value for key, value in parsed.envs.items() if key.startswith("SKEIN_")}
    settings("Containerfile", json.loads(final["CMD"]), env, ())
    health(check[1:])
    return env


def health(command):
    """The health check says yes of a node that runs and no where none does."""
    with tempfile.TemporaryDirectory() as home:
        env = {"PATH": os.environ["PATH"], "SKEIN_DATA_DIR": f"{home}/node"}
        asked = lambda: subprocess.run([SKEIN, *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        need(asked() != 0, "the health check passes without a node")
        with Node(home, env):
            need(asked() == 0, "the health check fails for a node that runs")


class Node:
    """One node, with what it says to a service manager."""

    def __init__(self, home, env):
        self.home, self.env = home, env

    def __enter__(self):
        self.log = open(f"{self.home}/log", "wb")
        self.process = subprocess.Popen(
            [SKEIN, "start", "--data-dir", f"{self.home}/node", "--mesh", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-mdns",
             "--new-cluster"],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env=self.env,
        )
        ready = self.process.stdout.readline()
        need(ready.startswith("ready "), f"the node did not start: {pathlib.Path(self.log.name).read_text()}")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()


def service():
    """The unit as systemd reads it, installed by the program; and what the program tells a service manager."""
    with tempfile.TemporaryDirectory() as home:
        run(SKEIN, "service", "install", "--root", home)
        unit = pathlib.Path(home) / "etc/systemd/system/skein.service"
        need(unit.read_text() == (DEPLOY / "skein.service").read_text(), "skein service install brings another unit")
        need(run(SKEIN, "service", "print") == unit.read_text(), "skein service print shows another unit")
        if shutil.which("systemd-analyze"):
            # It looks for the program, below the root that it is given.
            run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={home}", "skein.service")
            score = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
            level = float(re.search(r"Overall exposure level.*?: ([\d.]+)", score)[1])
            need(level < 2.0, f"systemd judges the unit's exposure as {level}")
        else:
            skipped("systemd unit", "systemd-analyze is not here")
    for abstract in (False, True):
        notify(abstract)


def notify(abstract):
    with tempfile.TemporaryDirectory() as home, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"@skein-deploy-{os.getpid()}" if abstract else f"{home}/notify"
        manager.bind(name.replace("@", "\0", 1))
        manager.settimeout(PATIENCE)
        env = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"}

        def hear(word):
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                said = manager.recv(4096).decode().split("\n")
                if word in said:
                    return said
            need(False, f"{name} did not hear {word}")

        with Node(home, env) as node:
            said = hear("READY=1")
            need(any(line.startswith("STATUS=ready http=") for line in said), f"no status: {said}")
            for _ in range(3):
                hear("WATCHDOG=1")
            node.process.terminate()
            hear("STOPPING=1")
            need(node.process.wait(PATIENCE) == 0, "the node did not stop well")


def compose(image):
    path = DEPLOY / "compose.yaml"
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    spec = yaml.safe_load(path.read_text())
    services = spec["services"]
    need(len(services) == 3, "three nodes")
    seeds = [f"{name}:7400" for name in services]
    taken = set()
    for name, service in services.items():
        env = {**image, **{key: str(value) for key, value in service["environment"].items()}}
        need(env["SKEIN_NODE_NAME"] == service["hostname"] == name, f"{name} has another name")
        need(env["SKEIN_DISCOVERY_SEEDS"].split(",") == seeds, f"{name} does not look for all three")
        volumes = {volume.split(":")[0] for volume in service["volumes"]}
        need(not volumes & taken and volumes <= set(spec["volumes"]), f"{name} shares its data, or has none")
        taken |= volumes
        files = [f"/run/secrets/{secret}" for secret in service["secrets"]]
        shown = settings(f"compose.yaml {name}", service["command"], env, files)
        need("bootstrap_expect = 3" in shown, f"{name} does not wait for three")
        need(all(port.startswith("127.0.0.1:") for port in service["ports"]), f"{name} is open to the network")


def kubernetes(image):
    path = DEPLOY / "kubernetes.yaml"
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    for document in documents:
        # Of the oldest version that still gets fixes, and of the newest that the schemas know.
        for version in ("1.33", "1.37"):
            kubernetes_validate.validate(document, version, strict=True)
    by_name = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    headless = by_name["Service", "skein"]["spec"]
    need(headless["clusterIP"] == "None" and headless["publishNotReadyAddresses"], "nodes are found when they are ready only")
    stateful = by_name["StatefulSet", "skein"]["spec"]
    pod = stateful["template"]["spec"]
    labels = stateful["template"]["metadata"]["labels"]
    for document in (by_name["Service", "skein"], by_name["Service", "skein-http"]):
        need(document["spec"]["selector"].items() <= labels.items(), f"{document['metadata']['name']} finds no pod")
    budget = by_name["PodDisruptionBudget", "skein"]["spec"]
    need(budget["maxUnavailable"] == 1 and budget["selector"]["matchLabels"].items() <= labels.items(), "no budget for disruptions")
    need(stateful["serviceName"] == "skein" and stateful["podManagementPolicy"] == "Parallel", "pods that make a cluster wait for each other")
    [node] = pod["containers"]
    need(pod["securityContext"]["runAsNonRoot"] and node["securityContext"]["readOnlyRootFilesystem"], "not hardened")
    ports = {port["name"] for port in node["ports"]}
    described = json.loads((ROOT / "src/http/openapi.json").read_text())["paths"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = node[probe]["httpGet"]
        need(asked["path"] in described and asked["port"] in ports, f"{probe} asks what nobody answers")
    mounts = [mount["mountPath"] for mount in node["volumeMounts"]]
    env = {**image, **{entry["name"]: entry.get("value", "skein-0") for entry in node["env"]}}
    need(any(env["SKEIN_DATA_DIR"].startswith(mount) for mount in mounts), "data lies on no volume")
    need(env["SKEIN_DISCOVERY_SEEDS"] == ",".join(f"skein-{n}.skein:7400" for n in range(3)), "they do not look for each other")
    shown = settings("kubernetes.yaml", node["args"], env, [f"{mount}/token" for mount in mounts])
    need(f"bootstrap_expect = {stateful['replicas']}" in shown, "they wait for another number")


def prometheus():
    alerts = DEPLOY / "prometheus/skein-alerts.yml"
    board = json.loads((DEPLOY / "grafana/skein.json").read_text())
    expressions = []
    ids, cells = set(), set()
    for panel in board["panels"]:
        need(panel["id"] not in ids, f"panel {panel['id']} is there twice")
        ids.add(panel["id"])
        grid = panel["gridPos"]
        need(grid["x"] + grid["w"] <= 24, f"{panel['title']} is wider than the board")
        here = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        need(not here & cells, f"{panel['title']} lies on another panel")
        cells |= here
        if panel["type"] == "row":
            continue
        need(panel["datasource"]["uid"] == "${datasource}" and panel["description"], f"{panel['title']} asks a source of its own")
        expressions += [target["expr"] for target in panel["targets"]]
    expressions += [note["expr"] for note in board["annotations"]["list"]]
    variables = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval"}
    used = set(re.findall(r"\$(\w+)", " ".join(expressions)))
    need(used <= variables, f"variables that the board does not have: {used - variables}")
    for name in ("grafana/provisioning/dashboards/skein.yaml", "grafana/provisioning/datasources/skein.yaml"):
        need(yaml.safe_load((DEPLOY / name).read_text())["apiVersion"] == 1, f"{name} is none of Grafana's")
    if not shutil.which("promtool"):
        return skipped("alert rules and expressions of the board", "promtool is not to be had")
    run("promtool", "check", "rules", alerts)
    run("promtool", "test", "rules", ROOT / "tests/deploy/alerts_test.yml")
    with tempfile.TemporaryDirectory() as home:
        home = pathlib.Path(home)
        # The board's expressions as recording rules: promtool parses them.
        plain = [re.sub(r"\$\w+", lambda name: "5m" if name[0] == "$__rate_interval" else "x", text) for text in expressions]
        rules = [{"record": f"board:{number}", "expr": text} for number, text in enumerate(plain)]
        (home / "board.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
        run("promtool", "check", "rules", home / "board.yml")
        shutil.copy(alerts, home)
        (home / "prometheus.yml").write_text((DEPLOY / "prometheus/prometheus.yml").read_text())
        run("promtool", "check", "config", "--syntax-only", home / "prometheus.yml")


def release():
    """The script that makes a release, on the program at hand."""
    with tempfile.TemporaryDirectory() as home:
        made = run(DEPLOY / "release.sh", home, env={**os.environ, "SKEIN": SKEIN, "SKEIN_GZIP": "1"}).split()[-1]
        run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=home)
        need((pathlib.Path(home) / made).is_file(), f"{made} is not there")
        run("tar", "-xzf", made, cwd=home)
        names = [str(path.relative_to(home)) for path in pathlib.Path(home).rglob("*") if path.is_file() and path.name != made]
        names.remove("SHA256SUMS")
        for name in ("bin/skein", "skein.service", "completions/skein.bash", "completions/_skein", "completions/skein.fish",
                     "man/man1/skein.1", "man/man1/skein-node-drain.1",
                     "LICENSE-MIT", "LICENSE-APACHE", "README.md"):
            need(any(there.endswith(f"/{name}") for there in names), f"{name} is not in the release: {names}")
        [top] = {name.split("/")[0] for name in names}
        need(run(f"{home}/{top}/bin/skein", "--version").startswith("skein "), "the released program does not run")


def timed(what, *args):
    began = time.monotonic()
    made = what(*args)
    print(f"{what.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    return made


def main():
    run("yamllint", "--strict", "-c", ROOT / "tests/deploy/yamllint.yaml", DEPLOY, ROOT / "tests/deploy")
    image = timed(container)
    timed(compose, image)
    timed(kubernetes, image)
    timed(service)
    timed(prometheus)
    timed(release)


main()
