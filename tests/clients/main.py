"""What is promised to clients, in order."""

import concurrent.futures
import datetime
import functools
import re
import threading
import time

import pyarrow

import clients
import points
import readers
from cluster import Cluster, eventually

# Points that each client writes while the writer is killed: as many of every kind.
MANY = 60
# In the form of an API token, and nobody's.
UNKNOWN = "skein_" + "a" * 52


def main():
    writers = [writer for writer in clients.WRITERS if available(writer)]
    began = time.monotonic()
    with Cluster() as cluster:
        print(f"three nodes after {time.monotonic() - began:.1f} s")
        every_type(cluster, writers)
        while_the_writer_is_killed(cluster, writers)
        files_as_they_lie(cluster, writers)
        with_tokens_over_tls(cluster, writers)
    print(f"passed in {time.monotonic() - began:.1f} s")


def available(writer):
    why = writer.missing() if hasattr(writer, "missing") else None
    if why:
        print(f"SKIPPED: {writer.name}: {why}")
    return why is None


def table_of(writer):
    return "".join(c if c.isalnum() else "_" for c in writer.name).strip("_")


def wanted_of(writer, times=1):
    largest = {"largest": writer.largest} if hasattr(writer, "largest") else {}
    return points.every_type(times=times, **largest)


def every_type(cluster, writers):
    """Written through one node that does not write, read back at another."""
    edge, other = cluster.edge.at, cluster.other.at
    round_trip(writers, readers.READERS, edge, other)
    parameters(other)
    assert clients.Influx2(edge).healthy(), "what influxdb-client asks for its health"
    names = clients.Influx1(other).databases()
    assert names == [points.DATABASE], f"SHOW DATABASES of influxdb: {names}"
    tables = readers.adbc_objects(other)
    wanted = {table_of(writer): list(points.TYPES) for writer in writers}
    assert {name: sorted(columns) for name, columns in tables.items()} == {
        name: sorted(columns) for name, columns in wanted.items()
    }, f"tables as ADBC sees them: {tables}"
    refusal = readers.adbc_refusal(other, "DROP TABLE curl")
    assert "not allowed" in refusal, refusal


def round_trip(writers, reads, to, at, suffix=""):
    """Each writes every type by way of `to`, and each reads all of that by way of `at`."""
    for writer in writers:
        table, wanted = table_of(writer) + suffix, wanted_of(writer)
        writer(to).write(table, wanted)
        types = readers.curl_json(at, f"SHOW COLUMNS FROM {table}")
        types = {row["column_name"]: (row["data_type"], row["kind"]) for row in types}
        assert types == points.TYPES, f"{writer.name}: {types}"
        for name, read in reads.items():
            found = read(at, f"SELECT * FROM {table}")
            points.check(f"written by {writer.name}, read by {name} at {at.url}", found, wanted)
        print(f"every type: {writer.name}, read by {', '.join(reads)}")


def parameters(at):
    """Values of every type that are bound, as the clients bind them."""
    point = points.every_type()[0]
    wanted = [{"time": point["time"]}]
    by_name = {name: point[name] for name in ("host", "f", "i", "b", "s")}
    sql = "SELECT time FROM curl WHERE host = $host AND f = $f AND i = $i AND b = $b AND s = $s"
    found = readers.influx3_flight(at, sql, query_parameters=by_name)
    assert found == wanted, f"parameters of influxdb3-python: {found}"
    found = readers.influx3_flight(at, sql, query_parameters={**by_name, "s": "' OR 1 = 1 --"})
    assert found == [], f"a text ended another: {found}"
    in_order = re.sub(r"\$\w+", "?", sql)
    moment = datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(
        microseconds=point["time"] // 1000
    )
    found = readers.adbc_flight_sql(at, in_order + " AND time >= ?", [*by_name.values(), moment])
    assert found == wanted, f"parameters of ADBC: {found}"
    found = readers.adbc_flight_sql(at, "SELECT time FROM curl WHERE i = $2 AND f = $1", [point["f"], point["i"]])
    assert found == wanted, f"numbered parameters of ADBC: {found}"
    # Names it takes from a record batch, not from a dictionary.
    one_row = pyarrow.record_batch([[value] for value in by_name.values()], names=list(by_name))
    found = readers.adbc_flight_sql(at, sql, one_row)
    assert found == wanted, f"named parameters of ADBC: {found}"
    print("parameters: influxdb3-python, ADBC")


def while_the_writer_is_killed(cluster, writers):
    """All write on through nodes that live, which answer meanwhile; what was acknowledged is found."""
    victim = cluster.writer()
    edge, other = survivors = [node for node in cluster.nodes if node is not victim]
    under_way, over, acknowledged = threading.Barrier(len(writers) + 1), threading.Event(), []
    with concurrent.futures.ThreadPoolExecutor(len(writers) + 2) as pool:
        running = [pool.submit(write_many, writer, edge.at, under_way, acknowledged) for writer in writers]
        reading = [pool.submit(read_on, edge, "curl", over), pool.submit(read_on, other, "influxdb3-python", over)]
        try:
            under_way.wait(timeout=60)
            time.sleep(0.5)
            victim.kill()
            killed = time.monotonic()
            print(f"killed the writer, {victim.name}")
            for done in running:
                print(done.result())
        finally:
            over.set()
    outage = longest_pause([killed, *(moment for moment in acknowledged if moment > killed)])
    for done in reading:
        print(read_meanwhile(*done.result(), outage))
    for writer in writers:
        for node in survivors:
            for name, read in readers.READERS.items():
                what = f"written by {writer.name}, read by {name} at {node.name}"
                found = read(node.at, f"SELECT * FROM {table_of(writer)}_kill")
                points.check(what, found, many_of(writer))
    victim.start()
    cluster.settle()


def many_of(writer):
    return wanted_of(writer, times=MANY // len(wanted_of(writer)))


def write_many(writer, at, under_way, acknowledged):
    """Point by point; what is refused is sent again. Clients that do that themselves do."""
    table = table_of(writer) + "_kill"
    client = writer(at)
    under_way.wait(timeout=60)
    if hasattr(client, "stream"):
        client.stream(table, many_of(writer))
        return f"{writer.name}: {MANY} written"
    longest, again = 0.0, 0
    for point in many_of(writer):
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
        acknowledged.append(time.monotonic())
        longest = max(longest, acknowledged[-1] - began)
        time.sleep(0.05)
    return f"{writer.name}: {MANY} written, {again} sent again, the slowest took {longest * 1e3:.0f} ms"


def read_on(node, name, over):
    """What the node has, again and again; when each answer was asked for and when it came."""
    at, moments = node.at._replace(consistency="local"), []
    while not over.is_set():
        began = time.monotonic()
        found = readers.READERS[name](at, "SELECT * FROM curl")
        points.check(f"read by {name} at {node.name} while the writer is killed", found, points.every_type())
        moments.append((began, time.monotonic()))
        time.sleep(0.02)
    return f"{name} at {node.name}", moments


def longest_pause(moments):
    moments = sorted(moments)
    return max(zip(moments, moments[1:]), key=lambda pause: pause[1] - pause[0])


def read_meanwhile(what, moments, outage):
    """Reads of what a node has wait for no writer."""
    start, end = outage
    took = [came - asked for asked, came in moments if start <= asked and came <= end]
    length = f"the {(end - start) * 1e3:.0f} ms in which nothing was written"
    assert took, f"{what} has read nothing in {length}, and {len(moments)} times in all"
    return f"{what}: {len(took)} reads in {length}, the slowest took {max(took) * 1e3:.0f} ms"


def files_as_they_lie(cluster, writers):
    """In the data directory of a node, which has flushed."""
    for writer in writers:
        table, wanted = table_of(writer), wanted_of(writer)
        directory = cluster.other.dir / "engine" / "data" / points.DATABASE / table
        for name, read in readers.FILE_READERS.items():

            def flushed(read=read, directory=directory, wanted=wanted):
                try:
                    found = read(directory) if any(directory.glob("*.parquet")) else []
                except readers.GONE:
                    return None
                return found if sum(p.get("u") is not None for p in found) == 3 and len(found) == len(wanted) else None

            found = eventually(f"all points of {table} are in files, as {name} reads them", flushed)
            points.check(f"written by {writer.name}, read by {name} from files", found, wanted)
    names = ", ".join(writer.name for writer in writers)
    print(f"files: {', '.join(readers.FILE_READERS)} read the points of {names}")


def with_tokens_over_tls(cluster, writers):
    """At a reader that has a certificate of one's own, and at a gateway that has the cluster's."""
    ca, certificate, key = cluster.certificate()
    reader = cluster.add("reader", "--http-cert", certificate, "--http-key", key)
    gateway = cluster.add("gateway", "--http-tls", "node")
    tokens = [cluster.api_token(reader, scope, points.DATABASE) for scope in ("write", "read")]

    own = reader.at._replace(ca=ca)
    named = gateway.at._replace(ca=gateway.dir / "ca.pem", name="mesh.internal")
    writing_named = [writer for writer in writers if writer in clients.NAMED_WRITERS]
    secured(own, tokens, named.ca, writers, readers.READERS)
    secured(named, tokens, own.ca, writing_named, readers.NAMED_READERS)


def secured(at, tokens, foreign, writers, reads):
    """What is read and written with the token for it, and with nothing else."""
    to, at = [at._replace(token=token) for token in tokens]
    print(f"with API tokens over TLS by the name of {at.name or '127.0.0.1'}:")
    round_trip(writers, reads, to, at, "_tls")
    for writer in writers:

        def write(to, writer=writer):
            writer(to).write("refused", wanted_of(writer))

        refusals(f"{writer.name} writes", write, to, at.token, foreign)
    for name, read in reads.items():
        refusals(f"{name} reads", functools.partial(read, sql="SELECT * FROM curl"), at, to.token, foreign)
    names = ", ".join(writer.name for writer in writers)
    print(f"refused with another token or other roots: writing by {names}, reading by {', '.join(reads)}")


def refusals(what, attempt, at, other_scope, foreign):
    """With a token of nobody, with one of the other scope, and by the client itself with roots of somebody else."""
    for wrong, said in (
        ({"token": UNKNOWN}, r"\b401\b|unauthenticated"),
        ({"token": other_scope}, r"\b403\b|permission.?denied"),
        ({"ca": foreign}, "certificate"),
    ):
        what_with = f"{what} with {wrong}"
        try:
            attempt(at._replace(**wrong))
        except Exception as error:  # Each library has its own.
            text = f"{error} {error.__cause__ or ''}"
            assert re.search(said, text, re.IGNORECASE), f"{what_with} and hears something else than {said}: {text}"
        else:
            raise AssertionError(f"{what_with} and is not refused")


if __name__ == "__main__":
    main()
