"""The clients: how each writes points, and how each reads them back."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import duckdb
import influxdb
import influxdb_client
import influxdb_client_3
import msgpack
import pandas
import pyarrow
import pyarrow.flight
import pyarrow.parquet
import requests
from influxdb_client.client.write_api import SYNCHRONOUS, WriteOptions, WritePrecision

from points import COLUMNS, DATABASE, fields, line, tags

# Of one request; longer than a failover takes.
REQUEST = 20.0


class Refused(Exception):
    """The write was not acknowledged; a user sends it again."""


# ---------------------------------------------------------------------------------------------
# Writers. `write` returns when all points are acknowledged, or raises Refused.


class Influx1:
    """influxdb, of InfluxDB 1: asks for its database on connect, as Telegraf does."""

    name = "influxdb"

    def __init__(self, url):
        at = urllib.parse.urlsplit(url)
        self.client = influxdb.InfluxDBClient(at.hostname, at.port, "user", "password", DATABASE, timeout=REQUEST)
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
    """influxdb-client, of InfluxDB 2, one request per call."""

    name = "influxdb-client"

    def __init__(self, url):
        timeout = int(REQUEST * 1000)
        self.client = influxdb_client.InfluxDBClient(url, token="unused", org="org", timeout=timeout, enable_gzip=True)
        assert self.client.ping() and self.client.health().status == "pass"
        self.api = self.client.write_api(write_options=SYNCHRONOUS)

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
    """influxdb3-python: writes over HTTP, asks over Flight."""

    name = "influxdb3-python"

    def __init__(self, url):
        options = influxdb_client_3.write_client_options(write_options=influxdb_client_3.SYNCHRONOUS)
        self.client = influxdb_client_3.InfluxDBClient3(
            host=url, token="unused", database=DATABASE, write_client_options=options
        )

    def write(self, table, points):
        def typed(point):
            known = {"measurement": table, "tags": tags(point), "fields": fields(point), "time": point["time"]}
            return influxdb_client_3.Point.from_dict(known, field_types={"u": "uint"})

        try:
            self.client.write([typed(point) for point in points], write_precision="ns")
        except (influxdb_client_3.InfluxDBError, OSError) as error:
            raise Refused from error


class JavaScript:
    """@influxdata/influxdb-client, in batches and with its own retries."""

    name = "@influxdata/influxdb-client"

    # Its integers are numbers of JavaScript.
    largest = 2**53 - 1

    def __init__(self, url):
        self.url = url

    @staticmethod
    def missing():
        return None if shutil.which("node") and os.path.isdir(os.environ["CLIENTS_NODE"]) else "needs node and npm"

    def write(self, table, points):
        # Unsigned integers as text: it takes those whole.
        def plain(point):
            known = {name: str(value) if name == "u" else value for name, value in fields(point).items()}
            return {"time": str(point["time"]), "tags": tags(point), "fields": known}

        asked = {"url": self.url, "database": DATABASE, "table": table, "points": [plain(p) for p in points]}
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "javascript.mjs")
        ran = subprocess.run(["node", script], input=json.dumps(asked), text=True, capture_output=True, timeout=120)
        assert ran.returncode == 0, ran.stderr

    stream = write


class Arc:
    """MessagePack columns, as Arc's clients send them."""

    name = "arc"

    def __init__(self, url):
        self.url = url

    def write(self, table, points):
        columns = {name: [point[name] for point in points] for name in COLUMNS}
        columns = {name: values for name, values in columns.items() if any(v is not None for v in values)}
        body = msgpack.packb({"m": table, "columns": columns, "tag_keys": ["host", "room"]})
        post(f"{self.url}/api/v1/write/msgpack", gzip.compress(body), {"x-arc-database": DATABASE})


class Curl:
    """curl, and whoever writes line protocol by hand."""

    name = "curl"

    def __init__(self, url):
        self.url = url

    def write(self, table, points):
        body = "\n".join(line(table, point) for point in points)
        curl(f"{self.url}/api/v3/write_lp?db={DATABASE}&precision=nanosecond", body)


WRITERS = [Influx1, Influx2, Influx3, JavaScript, Arc, Curl]


# ---------------------------------------------------------------------------------------------
# Readers: functions of a node's address and a statement that give rows as dictionaries.


def curl_json(url, sql):
    rows = json.loads(curl(query(url, sql, "json")))
    return [{**row, "time": nanoseconds(row["time"])} if "time" in row else row for row in rows]


def arrow_stream(url, sql):
    answer = post(f"{url}/api/v1/query/arrow", json.dumps({"sql": sql, **FRESH}), {"x-arc-database": DATABASE})
    with pyarrow.ipc.open_stream(answer.content) as stream:
        return arrow_rows(stream.read_all())


def parquet_pandas(url, sql):
    answer = requests.get(query(url, sql, "parquet"), timeout=REQUEST)
    answer.raise_for_status()
    frame = pandas.read_parquet(io.BytesIO(answer.content), dtype_backend="pyarrow")
    return arrow_rows(pyarrow.Table.from_pandas(frame, preserve_index=False))


def parquet_pyarrow(url, sql):
    answer = requests.get(query(url, sql, "parquet"), timeout=REQUEST)
    answer.raise_for_status()
    return arrow_rows(pyarrow.parquet.read_table(io.BytesIO(answer.content)))


def arc_json(url, sql):
    answer = post(f"{url}/api/v1/query", json.dumps({"sql": sql, **FRESH}), {"x-arc-database": DATABASE}).json()
    assert answer["success"] and answer["row_count"] == len(answer["data"]), answer
    rows = [dict(zip(answer["columns"], row)) for row in answer["data"]]
    return [{**row, "time": nanoseconds(row["time"])} if "time" in row else row for row in rows]


def arc_msgpack(url, sql):
    answer = post(f"{url}/api/v1/query/msgpack", json.dumps({"sql": sql, **FRESH}), {"x-arc-database": DATABASE})
    answer = msgpack.unpackb(answer.content, timestamp=0)
    columns = [[v.to_unix_nano() if isinstance(v, msgpack.Timestamp) else v for v in c] for c in answer["data"]]
    assert answer["success"] and all(len(column) == answer["row_count"] for column in columns), answer
    return [dict(zip(answer["columns"], row)) for row in zip(*columns)]


def influx3_flight(url, sql):
    with influxdb_client_3.InfluxDBClient3(host=url, token="unused", database=DATABASE) as client:
        assert client.get_server_version(), "ping names no version"
        return arrow_rows(client.query(sql, language="sql", headers=FRESH_HEADERS))


def influx3_parameters(url, sql, values):
    with influxdb_client_3.InfluxDBClient3(host=url, token="unused", database=DATABASE) as client:
        return arrow_rows(client.query(sql, language="sql", query_parameters=values, headers=FRESH_HEADERS))


def one_row(values):
    """By name, as ADBC's driver takes it: not as a dictionary."""
    return pyarrow.record_batch([[value] for value in values.values()], names=list(values))


def adbc_parameters(url, sql, values):
    return adbc_flight_sql(url, sql, values)


def adbc_flight_sql(url, sql, values=None):
    headers = {f"adbc.flight.sql.rpc.call_header.{name.decode()}": value.decode() for name, value in FRESH_HEADERS}
    headers["adbc.flight.sql.rpc.call_header.database"] = DATABASE
    at = url.replace("http://", "grpc://")
    # It knows no transactions and says so.
    with adbc_driver_flightsql.dbapi.connect(at, db_kwargs=headers, autocommit=True) as connection:
        with connection.cursor() as cursor:
            # Which prepares it first.
            cursor.execute(sql, values)
            return arrow_rows(cursor.fetch_arrow_table())


def adbc_objects(url):
    """What a tool that opens the database sees: catalogs, schemas, tables and their columns."""
    with adbc_driver_flightsql.dbapi.connect(url.replace("http://", "grpc://"), autocommit=True) as connection:
        assert connection.adbc_get_info()["vendor_name"] == "skein"
        assert connection.adbc_get_table_types() == ["TABLE"]
        catalogs = connection.adbc_get_objects(depth="all").read_all().to_pylist()
        return {
            table["table_name"]: [column["column_name"] for column in table["table_columns"]]
            for catalog in catalogs
            for schema in catalog["catalog_db_schemas"]
            for table in schema["db_schema_tables"]
            if (catalog["catalog_name"], schema["db_schema_name"]) == ("skein", DATABASE)
        }


def adbc_refusal(url, sql):
    """What ADBC makes of a statement that is not allowed."""
    try:
        adbc_flight_sql(url, sql)
    except adbc_driver_manager.Error as error:
        return str(error)
    raise AssertionError(f"{sql} was not refused")


def pyarrow_flight(url, sql):
    at = url.replace("http://", "grpc://")
    ticket = json.dumps({"database": DATABASE, "sql_query": sql, "query_type": "sql"})
    options = pyarrow.flight.FlightCallOptions(headers=FRESH_HEADERS, timeout=REQUEST)
    with pyarrow.flight.connect(at) as client:
        return arrow_rows(client.do_get(pyarrow.flight.Ticket(ticket), options).read_all())


READERS = {
    "curl": curl_json,
    "pyarrow": arrow_stream,
    "pyarrow.parquet": parquet_pyarrow,
    "pandas": parquet_pandas,
    "arc": arc_json,
    "arc msgpack": arc_msgpack,
    "influxdb3-python": influx3_flight,
    "ADBC": adbc_flight_sql,
    "pyarrow.flight": pyarrow_flight,
}

# Everything acknowledged, at whatever node.
FRESH = {"consistency": "linearizable"}
FRESH_HEADERS = [(b"x-skein-consistency", b"linearizable")]


def files_duckdb(directory):
    """The files of a table as they lie. Columns may have come with a later one, and a point whose fields
    came in two writes may lie in two."""
    files = str(directory / "*.parquet")
    most = ", ".join(f"max({name}) AS {name}" for name in "fiubs")
    with duckdb.connect() as connection:
        found = connection.sql(
            f"SELECT epoch_ns(time) AS time, host, room, {most} FROM read_parquet('{files}', union_by_name = true) GROUP BY ALL"
        )
        names = found.columns
        return [dict(zip(names, row)) for row in found.fetchall()]


# ---------------------------------------------------------------------------------------------


def query(url, sql, form):
    asked = urllib.parse.urlencode({"db": DATABASE, "q": sql, "format": form, **FRESH})
    return f"{url}/api/v3/query_sql?{asked}"


def curl(url, body=None):
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", str(REQUEST), url]
    command += ["--data-binary", "@-"] if body is not None else []
    ran = subprocess.run(command, input=body, text=True, capture_output=True)
    if ran.returncode != 0:
        raise Refused(f"{ran.stderr} {ran.stdout}")
    return ran.stdout


def post(url, body, headers):
    try:
        answer = requests.post(url, data=body, headers=headers, timeout=REQUEST)
        answer.raise_for_status()
    except requests.RequestException as error:
        text = error.response.text if error.response is not None else ""
        raise Refused(f"{error} {text}") from error
    return answer


def nanoseconds(text):
    """RFC 3339 in UTC; more digits than datetime has."""
    whole, fraction = re.fullmatch(r"(.{19})(?:\.(\d+))?Z?", text).groups()
    seconds = int(pandas.Timestamp(whole).timestamp())
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))


def arrow_rows(table):
    if "time" in table.column_names:
        assert table.schema.field("time").type == pyarrow.timestamp("ns"), table.schema
        at = table.schema.get_field_index("time")
        table = table.set_column(at, "time", table.column("time").cast(pyarrow.int64()))
    return table.to_pylist()
