"""The clients that write: how each does it, and how each brings its API token."""

import gzip
import json
import os
import shutil
import subprocess
import time
import urllib.parse

import influxdb
import influxdb_client
import influxdb_client_3
import msgpack
import requests
from influxdb_client.client.write_api import SYNCHRONOUS, WriteOptions, WritePrecision

from points import COLUMNS, DATABASE, fields, line, tags

# Of one request; longer than a failover takes.
REQUEST = 20.0


class Refused(Exception):
    """The write was not acknowledged; a user sends it again."""


class Influx1:
    """influxdb, of InfluxDB 1: asks for its database on connect, as Telegraf does. Basic, by way of requests."""

    name = "influxdb"

    def __init__(self, at):
        host = urllib.parse.urlsplit(at.url)
        # It verifies nothing unless told to.
        tls = {"ssl": True, "verify_ssl": str(at.ca)} if at.ca else {}
        self.client = influxdb.InfluxDBClient(
            host.hostname, host.port, "user", at.token, DATABASE, timeout=REQUEST, **tls
        )
        assert self.client.ping(), "ping names no version"
        self.client.create_database(DATABASE)

    def write(self, table, points):
        def typed(point):
            # It has no type for unsigned integers: those go as lines, to the same point.
            known = {name: value for name, value in fields(point).items() if name != "u"}
            return {"measurement": table, "time": point["time"], "tags": tags(point), "fields": known}

        try:
            with_fields = [typed(point) for point in points]
            self.client.write_points([p for p in with_fields if p["fields"]], time_precision="n")
            unsigned = [{**point, **dict.fromkeys("fibs")} for point in points if point["u"] is not None]
            if unsigned:
                self.client.write([line(table, point) for point in unsigned], {"db": DATABASE}, protocol="line")
        except (influxdb.exceptions.InfluxDBServerError, requests.RequestException) as error:
            raise Refused from error

    def databases(self):
        return [database["name"] for database in self.client.get_list_database()]


class Influx2:
    """influxdb-client, of InfluxDB 2, one request per call. Token."""

    name = "influxdb-client"

    def __init__(self, at):
        tls = {"ssl_ca_cert": str(at.ca)} if at.ca else {}
        timeout = int(REQUEST * 1000)
        self.client = influxdb_client.InfluxDBClient(
            at.url, token=at.token, org="org", timeout=timeout, enable_gzip=True, **tls
        )
        self.api = self.client.write_api(write_options=SYNCHRONOUS)

    def healthy(self):
        return self.client.ping() and self.client.health().status == "pass"

    @staticmethod
    def points(table, points):
        for point in points:
            yield influxdb_client.Point.from_dict(
                {"measurement": table, "tags": tags(point), "fields": fields(point), "time": point["time"]},
                WritePrecision.NS,
                field_types={"u": "uint"},
            )

    def write(self, table, points):
        try:
            self.api.write(DATABASE, record=list(self.points(table, points)))
        except (influxdb_client.rest.ApiException, OSError) as error:
            raise Refused from error

    def stream(self, table, points):
        """Batches, and its own retries, as its documentation has it; nothing may be given up."""
        lost = []
        options = WriteOptions(batch_size=7, flush_interval=100, retry_interval=200, max_retries=20, exponential_base=1)
        gave_up = {"error_callback": lambda batch, data, error: lost.append(error)}
        with self.client.write_api(write_options=options, **gave_up) as api:
            for point in self.points(table, points):
                api.write(DATABASE, record=point)
                time.sleep(0.05)
        assert not lost, f"{self.name} gave up: {lost[0]!r}"


class Influx3:
    """influxdb3-python: writes over HTTP with Token, asks over Flight with Bearer."""

    name = "influxdb3-python"

    def __init__(self, at):
        options = influxdb_client_3.write_client_options(write_options=influxdb_client_3.SYNCHRONOUS)
        self.client = influx3(at, write_client_options=options)

    def write(self, table, points):
        def typed(point):
            known = {"measurement": table, "tags": tags(point), "fields": fields(point), "time": point["time"]}
            return influxdb_client_3.Point.from_dict(known, field_types={"u": "uint"})

        try:
            self.client.write([typed(point) for point in points], write_precision="ns")
        except (influxdb_client_3.InfluxDBError, OSError) as error:
            raise Refused from error


class JavaScript:
    """@influxdata/influxdb-client, in batches and with its own retries. Token."""

    name = "@influxdata/influxdb-client"
    # Its integers are numbers of JavaScript.
    largest = 2**53 - 1

    def __init__(self, at):
        self.at = at

    @staticmethod
    def missing():
        return None if shutil.which("node") and os.path.isdir(os.environ["CLIENTS_NODE"]) else "needs node and npm"

    def write(self, table, points, **options):
        # Unsigned integers as text: it takes those whole.
        def plain(point):
            known = {name: str(value) if name == "u" else value for name, value in fields(point).items()}
            return {"time": str(point["time"]), "tags": tags(point), "fields": known}

        # The certificate's name where it is not that of the URL.
        tls = {"ca": self.at.ca.read_text(), "servername": self.at.name or ""} if self.at.ca else {}
        asked = {"url": self.at.url, "token": self.at.token, "tls": tls, "database": DATABASE, "table": table}
        asked |= {"points": [plain(point) for point in points], "retries": 0, "pause": 0, **options}
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "javascript.mjs")
        ran = subprocess.run(["node", script], input=json.dumps(asked), text=True, capture_output=True, timeout=120)
        if ran.returncode != 0:
            raise Refused(ran.stderr)

    def stream(self, table, points):
        self.write(table, points, retries=20, pause=50)


class Arc:
    """MessagePack columns, as Arc's clients send them. x-api-key."""

    name = "arc"

    def __init__(self, at):
        self.at = at

    def write(self, table, points):
        columns = {name: [point[name] for point in points] for name in COLUMNS}
        columns = {name: values for name, values in columns.items() if any(v is not None for v in values)}
        body = msgpack.packb({"m": table, "columns": columns, "tag_keys": ["host", "room"]})
        arc(self.at, "/api/v1/write/msgpack", gzip.compress(body))


class Curl:
    """curl, and whoever writes line protocol by hand. Basic."""

    name = "curl"

    def __init__(self, at):
        self.at = at

    def write(self, table, points):
        body = "\n".join(line(table, point) for point in points)
        path = f"/api/v3/write_lp?db={DATABASE}&precision=nanosecond"
        options = ["--user", f"curl:{self.at.token}", "--data-binary", "@-"]
        curl(self.at, path, *options, body=body)


WRITERS = [Influx1, Influx2, Influx3, JavaScript, Arc, Curl]
# Those that can be told the name in the certificate; the others check that of the URL, so that a node's own
# certificate, which names mesh.internal, serves them only under that name.
NAMED_WRITERS = [JavaScript, Curl]


# ---------------------------------------------------------------------------------------------


def influx3(at, **options):
    """Its writes check the name of the URL; Flight can be told another."""
    if at.ca:
        options |= {"ssl_ca_cert": str(at.ca)}
    if at.name:
        options |= {"flight_client_options": {"override_hostname": at.name}}
    return influxdb_client_3.InfluxDBClient3(host=at.url, token=at.token, database=DATABASE, **options)


def curl(at, path, *options, body=None):
    url = at.url
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", str(REQUEST), *options]
    if at.ca:
        command += ["--cacert", at.ca]
    if at.name:
        host = urllib.parse.urlsplit(url).netloc
        url = f"https://{at.name}"
        command += ["--connect-to", f"{at.name}:443:{host}"]
    ran = subprocess.run([*command, url + path], input=body, text=True, capture_output=True)
    if ran.returncode != 0:
        raise Refused(f"{ran.stderr} {ran.stdout}")
    return ran.stdout


def arc(at, path, body):
    """A request as Arc's clients send it."""
    try:
        headers = {"x-arc-database": DATABASE, "x-api-key": at.token}
        answer = requests.post(at.url + path, data=body, headers=headers, timeout=REQUEST, verify=roots(at))
        answer.raise_for_status()
    except requests.RequestException as error:
        text = error.response.text if error.response is not None else ""
        raise Refused(f"{error} {text}") from error
    return answer


def roots(at):
    """For requests."""
    return str(at.ca) if at.ca else True
