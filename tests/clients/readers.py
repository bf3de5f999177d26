"""The clients that read: functions of where (`cluster.At`) and a statement that give rows as dictionaries."""

import io
import json
import re
import urllib.parse

import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import duckdb
import msgpack
import pandas
import polars
import pyarrow
import pyarrow.flight
import pyarrow.parquet
import requests
from adbc_driver_flightsql import DatabaseOptions

from clients import REQUEST, arc, curl, influx3, roots
from points import DATABASE, FIELDS, TAGS


def curl_json(at, sql):
    """With the token where InfluxDB 1 has it, in the URL."""
    url = "&".join([query(at, sql, "json"), urllib.parse.urlencode({"u": "curl", "p": at.token})])
    return in_nanoseconds(json.loads(curl(at, url)))


def arrow_stream(at, sql):
    answer = arc(at, "/api/v1/query/arrow", statement(at, sql))
    with pyarrow.ipc.open_stream(answer.content) as stream:
        return arrow_rows(stream.read_all())


def parquet_pandas(at, sql):
    frame = pandas.read_parquet(parquet(at, sql), dtype_backend="pyarrow")
    return arrow_rows(pyarrow.Table.from_pandas(frame, preserve_index=False))


def parquet_polars(at, sql):
    return arrow_rows(polars.read_parquet(parquet(at, sql)).to_arrow())


def parquet_pyarrow(at, sql):
    return arrow_rows(pyarrow.parquet.read_table(parquet(at, sql)))


def arc_json(at, sql):
    answer = arc(at, "/api/v1/query", statement(at, sql)).json()
    assert answer["success"] and answer["row_count"] == len(answer["data"]), answer
    return in_nanoseconds([dict(zip(answer["columns"], row)) for row in answer["data"]])


def arc_msgpack(at, sql):
    answer = msgpack.unpackb(arc(at, "/api/v1/query/msgpack", statement(at, sql)).content, timestamp=0)
    columns = [[v.to_unix_nano() if isinstance(v, msgpack.Timestamp) else v for v in c] for c in answer["data"]]
    assert answer["success"] and all(len(column) == answer["row_count"] for column in columns), answer
    return [dict(zip(answer["columns"], row)) for row in zip(*columns)]


def influx3_flight(at, sql, **options):
    with influx3(at) as client:
        # Which goes over HTTP.
        assert at.name or client.get_server_version(), "ping names no version"
        return arrow_rows(client.query(sql, language="sql", headers=[consistency(at)], **options))


def adbc_flight_sql(at, sql, values=None):
    """Values are a list, or a record batch that has them by name."""
    with adbc(at) as connection, connection.cursor() as cursor:
        # Which prepares it first.
        cursor.execute(sql, values)
        return arrow_rows(cursor.fetch_arrow_table())


def adbc(at):
    """With name and password, for which it is given a token by Handshake."""
    headers = {"database": DATABASE, **{name.decode(): value.decode() for name, value in [consistency(at)]}}
    options = {DatabaseOptions.RPC_CALL_HEADER_PREFIX.value + name: value for name, value in headers.items()}
    options |= {"username": "adbc", "password": at.token}
    if at.ca:
        options |= {DatabaseOptions.TLS_ROOT_CERTS.value: at.ca.read_text()}
    if at.name:
        options |= {DatabaseOptions.TLS_OVERRIDE_HOSTNAME.value: at.name}
    # It knows no transactions and says so.
    return adbc_driver_flightsql.dbapi.connect(at.grpc, db_kwargs=options, autocommit=True)


def adbc_objects(at):
    """What a tool that opens the database sees: catalogs, schemas, tables and their columns."""
    with adbc(at) as connection:
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


def adbc_refusal(at, sql):
    """What ADBC makes of a statement that is not allowed."""
    try:
        adbc_flight_sql(at, sql)
    except adbc_driver_manager.Error as error:
        return str(error)
    raise AssertionError(f"{sql} was not refused")


def pyarrow_flight(at, sql):
    tls = {"tls_root_certs": at.ca.read_text()} if at.ca else {}
    if at.name:
        tls |= {"override_hostname": at.name}
    ticket = json.dumps({"database": DATABASE, "sql_query": sql, "query_type": "sql"})
    headers = [(b"authorization", b"Bearer " + at.token.encode()), consistency(at)]
    options = pyarrow.flight.FlightCallOptions(headers=headers, timeout=REQUEST)
    with pyarrow.flight.connect(at.grpc, **tls) as client:
        return arrow_rows(client.do_get(pyarrow.flight.Ticket(ticket), options).read_all())


READERS = {
    "curl": curl_json,
    "pyarrow": arrow_stream,
    "pyarrow.parquet": parquet_pyarrow,
    "pandas": parquet_pandas,
    "polars": parquet_polars,
    "arc": arc_json,
    "arc msgpack": arc_msgpack,
    "influxdb3-python": influx3_flight,
    "ADBC": adbc_flight_sql,
    "pyarrow.flight": pyarrow_flight,
}
# As NAMED_WRITERS; requests, by which the others ask, checks the name of the URL.
NAMED_READERS = {name: READERS[name] for name in ("curl", "influxdb3-python", "ADBC", "pyarrow.flight")}


# ---------------------------------------------------------------------------------------------
# The files of a table as they lie. Columns may have come with a later one, and a point whose fields
# came in two writes may lie in two.


def files_duckdb(directory):
    files = str(directory / "*.parquet")
    most = ", ".join(f"max({name}) AS {name}" for name in FIELDS)
    with duckdb.connect() as connection:
        found = connection.sql(
            f"SELECT epoch_ns(time) AS time, host, room, {most} "
            f"FROM read_parquet('{files}', union_by_name = true) GROUP BY ALL"
        )
        names = found.columns
        return [dict(zip(names, row)) for row in found.fetchall()]


def files_pandas(directory):
    """With types of Arrow: its own have no integers beside null."""
    frames = [pandas.read_parquet(file, dtype_backend="pyarrow") for file in directory.glob("*.parquet")]
    frame = pandas.concat(frames).groupby(["time", *TAGS], dropna=False, as_index=False).first()
    types = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    wanted = {"time": "timestamp[ns]", "f": "double", "i": "int64", "u": "uint64", "b": "bool"}
    wanted = {name: f"{wanted.get(name, 'string')}[pyarrow]" for name in types}
    assert types == wanted, f"types of pandas: {types}"
    return arrow_rows(pyarrow.Table.from_pandas(frame, preserve_index=False))


def files_polars(directory):
    frame = polars.concat([polars.read_parquet(file) for file in directory.glob("*.parquet")], how="diagonal")
    wanted = {"time": polars.Datetime("ns"), "f": polars.Float64, "i": polars.Int64}
    wanted |= {"u": polars.UInt64, "b": polars.Boolean}
    wanted = {name: wanted.get(name, polars.String) for name in frame.columns}
    assert dict(frame.schema) == wanted, f"types of polars: {frame.schema}"
    frame = frame.group_by("time", *TAGS).agg(polars.all().drop_nulls().first())
    return arrow_rows(frame.to_arrow())


FILE_READERS = {"DuckDB": files_duckdb, "pandas": files_pandas, "polars": files_polars}
# A file that was listed has been compacted meanwhile.
GONE = (FileNotFoundError, duckdb.IOException)


# ---------------------------------------------------------------------------------------------


def query(at, sql, form):
    asked = {"db": DATABASE, "q": sql, "format": form, "consistency": at.consistency}
    return f"/api/v3/query_sql?{urllib.parse.urlencode(asked)}"


def parquet(at, sql):
    headers = {"authorization": f"Bearer {at.token}"}
    answer = requests.get(at.url + query(at, sql, "parquet"), headers=headers, timeout=REQUEST, verify=roots(at))
    answer.raise_for_status()
    return io.BytesIO(answer.content)


def statement(at, sql):
    return json.dumps({"sql": sql, "consistency": at.consistency})


def consistency(at):
    return b"x-skein-consistency", at.consistency.encode()


def in_nanoseconds(rows):
    return [{**row, "time": nanoseconds(row["time"])} if "time" in row else row for row in rows]


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
