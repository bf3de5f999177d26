"""Floods and broken frames over HTTP/2, written by hand: without TLS a connection begins with the preface alone."""

import itertools
import select
import struct
import time
from concurrent.futures import ThreadPoolExecutor

from cluster import PATIENCE, Meanwhile, Peak, grown, need, until
from connections import closed, connected
from smuggling import AT, CASE, hidden_request

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, ACK = 1, 4, 8, 1
# Of a frame that nobody has allowed to be longer.
LONGEST = 1 << 14


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def text(value):
    """Without Huffman, behind its length in a prefix of 7 bits (RFC 7541, 5.1)."""
    value = value.encode("latin-1") if isinstance(value, str) else value
    if len(value) < 127:
        return bytes([len(value)]) + value
    length, rest = b"\x7f", len(value) - 127
    while rest > 127:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return length + bytes([rest]) + value


def field(name, value, indexed=False):
    """A literal; `indexed` puts it into the table of the connection."""
    return (b"\x40" if indexed else b"\0") + text(name) + text(value)


def fields(method, path, *more, authority="localhost"):
    pseudo = ((":method", method), (":scheme", "http"), (":path", path), (":authority", authority))
    return b"".join(field(*one) for one in (*pseudo, *more))


class Talk:
    """A connection on which anything may be sent, whether or not the other end reads."""

    def __init__(self, end, *settings, room=None):
        first = PREFACE + frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in settings))
        self.stream, self.heard, self.over = connected(end.address, first, room), bytearray(), False

    def send(self, data, reads=True, patience=PATIENCE):
        """Until all is sent, the other end has closed, or it takes nothing for so long."""
        data, at = memoryview(data), 0
        while at < len(data) and not self.over:
            readable, writable, _ = select.select([self.stream] if reads else [], [self.stream], [], patience)
            if not readable and not writable:
                break
            if readable:
                self.over = closed(self.stream, self.heard)
            if writable:
                try:
                    at += self.stream.send(data[at:at + (1 << 18)])
                except BlockingIOError:
                    pass
                except OSError:
                    self.over = True
        return at

    def read(self, enough):
        """The frames that have come, once the connection is closed or these are enough."""
        end = time.monotonic() + PATIENCE
        while not self.over and not enough(self.frames()) and (rest := end - time.monotonic()) > 0:
            if select.select([self.stream], [], [], rest)[0]:
                self.over = closed(self.stream, self.heard)
        return self.frames()

    def settled(self):
        """Whether the other end has dealt with what was sent: it answers a PING behind that, or has closed."""
        word, end = b"finished", time.monotonic() + PATIENCE
        self.send(frame(PING, payload=word))
        while not self.over and word not in self.heard[-256:] and (rest := end - time.monotonic()) > 0:
            if select.select([self.stream], [], [], rest)[0]:
                self.over = closed(self.stream, self.heard)
        return self.over or word in self.heard[-256:]

    def frames(self):
        """Kind, flags, stream and payload of each."""
        found, at = [], 0
        while at + 9 <= len(self.heard):
            length = int.from_bytes(self.heard[at:at + 3], "big")
            if at + 9 + length > len(self.heard):
                break
            kind, flags, stream = struct.unpack_from(">BBI", self.heard, at + 3)
            found.append((kind, flags, stream, bytes(self.heard[at + 9:at + 9 + length])))
            at += 9 + length
        return found


def floods(token):
    """What is sent behind the preface and the first SETTINGS."""
    auth = ("authorization", f"Bearer {token}")
    ask = fields("GET", "/api/v3/query_sql?db=healthy&q=SELECT+count(*)+FROM+point", auth)
    opened = lambda stream, block=ask: frame(HEADERS, END_STREAM | END_HEADERS, stream, block)  # noqa: E731
    odd = range(1, 40_001, 2)
    big = field("x", "y" * (LONGEST - 100))
    begun = frame(HEADERS, 0, 1, fields("GET", "/ping"))
    write = frame(HEADERS, END_HEADERS, 1, fields("POST", "/write?db=outer", auth))
    # 4,000 bytes in the table of the connection, and a byte for each time that they are meant again.
    referred = fields("GET", "/ping") + field("x", "y" * 4000, True) + b"\xbe" * 12_000
    return {
        # CVE-2023-44487, of requests that cost something and of some that cost nothing.
        "rapid reset of queries": b"".join(opened(s) + frame(RESET, 0, s, b"\0\0\0\x08") for s in odd),
        "rapid reset of pings": b"".join(opened(s, fields("GET", "/ping")) + frame(RESET, 0, s, b"\0\0\0\x08") for s in odd),
        # The server resets the streams itself: CVE-2025-8671.
        "resets that the server is made to send": b"".join(opened(s) + frame(WINDOW, 0, s, b"\0\0\0\0") for s in odd),
        "streams without end": b"".join(opened(s, fields("GET", "/api/v1/openapi.json")) for s in odd),
        # CVE-2024-27316.
        "CONTINUATION": begun + frame(CONTINUATION, 0, 1, big) * 4000,
        "CONTINUATION of nothing": begun + frame(CONTINUATION, 0, 1) * 500_000,
        "CONTINUATION of single bytes": begun + b"".join(frame(CONTINUATION, 0, 1, b"\0") for _ in range(200_000)),
        # CVE-2019-9511 to 9518.
        "SETTINGS": frame(SETTINGS, payload=struct.pack(">HI", 3, 100)) * 1_000_000,
        "SETTINGS of many values": frame(SETTINGS, payload=struct.pack(">HI", 4, 65_535) * 2000) * 200,
        "SETTINGS of the table": frame(SETTINGS, payload=struct.pack(">HIHI", 1, 0, 1, 1 << 31)) * 100_000,
        "PING": frame(PING, payload=b"12345678") * 1_000_000,
        "PRIORITY": b"".join(frame(PRIORITY, 0, s, b"\0\0\0\0\xff") for s in odd) * 4,
        "WINDOW_UPDATE": write + frame(WINDOW, 0, 1, b"\0\0\0\x01") * 200_000,
        "DATA of nothing": write + frame(DATA, 0, 1) * 200_000,
        "DATA of padding": write + frame(DATA, PADDED, 1, b"\xff" + bytes(255)) * 20_000,
        "frames of no kind": frame(0xEE, 0xFF, 1, bytes(LONGEST)) * 4000,
        "lines that refer to a long one": b"".join(opened(s, referred) for s in odd[:200]),
        "DATA over the window": write + frame(DATA, 0, 1, bytes(LONGEST)) * 1000,
    }


def broken(token):
    """What no client may send: the connection or the stream ends, and nobody is answered well."""
    ask = fields("GET", "/ping")
    post = fields("POST", "/write?db=outer", ("authorization", f"Bearer {token}"))
    block = lambda block: frame(HEADERS, END_STREAM | END_HEADERS, 1, block)  # noqa: E731
    return {
        "a frame of 2^24-1 bytes": b"\xff\xff\xff\0\0\0\0\0\x01",
        "a frame one byte too long": frame(HEADERS, END_STREAM | END_HEADERS, 1, ask + field("x", "y" * LONGEST)),
        "headers of no stream": frame(HEADERS, END_STREAM | END_HEADERS, 0, ask),
        "a stream of the server's": frame(HEADERS, END_STREAM | END_HEADERS, 2, ask),
        "data of a stream that is not there": frame(DATA, END_STREAM, 1, b"x"),
        "data of no stream": frame(DATA, END_STREAM, 0, b"x"),
        "a reset of a stream that is not there": frame(RESET, 0, 1, b"\0\0\0\0"),
        "CONTINUATION of nothing begun": frame(CONTINUATION, END_HEADERS, 1, ask),
        "PING within headers": frame(HEADERS, END_STREAM, 1, ask) + frame(PING, payload=bytes(8)),
        "a promise": frame(PUSH, END_HEADERS, 1, b"\0\0\0\x02" + ask),
        "a PING of 7 bytes": frame(PING, payload=bytes(7)),
        "SETTINGS of 5 bytes": frame(SETTINGS, payload=bytes(5)),
        "SETTINGS of a stream": frame(SETTINGS, 0, 1),
        "an acknowledgement with something in it": frame(SETTINGS, ACK, 0, bytes(6)),
        "a window of 2^31": frame(SETTINGS, payload=struct.pack(">HI", 4, 1 << 31)),
        "frames of at most 1 byte": frame(SETTINGS, payload=struct.pack(">HI", 5, 1)),
        "a window that grows by nothing": frame(WINDOW, payload=bytes(4)),
        "a window above 2^31": frame(WINDOW, payload=b"\x7f\xff\xff\xff") * 2,
        "padding that is longer than its frame": frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, b"\xff" + ask[:100]),
        "a name of no index": block(b"\xff\xff\xff\xff\x0f"),
        "index 0": block(b"\x80"),
        "an index without end": block(b"\xff" + b"\xff" * 100),
        "a text that is longer than its block": block(b"\0\x7f\xff\xff\xff\xff\x07x"),
        "a table of 2^31": block(b"\x3f\xe1\xff\xff\xff\x07"),
        "Huffman of nothing but ends": block(b"\0\x84\xff\xff\xff\xff\x01x"),
        "a preface twice": PREFACE,
        "HTTP/1 behind the preface": b"GET /ping HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "rubbish": b"\xde\xad\xbe\xef" * 4096,
        "a stream that goes back": frame(HEADERS, END_HEADERS, 9, post) + frame(HEADERS, END_HEADERS, 7, post),
    }


def hidden_in(token, other):
    """Requests whose parts would say something else if they were written down as HTTP/1. Head, data, and what may end the stream."""
    hidden = hidden_request(other, database="behind").replace(CASE, b"h2")
    n, auth = len(hidden), ("authorization", f"Bearer {token}")
    path = "/write?db=outer"
    injected = b"x\r\ncontent-length: 0\r\n\r\n" + hidden

    def post(*more, path=path, method="POST", **authority):
        return fields(method, path, auth, *more, **authority)

    plain = field(":method", "POST") + field(":scheme", "http") + field(":authority", "localhost")
    cases = {
        "a length of nothing": post(("content-length", "0")),
        "a length that is too short": post(("content-length", "5")),
        "a length that is too long": post(("content-length", str(n + 50))),
        "two lengths": post(("content-length", str(n)), ("content-length", "0")),
        "a list of lengths": post(("content-length", f"{n}, 0")),
        "a length with plus": post(("content-length", f"+{n}")),
        "a length that is no number": post(("content-length", "0x5")),
        "transfer-encoding": post(("transfer-encoding", "chunked")),
        "transfer-encoding and a length": post(("transfer-encoding", "chunked"), ("content-length", str(n))),
        "connection": post(("connection", "transfer-encoding, content-length")),
        "keep-alive": post(("keep-alive", "timeout=1")),
        "proxy-connection": post(("proxy-connection", "close")),
        "upgrade": post(("upgrade", "h2c")),
        "te": post(("te", "chunked")),
        "capitals in a name": post(("Content-Length", "0")),
        "a colon in a name": post(("content-length: 0\r\nx", "y")),
        "a space in a name": post(("content-length ", "0")),
        "a name of CR and LF": post(("x: y\r\ncontent-length", "0")),
        "no name": post(("", "x")),
        "NUL in a name": post(("x\0", "y")),
        "another request in a value": post(("x", injected)),
        "LF in a value": post(("x", "y\ncontent-length: 0")),
        "CR in a value": post(("x", "y\rz")),
        "NUL in a value": post(("x", "y\0z")),
        "another request in the path": post(path=b"/ping HTTP/1.1\r\nhost: " + injected),
        "a space in the path": post(path="/write?db=behind HTTP/1.1"),
        "another request in the method": post(method=b"GET /ping HTTP/1.1\r\nhost: " + injected),
        "a space in the method": post(method="POST /write?db=behind"),
        "another request in the authority": post(authority=b"localhost\r\n" + injected),
        "a path in the authority": post(authority="localhost/write?db=behind"),
        "a user in the authority": post(authority="localhost@evil.example"),
        "another authority": post(authority="evil.example"),
        "two hosts besides": post(("host", "localhost"), ("host", "evil.example")),
        "a whole URI as scheme": field(":method", "POST") + field(":scheme", "http://localhost/write?db=behind#")
                                 + field(":path", path) + field(":authority", "localhost") + field(*auth),
        "two paths": plain + field(":path", path) + field(":path", "/write?db=behind") + field(*auth),
        "two methods": field(":method", "GET") + post(),
        "no path": plain + field(*auth),
        "an empty path": post(path=""),
        "a path without slash": post(path="write?db=behind"),
        "a path that is a URI": post(path="http://localhost/write?db=behind"),
        "the asterisk": post(path="*"),
        "the path behind a header": plain + field(*auth) + field(":path", path),
        "a status": post((":status", "200")),
        "a word with a colon": post((":x", "y")),
        "CONNECT to a path": post(method="CONNECT"),
        "a protocol": post((":protocol", "websocket"), method="CONNECT"),
    }
    sent = {name: frame(HEADERS, END_HEADERS, 1, head) + frame(DATA, END_STREAM, 1, hidden) for name, head in cases.items()}
    begun = frame(HEADERS, END_HEADERS, 1, post()) + frame(DATA, 0, 1, hidden)
    for name, block in {
        "a path": field(":path", "/write?db=behind"),
        "a length": field("content-length", "0"),
        "a transfer-encoding": field("transfer-encoding", "chunked"),
        "another request": field("x", injected),
    }.items():
        sent[f"{name} in the trailers"] = begun + frame(HEADERS, END_STREAM | END_HEADERS, 1, block)
    sent["data behind the end"] = frame(HEADERS, END_STREAM | END_HEADERS, 1, post()) + frame(DATA, END_STREAM, 1, hidden)
    return sent


def status_class(block):
    """The first digit of the status, which stands first in the block of an answer: in the table, or a literal."""
    known = {0x88: 2, 0x89: 2, 0x8A: 2, 0x8B: 3, 0x8C: 4, 0x8D: 4, 0x8E: 5}
    if block[0] in known:
        return known[block[0]]
    if not block[1] & 0x80:
        return block[2] - ord("0")
    # How Huffman begins these digits: five bits of a 2, six of the others.
    return 2 if block[2] >> 3 == 0b00010 else {0b011001: 3, 0b011010: 4, 0b011011: 5}[block[2] >> 2]


def answered(frames):
    return [status_class(payload) for kind, _, _, payload in frames if kind == HEADERS]


def good(cluster, end):
    """What is sent here would be answered, if it were in order."""
    talk = Talk(end)
    head = fields("POST", "/write?db=outer", ("authorization", f"Bearer {cluster.token}"))
    talk.send(frame(HEADERS, END_HEADERS, 1, head) + frame(DATA, END_STREAM, 1, b"h2,end=%b v=1i 1" % end.name.encode()))
    said = answered(talk.read(answered))
    talk.stream.close()
    need(said == [2], f"a good write over HTTP/2 by the {end.name} is answered {talk.frames()}")


def windowless(cluster, end):
    """A hundred streams that want long answers, and have no room for a byte of them."""
    auth = ("authorization", f"Bearer {cluster.token}")
    paths = ("/api/v1/openapi.json", "/api/v3/query_sql?db=healthy&timeout=2s&q=SELECT+*+FROM+point", "/metrics", "/ui/app.js")
    talk = Talk(end, (4, 0))
    asked = (frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, fields("GET", paths[number % 4], auth)) for number in range(100))
    talk.send(b"".join(asked))
    frames = talk.read(lambda frames: len(answered(frames)) == 100)
    need(answered(frames) == [2] * 100, f"100 streams without a window are answered {answered(frames)} by the {end.name}")
    data = [payload for kind, _, _, payload in frames if kind == DATA and payload]
    need(not data, f"the {end.name} has sent {sum(map(len, data))} bytes into a window of none")
    return talk


def flooded(cluster, end, peak, most):
    """How many connections have ended of those on which the end was flooded."""
    ended = 0
    for name, data in floods(cluster.token).items():
        talk = Talk(end, room=4096)
        # First without reading what comes back, until the other end takes no more.
        sent = talk.send(data, reads=False, patience=1)
        talk.send(data[sent:])
        need(talk.settled(), f"a flood, {name}, neither ends its connection to the {end.name} nor is dealt with")
        talk.stream.close()
        ended += talk.over
        peak.below(most, f"with a flood over HTTP/2: {name}")
    return ended


def refused(end, name, data):
    talk = Talk(end)
    talk.send(data)
    frames = talk.read(lambda frames: any(kind in (RESET, GOAWAY, HEADERS) for kind, *_ in frames))
    said = answered(frames)
    ended = talk.over or any(kind in (RESET, GOAWAY) for kind, *_ in frames)
    need(said or ended, f"{name} over HTTP/2 gets no answer by the {end.name}")
    need(set(said) <= {4}, f"{name} over HTTP/2 is answered with a status of {said} hundred by the {end.name}: {frames}")
    talk.stream.close()


def run(cluster, most):
    # What is hidden is taken where it is plainly a body: here, whichever of the ambiguous ones are.
    cluster.stored |= {"outer.h2", "outer.canary"}
    status, text = cluster.write(cluster.node, "outer", f"canary,case=h2 v=1i {AT}")
    need(status == 204, f"a good write is answered {status} {text}")
    for end in cluster.ends:
        good(cluster, end)
    bad = broken(cluster.token), hidden_in(cluster.token, cluster.api_token("write", databases=["behind"]))
    peaks = {end: Peak(end) for end in cluster.ends}
    with Meanwhile(cluster) as calm, ThreadPoolExecutor(2) as pool:
        held = [windowless(cluster, end) for end in cluster.ends]
        ended = sum(pool.map(lambda one: flooded(cluster, *one, most), peaks.items()))
        for name, data in itertools.chain(*(cases.items() for cases in bad)):
            for end in cluster.ends:
                refused(end, name, data)
        # It answers what keeps a connection alive, and takes nothing for longer than `http.answer_timeout`.
        for talk, end in zip(held, cluster.ends):
            talk.read(lambda _: False)
            need(talk.over, f"the {end.name} keeps a connection over HTTP/2 that has no window")
            talk.stream.close()
    figures = calm.figures("with floods over HTTP/2")
    running = lambda: cluster.metric(cluster.node, "skein_http_requests_running")  # noqa: E731
    until("requests over HTTP/2 that nobody waits for have ended", lambda: running() == 0)
    for end, peak in peaks.items():
        peak.below(most, "at the end")
    rows = cluster.rows("outer", 'SELECT "end" FROM h2 ORDER BY 1')
    need([row["end"] for row in rows] == ["gateway", "node"], f"of two writes over HTTP/2 there are {rows}")
    many, (frames, requests) = len(floods("")), map(len, bad)
    return f"{many} floods at each end, {ended} of {2 * many} connections ended, {frames} with broken frames, {requests} ambiguous " \
           f"requests, {grown(peaks)} of {most} MiB; meanwhile {figures}"
