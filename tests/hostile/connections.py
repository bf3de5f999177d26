"""Clients that are slow, that come in masses, and heads without end."""

import contextlib
import select
import socket
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from cluster import MIB, PATIENCE, Meanwhile, Peak, counted, exchange, grown, need, statuses, until

# Of each kind, at each end.
DRIPPING, STALLED, UNREAD = 200, 50, 50


def connected(address, data=b"", room=None):
    """A connection that does not wait; `room` is what the kernel keeps of what is not read."""
    stream = socket.socket()
    if room:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    stream.settimeout(PATIENCE)
    stream.connect(address)
    stream.sendall(data)
    stream.setblocking(False)
    return stream


def closed(stream, heard):
    """Whether the other end has closed it; what came before is added to `heard`."""
    try:
        while piece := stream.recv(1 << 16):
            heard += piece
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def peeked(stream):
    """How what has come begins, which stays unread."""
    with contextlib.suppress(OSError):
        return stream.recv(100, socket.MSG_PEEK)
    return b""


def head(method, target, *headers):
    return "\r\n".join((f"{method} {target} HTTP/1.1", "host: localhost", *headers, "", "")).encode()


def dripped(number):
    """A head that never ends, in one of the ways in which a connection may begin."""
    ways = (
        head("GET", "/ping", f"x: {'a' * 999}"),
        head("POST", "/write?db=outer", "content-length: 5", f"x: {'a' * 999}"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
        b"PRI * HTTP/1.1\r\nx: " + b"a" * 999,
        b"\r\n" * 999,
    )
    return ways[number % len(ways)]


def stalled(number, token):
    """A body that is announced and does not come."""
    to = ("/write?db=outer", "/api/v1/write/msgpack", "/api/v1/query", "/query", "/api/v3/query_sql?db=healthy")[number % 5]
    length, begun = (("content-length: 1000", b"cpu"), ("transfer-encoding: chunked", b"3\r\ncpu\r\n"))[number % 2]
    return head("POST", to, f"authorization: Bearer {token}", length) + begun


def crowd(opened, cluster, kind, count, data=lambda number: b"", room=None):
    """So many at each end; `opened` closes them."""
    made = [(end, kind, number, connected(end.address, data(number), room)) for end in cluster.ends for number in range(count)]
    for *_, stream in made:
        opened.callback(stream.close)
    return made


def outlasted(slow):
    """How many of each kind were closed, and with which answers; one more byte is dripped each second."""
    left, heard, counts, sent, deadline = slow, {one: bytearray() for one in slow}, {}, 0, time.monotonic() + PATIENCE
    while left:
        kinds = {f"{kind} at the {end.name}" for end, kind, *_ in left}
        need(time.monotonic() < deadline, f"{len(left)} slow connections are open after {PATIENCE} s: {', '.join(sorted(kinds))}")
        for _, kind, number, stream in left:
            if kind == "dripping":
                with contextlib.suppress(OSError):
                    stream.send(dripped(number)[sent:sent + 1])
        sent, second = sent + 1, time.monotonic() + 1
        while left and time.monotonic() < second:
            time.sleep(0.1)
            left = [one for one in left if not closed(one[3], heard[one])]
    for (end, kind, number, _), answer in heard.items():
        said = tuple(statuses(answer))
        allowed = {"dripping": [(), (400,), (408,)], "stalled": [(408,)]}[kind]
        need(said in allowed, f"{kind} connection {number} at the {end.name} is answered {bytes(answer[:400])!r}")
        name = f"{kind} {said[0] if said else 'closed'}"
        counts[name] = counts.get(name, 0) + 1
    return counted(counts)


def slow(cluster):
    """`http.header_timeout` and `http.body_timeout` are short here, and the time of a query is asked for."""
    many = "\n".join(f"many n={number}i {number}" for number in range(1, 2001))
    cluster.stored |= {"long.many", "long.one"}
    for lines in (many, f'one text="{"x" * 30_000}" 1'):
        status, text = cluster.write(cluster.node, "long", lines)
        need(status == 204, f"what a long answer is made of is written with {status} {text}")
    question = urllib.parse.urlencode({"db": "long", "q": "SELECT text FROM one CROSS JOIN many", "format": "csv", "timeout": "2s"})
    question = head("GET", f"/api/v3/query_sql?{question}", f"authorization: Bearer {cluster.token}")
    before = {end: end.sockets() for end in cluster.ends}
    with contextlib.ExitStack() as opened:
        with Meanwhile(cluster) as calm:
            unread = crowd(opened, cluster, "unread", UNREAD, lambda _: question, 4096)
            others = crowd(opened, cluster, "dripping", DRIPPING)
            others += crowd(opened, cluster, "stalled", STALLED, lambda number: stalled(number, cluster.token))
            figures = outlasted(others)
            running = lambda: cluster.metric(cluster.node, "skein_http_requests_running")  # noqa: E731
            until("the places of queries whose answers nobody reads are given back", lambda: running() <= 2)
            begun = sum(peeked(stream).startswith(b"HTTP/1.1 200") for *_, stream in unread)
            need(begun, f"not one of {len(unread)} long answers has begun, the first is {peeked(unread[0][3])!r}")
        answered = calm.figures("with slow clients")
        # The kernel would tell the client of a close only when it reads on, so the process is asked.
        for end, count in before.items():
            until(f"connections whose answers nobody reads are closed by the {end.name}", lambda: end.sockets() <= count + 1)
    return f"{figures}, {begun} of {len(unread)} unread begun and closed; meanwhile {answered}"


def limits(cluster, requests, connections, most):
    """`http.max_requests` and `http.max_connections` are small here."""
    before = {end: end.sockets() for end in cluster.ends}
    for end in cluster.ends:
        places(cluster, end, requests)
        until(f"the {end.name} has closed what its clients have closed", lambda: end.sockets() <= before[end] + 1)
        full_port(cluster, end, connections)
    cluster.stored.add("healthy.served")
    figures = heads(cluster, most)
    for end in cluster.ends:
        pinned(end, connections)
    return f"{requests} requests and {connections} connections at each end; {figures}"


def places(cluster, end, requests):
    """Bodies that do not come take all places: others are told so, and served when these are gone."""
    running = lambda: cluster.metric(end, "skein_http_requests_running")  # noqa: E731
    announced = head("POST", "/write?db=outer", f"authorization: Bearer {cluster.token}", "content-length: 100") + b"cpu"
    holders = [connected(end.address, announced) for _ in range(requests)]
    until(f"{requests} requests hold the places of the {end.name}", lambda: running() == requests)
    for what, (status, text) in {
        "a write": cluster.write(end, "healthy", "refused n=1i 1"),
        "a query": cluster.query(end, "healthy", "SELECT 1"),
    }.items():
        told = status == 429 and "http.max_requests" in text
        need(told, f"with {requests} requests under way at the {end.name}, {what} is answered {status} {text}")
    status, _ = end.ask("GET", "/readyz")
    need(status == 200, f"with {requests} requests under way, /readyz of the {end.name} is answered {status}")
    for stream in holders:
        stream.close()
    until(f"the places of the {end.name} are free again", lambda: running() == 0)
    answers = cluster.write(end, "healthy", "served n=1i 1")[0], cluster.query(end, "healthy", "SELECT 1")[0]
    need(answers == (204, 200), f"a write and a query by the {end.name}, when the places are free again, are answered {answers}")


def full_port(cluster, end, connections):
    """Who comes when the port is full waits to be accepted; the unix socket needs no place."""
    before = end.sockets()
    holders = [connected(end.address) for _ in range(connections)]
    until(f"the {end.name} has accepted {connections} connections", lambda: end.sockets() >= before - 1 + connections)
    late = connected(end.address, head("GET", "/ping", "connection: close"))
    # That nothing comes cannot be waited for; if it does come, this has seen it.
    need(not select.select([late], [], [], 0.3)[0], f"one connection more than {connections} is answered by the {end.name}")
    status, _ = end.over_unix("GET", "/readyz")
    need(status == 200, f"the unix socket of the {end.name}, whose port is full, answers {status}")
    holders.pop().close()
    heard = bytearray()
    until(f"the {end.name} has a place for the one that waited", lambda: closed(late, heard))
    need(statuses(heard) == [204], f"the one that waited at the {end.name} is answered {bytes(heard)!r}")
    for stream in (late, *holders):
        stream.close()
    until(f"the {end.name} has closed what its clients have closed", lambda: end.sockets() <= before + 1)


def heads(cluster, most):
    """Heads that are too long in every part that can be; and what else comes before a body and has no end."""
    auth = f"authorization: Bearer {cluster.token}"
    chunked = head("POST", "/write?db=outer", auth, "transfer-encoding: chunked")
    rubbish = b"x" * (16 * MIB)
    asked = {
        "a value of 1 MiB": head("GET", "/ping", f"x: {'a' * MIB}"),
        "a name of 1 MiB": head("GET", "/ping", f"{'a' * MIB}: x"),
        "a target of 1 MiB": head("GET", "/ping?" + "a" * MIB),
        "a path of 1 MiB": head("GET", "/" * MIB),
        "a target of 65,535 bytes": head("GET", "/ping?" + "a" * (65_535 - 6)),
        "a method of 1 MiB": head("A" * MIB, "/ping"),
        "a host of 1 MiB": head("GET", "/ping").replace(b"localhost", b"l" * MIB),
        "a version of 1 MiB": b"GET /ping HTTP/1.1" + b"1" * MIB + b"\r\nhost: localhost\r\n\r\n",
        "101 lines": head("GET", "/ping", *["x: y"] * 100),
        "10,000 lines": head("GET", "/ping", *["x: y"] * 10_000),
        "1,000,000 empty names": head("GET", "/ping", *[":"] * MIB),
        "a token of 60 KiB twice": head("GET", "/metrics", *[f"authorization: Bearer {'a' * (60 << 10)}"] * 2),
        "no end of the target": b"GET /" + rubbish,
        "no end of a name": b"GET /ping HTTP/1.1\r\n" + rubbish,
        "no end of lines": b"GET /ping HTTP/1.1\r\n" + b"x: y\r\n" * (2 * MIB),
        "no end of empty lines": b"\r\n" * (8 * MIB) + b"\0",
        "no end of a chunk size": chunked + b"0" * (16 * MIB),
        "no end of a chunk extension": chunked + b"1;" + rubbish,
        "no end of chunk extensions": chunked + (b"1;" + b"x" * 1000 + b"\r\na\r\n") * (16 * MIB >> 10),
        "no end of a trailer": chunked + b"0\r\n" + rubbish,
        "no end of trailers": chunked + b"0\r\n" + b"x: y\r\n" * (2 * MIB),
    }
    peaks, counts = {end: Peak(end) for end in cluster.ends}, {}
    cases = [(end, name, data) for name, data in asked.items() for end in cluster.ends]
    with ThreadPoolExecutor(3) as pool:
        for (end, name, _), answer in zip(cases, pool.map(lambda case: exchange(case[0].address, case[2]), cases)):
            said = statuses(answer)
            need(not said or said[0] in (400, 408, 413, 431) and len(said) == 1, f"{name} at the {end.name}: {answer[:300]!r}")
            word = said[0] if said else "closed"
            counts[word] = counts.get(word, 0) + 1
            peaks[end].below(most, f"with {name}")
    return f"{len(asked)} heads without measure: {counted(counts)}, {grown(peaks)} of {most} MiB"


def pinned(end, connections):
    """Whoever asks for much, reads nothing and shows no token keeps no place for ever."""
    asked = head("GET", "/api/v1/openapi.json") * 1000
    holders = []
    for _ in range(connections):
        holders.append(connected(end.address, room=4096))
        with contextlib.suppress(BlockingIOError):
            while holders[-1].send(asked):
                pass
    late, heard = connected(end.address, head("GET", "/ping", "connection: close")), bytearray()
    until(f"the {end.name} gives up {connections} connections that read nothing of their answers", lambda: closed(late, heard))
    need(statuses(heard) == [204], f"the one that waited for those that do not read is answered {bytes(heard)!r} by the {end.name}")
    for stream in (late, *holders):
        stream.close()
