"""What is promised to clients, in order."""

import concurrent.futures
import datetime
import re
import threading
import time

import clients
import points
from cluster import Cluster, eventually

# Points that each client writes while the writer is killed.
MANY = 60


def main():
    writers = [writer for writer in clients.WRITERS if available(writer)]
    began = time.monotonic()
    with Cluster() as cluster:
        print(f"three nodes after {time.monotonic() - began:.1f} s")
        every_type(cluster, writers)
        while_the_writer_is_killed(cluster, writers)
        files_as_they_lie(cluster, writers)
    print(f"passed in {time.monotonic() - began:.1f} s")


def available(writer):
    why = writer.missing() if hasattr(writer, "missing") else None
    if why:
        print(f"SKIPPED: {writer.name}: {why}")
    return why is None


def table_of(writer):
    return "".join(c if c.isalnum() else "_" for c in writer.name).strip("_")


def wanted_of(writer):
    return points.every_type(**({"largest": writer.largest} if hasattr(writer, "largest") else {}))


def every_type(cluster, writers):
    """Written through one node that does not write, read back at another."""
    for writer in writers:
        table, wanted = table_of(writer), wanted_of(writer)
        writer(cluster.edge.url).write(table, wanted)
        types = clients.curl_json(cluster.other.url, f"SHOW COLUMNS FROM {table}")
        types = {row["column_name"]: (row["data_type"], row["kind"]) for row in types}
        assert types == points.TYPES, f"{writer.name}: {types}"
        for name, read in clients.READERS.items():
            found = read(cluster.other.url, f"SELECT * FROM {table}")
            points.check(f"written by {writer.name}, read by {name}", found, wanted)
        print(f"every type: {writer.name}, read by {', '.join(clients.READERS)}")
    parameters(cluster.other.url)
    names = clients.Influx1(cluster.other.url).databases()
    assert names == [points.DATABASE], f"SHOW DATABASES of influxdb: {names}"
    tables = clients.adbc_objects(cluster.other.url)
    wanted = {table_of(writer): list(points.TYPES) for writer in writers}
    assert {name: sorted(columns) for name, columns in tables.items()} == {
        name: sorted(columns) for name, columns in wanted.items()
    }, f"tables as ADBC sees them: {tables}"
    refusal = clients.adbc_refusal(cluster.other.url, "DROP TABLE curl")
    assert "not allowed" in refusal, refusal


def parameters(url):
    """Values of every type that are bound, as the clients bind them."""
    point = points.every_type()[0]
    wanted = [{"time": point["time"]}]
    by_name = {name: point[name] for name in ("host", "f", "i", "b", "s")}
    sql = "SELECT time FROM curl WHERE host = $host AND f = $f AND i = $i AND b = $b AND s = $s"
    found = clients.influx3_parameters(url, sql, by_name)
    assert found == wanted, f"parameters of influxdb3-python: {found}"
    found = clients.influx3_parameters(url, sql, {**by_name, "s": "' OR 1 = 1 --"})
    assert found == [], f"a text ended another: {found}"
    in_order = re.sub(r"\$\w+", "?", sql)
    moment = datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(
        microseconds=point["time"] // 1000
    )
    found = clients.adbc_parameters(url, in_order + " AND time >= ?", [*by_name.values(), moment])
    assert found == wanted, f"parameters of ADBC: {found}"
    found = clients.adbc_parameters(url, "SELECT time FROM curl WHERE i = $2 AND f = $1", [point["f"], point["i"]])
    assert found == wanted, f"numbered parameters of ADBC: {found}"
    found = clients.adbc_parameters(url, sql, clients.one_row(by_name))
    assert found == wanted, f"named parameters of ADBC: {found}"
    print("parameters: influxdb3-python, ADBC")


def while_the_writer_is_killed(cluster, writers):
    """All clients write on through nodes that live; what was acknowledged is found."""
    victim = cluster.writer()
    edge, other = [node for node in cluster.nodes if node is not victim]
    under_way = threading.Barrier(len(writers) + 1)
    with concurrent.futures.ThreadPoolExecutor(len(writers)) as pool:
        running = [pool.submit(write_many, writer, edge.url, under_way) for writer in writers]
        under_way.wait(timeout=60)
        time.sleep(0.5)
        victim.kill()
        print(f"killed the writer, {victim.name}")
        for done in running:
            print(done.result())
    wanted = [points.numbered(number) for number in range(MANY)]
    for writer in writers:
        for node in (edge, other):
            for name, read in clients.READERS.items():
                found = read(node.url, f"SELECT * FROM {table_of(writer)}_kill")
                points.check(f"written by {writer.name}, read by {name} at {node.name}", found, wanted)
    victim.start()
    cluster.settle()


def write_many(writer, url, under_way):
    """Point by point; what is refused is sent again. Clients that do that themselves do."""
    table = table_of(writer) + "_kill"
    client = writer(url)
    under_way.wait(timeout=60)
    wanted = [points.numbered(number) for number in range(MANY)]
    if hasattr(client, "stream"):
        client.stream(table, wanted)
        return f"{writer.name}: {MANY} written"
    longest, again = 0.0, 0
    for point in wanted:
        began = time.monotonic()
        while True:
            try:
                client.write(table, [point])
                break
            except clients.Refused as error:
                again += 1
                if time.monotonic() - began > 60:
                    raise AssertionError(f"{writer.name} cannot write on: {error}") from error
                time.sleep(0.1)
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.05)
    return f"{writer.name}: {MANY} written, {again} sent again, the slowest took {longest * 1e3:.0f} ms"


def files_as_they_lie(cluster, writers):
    """DuckDB over the data directory of a node, which has flushed."""
    for writer in writers:
        table, wanted = table_of(writer), wanted_of(writer)

        def flushed(node=cluster.other, table=table, wanted=wanted):
            directory = node.dir / "engine" / "data" / points.DATABASE / table
            if not any(directory.glob("*.parquet")):
                return None
            found = clients.files_duckdb(directory)
            return found if sum(p["u"] is not None for p in found) == 3 and len(found) == len(wanted) else None

        found = eventually(f"{table} is in files", flushed)
        points.check(f"written by {writer.name}, read by DuckDB from files", found, wanted)
    print(f"files: DuckDB reads the points of {', '.join(writer.name for writer in writers)}")


if __name__ == "__main__":
    main()
