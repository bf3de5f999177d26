#!/usr/bin/env python3
"""The page of a cluster in headless Chromium: loads, updates while a node dies, runs a query, makes a token.

    tests/page/page.py SKEIN [DIRECTORY FOR SCREENSHOTS]

Needs chromium, chromedriver and the packages of requirements.txt.
"""

import base64
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

MISSING = [tool for tool in ("chromium", "chromedriver") if not shutil.which(tool)]
try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
except ImportError:
    MISSING.append("selenium (pip install -r tests/page/requirements.txt)")

# Of anything that must come about; nothing is measured against it.
PATIENCE = 40


def until(what, ask, patience=PATIENCE):
    """The first true answer; a page that is being redrawn may also fail to answer."""
    end, last = time.monotonic() + patience, None
    while time.monotonic() < end:
        try:
            last = ask()
            if last:
                return last
        except Exception as error:  # noqa: BLE001
            last = error
        time.sleep(0.1)
    raise AssertionError(f"waited {patience} s in vain for: {what}; last: {last!r}")


def free(kind):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """A process of the program."""

    def __init__(self, skein, home, name, listen="127.0.0.1"):
        self.skein, self.name, self.dir = skein, name, home / name
        self.mesh = f"127.0.0.1:{free(socket.SOCK_DGRAM)}"
        self.port = free(socket.SOCK_STREAM)
        self.listen = f"{listen}:{self.port}"
        self.log = open(home / f"{name}.log", "ab")
        self.process = None

    url = property(lambda self: f"http://127.0.0.1:{self.port}")

    def start(self, line=("start",), *flags):
        command = [self.skein, *line, "--name", self.name, "--data-dir", str(self.dir), "--mesh", self.mesh]
        command += ["--http", self.listen, "--no-mdns", *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log)
        ready = self.process.stdout.readline().decode()
        assert ready.startswith("ready "), f"{self.name} is not ready: {ready!r}"

    def ask(self, path, body=None):
        with urllib.request.urlopen(f"{self.url}{path}", body, timeout=10) as answer:
            return answer.read()

    def status(self):
        return json.loads(self.ask("/api/v1/cluster"))

    def token(self, uses, role="voter"):
        command = [self.skein, "token", "create", "--uses", str(uses), "--role", role, "--data-dir", str(self.dir)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait(30)
        return self.process.returncode


class Feed(threading.Thread):
    """Writes three series to a node, ten times a second, until it is told to stop; and as much beside them as
    makes the links work."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.stopping = node, threading.Event()

    def run(self):
        beat = 0
        while not self.stopping.wait(0.1):
            beat += 1
            lines = [f"cpu,host={h} usage={40 + 9 * i + 12 * ((beat // (7 + i)) % 3) + beat % 5}"
                     for i, h in enumerate(("north", "south", "west"))]
            try:
                self.node.ask("/api/v3/write_lp?db=home", "\n".join(lines).encode())
                load = [f"load,n={n} value={beat * n}" for n in range(200)]
                self.node.ask("/api/v3/write_lp?db=load", "\n".join(load).encode())
            except OSError:
                pass


def page_rgb(colour):
    parts = [float(part) for part in colour[colour.index("(") + 1:-1].split(",")[:3]]
    return sum(parts) / len(parts)


class Page:
    """A tab."""

    def __init__(self, profile):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", f"--user-data-dir={profile}",
                     "--force-prefers-reduced-motion", "--host-resolver-rules=MAP evil.example 127.0.0.1"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.size(1280, 900)

    def size(self, width, height, phone=False, scale=1):
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def colours(self, scheme):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        time.sleep(1.2)

    def paper(self):
        """How bright the ground is, of 255."""
        return page_rgb(self.js("return getComputedStyle(document.body).backgroundColor"))

    def open(self, url):
        self.driver.get(url)

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.find(selector).text

    def all(self, selector):
        return [one.text for one in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def js(self, code):
        return self.driver.execute_script(code)

    def complaints(self):
        """What the browser holds against the page: errors, and what the policy refused."""
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]

    def shot(self, directory, name, whole=True):
        if directory is None:
            return
        self.js("scrollTo(0, 0)")
        options = {"format": "webp", "quality": 70, "captureBeyondViewport": whole}
        if whole:
            size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
        (directory / f"{name}.webp").write_bytes(base64.b64decode(image))


def loads(page, node):
    page.open(node.url)
    until("three nodes that are up", lambda: "All 3 nodes are up. One voter may fail" in page.text("#verdict-head"))
    assert page.find("#verdict").get_attribute("data-level") == "ok"
    until("life", lambda: page.text("#live-text") == "live")
    until("a graph of three nodes", lambda: len(page.all("#graph .node")) == 3)
    trips = until("a round trip on each line", lambda: [t for t in page.all("#graph .edge text") if t.endswith(" ms")])
    assert len(trips) == 3, trips
    until("a lane on a line", lambda: [t for t in page.all("#graph .edge .flow") if t.endswith("kB/s live")])
    roles = page.all("#graph .node .role")
    assert sorted(roles) == ["voter", "voter", "writer"], roles
    until("a rate of ingest", lambda: float(page.text("#ingest-now").split()[0].replace(",", "")) > 5)
    assert page.js("return document.querySelectorAll('#ingest canvas, #queries canvas').length") == 2
    # Every field has a name for those who do not see it.
    nameless = page.js("""return [...document.querySelectorAll('input, select, textarea')]
        .filter((field) => !field.labels?.length).map((field) => field.id)""")
    assert nameless == [], nameless
    # The switch stands over what the system says, and by the keyboard too.
    paper = {}
    for theme in ("light", "dark", ""):
        page.find("#theme").send_keys(Keys.ENTER)
        assert page.js("return document.documentElement.dataset.theme ?? ''") == theme
        paper[theme] = page.paper()
    assert paper["dark"] < 60 < 200 < paper["light"], paper
    for scheme, dark in (("dark", True), ("light", False)):
        page.colours(scheme)
        assert (page.paper() < 60) == dark, (scheme, page.paper())


def runs_a_query(page):
    until("the database", lambda: "home" in page.all("#database option"))
    until("the table", lambda: "cpu" in page.all("#tables button"))
    page.find("#sql").clear()
    page.find("#sql").send_keys("SELECT time, host, usage FROM cpu ORDER BY time DESC LIMIT 300", Keys.CONTROL, Keys.ENTER)
    until("an answer", lambda: " rows" in page.text("#answer-says"))
    assert page.all("#answer thead th") == ["time", "host", "usage"]
    rows = page.driver.find_elements(By.CSS_SELECTOR, "#answer tbody tr")
    assert len(rows) > 20, len(rows)
    assert page.js("return document.querySelector('#answer-chart canvas') !== null")
    assert "north" in page.find("#answer-chart").get_attribute("aria-label")
    # Wrong SQL is answered in the node's words, and breaks nothing.
    page.find("#sql").clear()
    page.find("#sql").send_keys("SELECT nothing FROM nowhere", Keys.CONTROL, Keys.ENTER)
    until("an error", lambda: "nowhere" in page.text("#answer-says.bad"))
    page.find("#sql").clear()
    page.find("#sql").send_keys("SELECT time, host, usage FROM cpu ORDER BY time DESC LIMIT 300")
    page.find("#console button[type=submit]").click()
    until("an answer again", lambda: " rows" in page.text("#answer-says"))


def updates_while_the_writer_dies(page, nodes, own):
    status = own.status()
    writer = next(node["name"] for node in status["nodes"] if node["is_writer"])
    epoch = status["epoch"]
    assert writer != own.name, "the page is asked of a node that stays"
    page.js("window.loadedOnce = true")
    terms = len(page.all("#terms tbody tr"))
    nodes[writer].end(signal.SIGKILL)
    head = until("the death", lambda: f"{writer} is down: last heard" in page.text("#verdict-head") and page.text("#verdict-head"))
    assert "Writes go on with 2 of 3 voters." in head, head
    assert "If one more voter stops, writes stop." in page.text("#verdict-more")
    until("another writer", lambda: len(page.all("#terms tbody tr")) == terms + 1)
    first = page.all("#terms tbody tr:first-child td")
    assert first[0] == str(epoch + 1) and first[1] != writer and "silent" in first[4], first
    until("a dead node in the graph", lambda: len(page.all("#graph .node.down")) == 1)
    until("ingest that goes on", lambda: float(page.text("#ingest-now").split()[0].replace(",", "")) > 5)
    assert page.js("return window.loadedOnce"), "without loading it again"
    return writer


def makes_a_token(page, nodes, own, home, skein, founder):
    page.find("#join button[type=submit]").click()
    until("the question for an admin token", lambda: page.find("#ask").is_displayed())
    assert "admin.token" in page.text("#ask-why"), "on loopback too"
    page.find("#ask-token").send_keys("wrong", Keys.ENTER)
    until("a refusal", lambda: page.find("#ask").is_displayed() and "not accepted" in page.text("#ask-why"))
    secret = (founder.dir / "admin.token").read_text().strip()
    page.find("#ask-token").send_keys(secret, Keys.ENTER)
    until("the line", lambda: page.find("#line-wan").get_attribute("value"))
    assert page.find("#line-lan").get_attribute("value").startswith("skein start --join skein1-voter-")
    line = shlex.split(page.find("#line-wan").get_attribute("value"))
    # Gone with the tab, and nowhere else.
    assert page.js("return sessionStorage.getItem('skein.admin')") == secret
    assert secret not in page.js("return JSON.stringify(localStorage) + document.cookie + location.href")
    assert page.find("#ask-token").get_attribute("value") == ""
    # The very line, as it is pasted on another machine.
    nodes["d"] = Node(skein, home, "d")
    nodes["d"].start(line[1:])
    until("the fourth node", lambda: len(page.all("#graph .node")) == 4)


def shows_a_gateway(page, nodes, home, skein, own):
    nodes["e"] = Node(skein, home, "e")
    nodes["e"].start(("start",), "--join", own.token(1, "gateway"), "--seed", own.mesh)
    until("the gateway", lambda: page.all("#graph .node.gateway .role") == ["gateway"])
    until("whom it hears", lambda: "view" in page.text("#graph .node.gateway .state"))
    assert page.text("#graph .node.gateway .name") == "e"


def asks_for_a_token_elsewhere(page, guarded, founder):
    page.open(guarded.url)
    until("the question for a token", lambda: page.find("#ask").is_displayed())
    # Another address is another origin: nothing was kept for it.
    assert "API token" in page.text("#ask-title")
    page.find("#ask-token").send_keys((founder.dir / "admin.token").read_text().strip(), Keys.ENTER)
    until("the cluster", lambda: page.text("#live-text") == "live" and len(page.all("#graph .node")) == 5)
    page.driver.refresh()
    until("the cluster again, without being asked", lambda: page.text("#live-text") == "live")
    assert not page.find("#ask").is_displayed()
    assert [line for line in page.complaints() if "401" not in line] == []


def foreign_names_stay_out(page, own):
    """A page elsewhere whose name is pointed at this machine."""
    page.open(f"http://evil.example:{own.port}/")
    said = page.text("body")
    assert "not one of this node's" in said and "evil.example" in said, said
    page.complaints()


def says_that_its_node_is_gone(page, own):
    page.open(own.url)
    until("life", lambda: page.text("#live-text") == "live")
    assert own.end(signal.SIGTERM) == 0, "with a stream open"
    until("the end", lambda: "does not answer" in page.text("#verdict-head"))


def main():
    if MISSING:
        print(f"SKIPPED: the page in Chromium: needs {', '.join(MISSING)}")
        return
    skein = str(Path(sys.argv[1]).resolve())
    shots = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    for name in [name for name in os.environ if name.startswith("SKEIN_")]:
        del os.environ[name]
    home = Path(tempfile.mkdtemp(prefix="skein-page-"))
    nodes = {name: Node(skein, home, name) for name in "abc"}
    page = None
    try:
        nodes["a"].start(("start",), "--new-cluster")
        token = nodes["a"].token(2)
        for name in "bc":
            nodes[name].start(("start",), "--join", token, "--seed", nodes["a"].mesh)
        until("three voters", lambda: [n["role"] for n in nodes["a"].status()["nodes"]] == ["voter"] * 3)
        writer = next(n["name"] for n in nodes["a"].status()["nodes"] if n["is_writer"])
        own = next(node for name, node in nodes.items() if name != writer)
        feed = Feed(own)
        feed.start()
        page = Page(home / "profile")
        loads(page, own)
        runs_a_query(page)
        time.sleep(15 if shots else 0)
        page.shot(shots, "page-light")
        page.colours("dark")
        page.shot(shots, "page-dark")
        died = updates_while_the_writer_dies(page, nodes, own)
        page.shot(shots, "page-node-down", whole=False)
        makes_a_token(page, nodes, own, home, skein, nodes["a"])
        shows_a_gateway(page, nodes, home, skein, own)
        page.colours("light")
        page.size(390, 844, phone=True)
        time.sleep(1.2)
        page.shot(shots, "page-phone", whole=False)
        wide = page.js("return document.documentElement.scrollWidth")
        assert wide <= 390, f"{wide} pixels of 390: the page moves sideways on a phone"
        page.size(1280, 900)
        complaints = [line for line in page.complaints() if "401" not in line and "404" not in line and "400" not in line]
        assert complaints == [], complaints
        foreign_names_stay_out(page, own)
        guarded = nodes[died]
        guarded.listen = f"0.0.0.0:{guarded.port}"
        guarded.start()
        asks_for_a_token_elsewhere(page, guarded, nodes["a"])
        says_that_its_node_is_gone(page, own)
        print("the page: loads, updates while the writer dies, runs a query, makes a token that lets a node in, shows a gateway, asks for a token elsewhere")
    except BaseException:
        if page and shots:
            page.shot(shots, "failed")
        for name in nodes:
            print(f"---- end of {name}'s log", (home / f"{name}.log").read_text(errors="replace")[-2000:], file=sys.stderr)
        raise
    finally:
        if page:
            page.driver.quit()
        for node in nodes.values():
            if node.process and node.process.poll() is None:
                node.process.kill()
                node.process.wait()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
