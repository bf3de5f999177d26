"""Statements that would read or write files, and the system calls of the processes that were asked."""

import json
import os
import re
import shutil
import subprocess
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from cluster import need

# What no answer may hold.
CANARY = "canary-5b1f0e"


def untraceable():
    """Why system calls cannot be seen here, if they cannot."""
    if not shutil.which("strace"):
        return "strace is not here"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return tried.returncode and f"ptrace is not allowed: {tried.stderr.strip()}"


# Of every dialect that reads files, and some that write them.
SOURCES = """
'{path}'
"{path}"
`{path}`
[{path}]
{path}
"file://{path}"
'file://{path}'
'{path}.parquet'
'{path}.csv'
'{path}.json'
'{path}.ndjson'
'{path}.avro'
'{path}.arrow'
'{path}.csv.gz'
'{home}/'
'{home}/*'
"{home}/*.csv"
healthy."{path}"
skein.healthy."{path}"
information_schema."{path}"
"../../../../../../../..{path}"
healthy."../../../../../../../..{path}"
's3://{path}'
'http://localhost{path}'
"""
TABLE_FUNCTIONS = """
read_csv read_csv_auto csv_scan read_parquet parquet_scan parquet_metadata read_json read_json_auto read_ndjson read_avro read_arrow
read_text read_blob glob list_files file url input infer delta_scan iceberg_scan sqlite_scan external_table openrowset table
"""
FUNCTIONS = """
pg_read_file pg_read_binary_file pg_ls_dir pg_stat_file lo_import load_file readfile read_text load_extension file getenv dblink
xpath_table input_file_name digest_file
"""
STATEMENTS = r"""
COPY (SELECT 1) TO '{path}'
COPY (SELECT * FROM point) TO '{home}/out.csv' STORED AS CSV
COPY point TO '{home}/out.parquet'
COPY point FROM '{path}'
COPY point FROM PROGRAM 'cat {path}'
CREATE EXTERNAL TABLE c STORED AS CSV LOCATION '{path}'
CREATE EXTERNAL TABLE c STORED AS PARQUET LOCATION 'file://{path}'
CREATE EXTERNAL TABLE c (a TEXT) STORED AS CSV OPTIONS ('format.has_header' 'false') LOCATION '{path}'
CREATE UNBOUNDED EXTERNAL TABLE c (a TEXT) STORED AS CSV LOCATION '{path}'
CREATE TABLE c AS {plain}
CREATE VIEW c AS {plain}
CREATE OR REPLACE TABLE point AS {plain}
CREATE TEMPORARY VIEW c USING csv OPTIONS (path '{path}')
CREATE SCHEMA c LOCATION '{home}'
CREATE FUNCTION f() RETURNS INT LANGUAGE C AS '{path}'
CREATE FOREIGN TABLE c (a TEXT) SERVER s OPTIONS (filename '{path}')
INSERT INTO point {plain}
INSERT OVERWRITE DIRECTORY '{home}/out' SELECT 1
SELECT 1 INTO OUTFILE '{home}/out'
LOAD DATA INFILE '{path}' INTO TABLE point
LOAD '{path}'
INSTALL '{path}'
ATTACH '{path}' AS c
ATTACH DATABASE '{path}' AS c
IMPORT DATABASE '{home}'
EXPORT DATABASE '{home}/out'
UNLOAD (SELECT 1) TO '{home}/out'
.read {path}
\i {path}
SOURCE {path}
SET datafusion.catalog.location = '{home}'
SET datafusion.catalog.format = 'CSV'
SET datafusion.runtime.temp_directory = '{home}/out'
PRAGMA temp_store_directory = '{home}/out'
EXPLAIN {plain}
EXPLAIN ANALYZE {plain}
EXPLAIN COPY point TO '{home}/out.csv'
EXPLAIN VERBOSE CREATE EXTERNAL TABLE c STORED AS CSV LOCATION '{path}'
DESCRIBE '{path}'
DESC "{path}"
SHOW COLUMNS FROM '{path}'
WITH c AS ({plain}) SELECT * FROM c
WITH c AS (SELECT * FROM read_csv('{path}')) SELECT count(*) FROM c
SELECT n FROM point UNION ALL {plain}
SELECT (SELECT a FROM '{path}')
SELECT n FROM point WHERE n IN ({plain})
SELECT * FROM point JOIN '{path}' ON true
SELECT * FROM point CROSS JOIN LATERAL read_csv('{path}')
SELECT EXISTS ({plain})
TABLE '{path}'
FROM '{path}'
FROM '{path}' SELECT *
PREPARE p AS {plain}
EXECUTE p('{path}')
CALL load('{path}')
SELECT 1; {plain}
SELECT 1; COPY point TO '{home}/out.csv'
DELETE FROM '{path}'
UPDATE '{path}' SET a = 1
DROP TABLE '{path}'
TRUNCATE TABLE '{path}'
ANALYZE TABLE '{path}'
REFRESH '{path}'
VALUES (read_text('{path}'))
"""


def statements(path, home):
    found = [f"SELECT * FROM {source}" for source in SOURCES.strip().splitlines()]
    found += [f"SELECT * FROM {function}('{{path}}')" for function in TABLE_FUNCTIONS.split()]
    found += [f"SELECT {function}('{{path}}')" for function in FUNCTIONS.split()]
    found += STATEMENTS.strip().splitlines()
    return [form.format(path=path, home=home, plain=f"SELECT * FROM '{path}'") for form in found]


def secrets(node):
    """Statements for files that a process would be allowed to read."""
    paths = (node.dir / "admin.token", node.dir / "node.key", node.dir / "raft" / "log", "/proc/self/environ", "/etc/passwd")
    forms = ("SELECT * FROM '{}'", "SELECT * FROM read_csv('{}')", "SELECT pg_read_file('{}')")
    return [form.format(path) for path in paths for form in forms]


def ways(cluster, end, sql):
    """Each route that takes a statement, and its answer."""
    headers, asked = {**cluster.bearer, "x-arc-database": "healthy"}, json.dumps({"sql": sql})
    yield "/api/v3/query_sql", cluster.query(end, "healthy", sql)
    yield "/query", end.ask("POST", "/query", urllib.parse.urlencode({"q": sql}), headers)
    for route in ("/api/v1/query", "/api/v1/query/estimate"):
        yield route, end.ask("POST", route, asked, headers)


def refused(cluster, end, asked):
    for sql in asked:
        for route, (status, text) in ways(cluster, end, sql):
            need(CANARY not in text, f"{sql} at {route} of the {end.name} shows what is in the file: {text[:400]}")
            need(400 <= status < 500, f"{sql} at {route} of the {end.name} is answered {status} {text[:400]}")


def named(cluster, end, home):
    """Names that are paths: of a database they are refused, of a table they are its name and lead nowhere."""
    paths = (f"{home}/out", "../../../../out", "..", ".", "../out/", "a/../../out", "..\\out", "%2e%2e%2fout", "~", "-", "\u202eout",
             "file:///out")
    for path in paths:
        status, text = end.ask("POST", "/write?db=" + urllib.parse.quote(path, safe=""), "point n=1i 1", cluster.bearer)
        need(status == 400, f"a write by the {end.name} to a database named {path} is answered {status} {text}")
        status, text = cluster.query(end, path, "SELECT * FROM point")
        need(400 <= status < 500, f"a query by the {end.name} in a database named {path} is answered {status} {text}")
        cluster.stored.add(f"names.{path}")
        line = f"{path},end={end.name} n=1i 1"
        status, text = cluster.write(end, "names", line.encode())
        need(status == 204, f"a write by the {end.name} to a table named {path} is answered {status} {text}")
    return paths


def opened(node):
    """Path and flags of all that a process has opened."""
    found = re.findall(r'open(?:at|at2)?\((?:[^",]+, )?"((?:[^"\\]|\\.)*)", (.*)', node.trace.read_text(errors="replace"))
    need(found, f"nothing of the {node.name} was traced")
    return found


def run(cluster):
    home = cluster.home / "elsewhere"
    home.mkdir()
    for kind in ("", ".parquet", ".csv", ".json", ".ndjson", ".avro", ".arrow"):
        (home / f"canary{kind}").write_text(f"a,b\n{CANARY},1\n")
    there = sorted(home.iterdir())
    asked = statements(home / "canary", home) + secrets(cluster.node)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda end: refused(cluster, end, asked), cluster.ends))
    for end in cluster.ends:
        paths = named(cluster, end, home)
    # Everything is put into files, and read from there.
    status, _ = cluster.node.over_unix("GET", "/api/v1/backup")
    need(status == 200, f"a backup is answered {status}")
    for path in paths:
        rows = cluster.rows("names", f'SELECT "end" FROM "{path}" ORDER BY 1')
        need([row["end"] for row in rows] == ["gateway", "node"], f"in the table named {path} are {rows}")
    need(sorted(home.iterdir()) == there, f"beside the canaries there are {sorted(home.iterdir())}")
    figures = f"{len(asked)} statements by 4 routes and {len(paths)} names at each end were refused or led nowhere"
    if not cluster.traced:
        return figures
    calls = 0
    for end in cluster.ends:
        for path, flags in opened(end):
            calls += 1
            inside = os.path.normpath(path).startswith(f"{end.dir}/")
            need(inside or not os.path.normpath(path).startswith(str(home)), f"the {end.name} has opened {path}, {flags}")
            secret = path == f"{end.dir}/admin.token" and "O_CREAT" not in flags or path in ("/etc/passwd", "/proc/self/environ")
            need(not secret, f"the {end.name} has opened {path}, {flags}")
            changes = re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", flags)
            need(inside or not changes, f"the {end.name} has opened {path}, {flags}: it is not in its directory")
    # What has been opened is seen.
    need(any(f"{cluster.node.dir}/engine/data/names/" in path for path, _ in opened(cluster.node)), "no data file is in the trace")
    return f"{figures}; {calls} files opened, no canary"
