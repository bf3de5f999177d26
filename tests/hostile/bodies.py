"""Bodies that are small and ask for much memory: compressed, or by the lengths that stand in them."""

import gzip
import itertools
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

from cluster import MIB, Meanwhile, Peak, counted, exchange, grown, need, statuses, until

# What each stream comes to when it is unpacked.
WHOLE = 4 << 30
AT_ONCE = 8


def zeros():
    """So many zeros as raw deflate. Behind a full flush nothing refers back, so that a part can be repeated."""
    part = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (part.compress(bytes(64 * MIB)) + part.flush(zlib.Z_FULL_FLUSH)) * (WHOLE // (64 * MIB)) + b"\x03\0"


def zstd(window=7, size=None, content=WHOLE, single=False):
    """A frame of blocks that say: this byte, so often. A window of 2^(10 + window) bytes; 128 KiB are the most in a block."""
    head = b"\x28\xb5\x2f\xfd" + bytes([(0xC0 if size else 0) | (0x20 if single else 0)])
    head += b"" if single else bytes([window << 3])
    head += struct.pack("<Q", size) if size else b""
    count = content // (128 << 10)
    block = lambda last: ((128 << 10) << 3 | 1 << 1 | last).to_bytes(3, "little") + b"\0"  # noqa: E731
    return head + block(0) * (count - 1) + block(1)


def bombs():
    """Name, coding and bytes. Checksums and lengths are those of what is unpacked, as far as there are any."""
    raw = zeros()
    # CRC-32 of 2^32 zeros, and their count in 32 bits.
    single = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + raw + struct.pack("<II", 0xD202EF8D, 0)
    return [
        ("gzip", "gzip", single),
        ("gzip that nobody names", None, single),
        ("gzip of many members", "gzip", gzip.compress(bytes(64 * MIB), 9) * (WHOLE // (64 * MIB))),
        ("gzip of gzip", "gzip", gzip.compress(single, 9)),
        ("gzip of gzip, both named", "gzip, gzip", gzip.compress(single, 9)),
        ("gzip of empty members", "gzip", gzip.compress(b"") * (4 * MIB // 20)),
        ("zlib", "deflate", b"\x78\xda" + raw + struct.pack(">I", WHOLE % 65521 << 16 | 1)),
        ("raw deflate", "deflate", raw),
        ("zstd", "zstd", zstd()),
        ("zstd that nobody names", None, zstd()),
        ("zstd with a window of 32 MiB", "zstd", zstd(window=15)),
        ("zstd with a window of 2 GiB", "zstd", zstd(window=21)),
        ("zstd with the largest window", "zstd", zstd(window=31)),
        ("zstd that says 2^40 bytes", "zstd", zstd(size=1 << 40)),
        ("zstd that says 2^40 bytes in one segment", "zstd", zstd(size=1 << 40, single=True)),
        ("zstd of many frames", "zstd", zstd(content=128 << 10) * (4 * MIB // 10)),
        ("zstd of empty frames to skip", "zstd", b"\x50\x2a\x4d\x18\0\0\0\0" * (MIB // 8)),
        ("zstd of a frame to skip that is not there", "zstd", b"\x50\x2a\x4d\x18\xff\xff\xff\xff"),
    ]


def post(cluster, end, target, body, *headers):
    head = [f"POST {target} HTTP/1.1", "host: localhost", f"authorization: Bearer {cluster.token}", "connection: close"]
    head += [f"content-length: {len(body)}", *(header for header in headers if header), "", ""]
    return exchange(end.address, "\r\n".join(head).encode(), body)


def refused(what, answer, allowed):
    """An answer that is missing, as a close before all was sent may cost it, is a refusal."""
    said = statuses(answer)
    need(not said or len(said) == 1 and said[0] in allowed, f"{what} is answered {answer[:400]!r}")
    return said[0] if said else "closed"


def decompression(cluster, most, slack):
    """Both ends are sent each bomb several times at once. `most` MiB may be taken by bodies, `slack` by all else:
    decoders, what connections read into, stacks, and code that is used for the first time."""
    cluster.stored.add("outer.warm")
    for end in cluster.ends:
        answer = post(cluster, end, "/api/v3/write_lp?db=outer", gzip.compress(b"warm v=1i 1"), "content-encoding: gzip")
        need(statuses(answer) == [204], f"a good body in gzip at the {end.name}: {answer!r}")
    peaks, counts, names = {end: Peak(end) for end in cluster.ends}, {}, 0
    routes = itertools.cycle(("/api/v3/write_lp?db=bombs", "/api/v1/write/msgpack?db=bombs", "/api/v1/query"))
    with ThreadPoolExecutor(2 * AT_ONCE) as pool:
        for name, coding, body in bombs():
            header = coding and f"content-encoding: {coding}"
            asked = [(end, next(routes)) for _ in range(AT_ONCE) for end in cluster.ends]
            answers = pool.map(lambda one: post(cluster, *one, body, header), asked)  # noqa: B023
            for (end, route), answer in zip(asked, answers):
                # A client that was too slow is told so.
                said = refused(f"{name} at {route} of the {end.name}", answer, (400, 408, 413, 429))
                counts[said] = counts.get(said, 0) + 1
            for peak in peaks.values():
                peak.below(most + slack, f"with {AT_ONCE} bodies of {len(body)} bytes at once: {name}")
            names += 1
    for end in cluster.ends:
        until(f"no body counts at the {end.name} any more", lambda: cluster.metric(end, "skein_http_body_bytes") == 0)
    return f"{names} bombs, {AT_ONCE} at once at each end: {counted(counts)}; {grown(peaks)} of {most} MiB and {slack}"


def packed(value):
    """MessagePack of what Python has; bytes stand for themselves, so that a wrong part can be put anywhere."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        text = value.encode()
        return b"\xdb" + struct.pack(">I", len(text)) + text
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(packed, value))
    pairs = [packed(key) + packed(part) for key, part in value.items()]
    return b"\xdf" + struct.pack(">I", len(pairs)) + b"".join(pairs)


def lengths():
    """Bodies for the route of MessagePack: of most, little is there of what they announce."""
    most, time, v = b"\xff\xff\xff\xff", [1700000000], [1.5]
    item = lambda **parts: packed({"m": "t", **parts})  # noqa: E731
    columns = lambda **columns: item(columns={"time": time, **columns})  # noqa: E731
    return {
        "a list of 2^32-1": b"\xdd" + most,
        "a map of 2^32-1": b"\xdf" + most,
        "a text of 2^32-1": b"\xdb" + most,
        "binary of 2^32-1": b"\xc6" + most,
        "an extension of 2^32-1": b"\xc9" + most + b"\x01",
        "a list of 2^16-1": b"\xdc\xff\xff",
        "a list of 2^32-1 items, one there": b"\xdd" + most + item(t=1700000000, fields={"v": 1}),
        "a batch of 2^32-1": packed({"batch": b"\xdd" + most}),
        "a batch of 2^32-1, two there": packed({"batch": b"\xdd" + most + 2 * item(t=1700000000, fields={"v": 1})}),
        "2^32-1 columns": item(columns=b"\xdf" + most + packed("time") + packed(time)),
        "columns of 2^32-1 values": columns(v=b"\xdd" + most),
        "columns of 2^32-1 values, one there": columns(v=b"\xdd" + most + packed(1.5)),
        "times of 2^32-1": item(columns={"time": b"\xdd" + most, "v": v}),
        "a value of 2^32-1": columns(v=[b"\xdb" + most]),
        "a name of 2^32-1": packed({"m": b"\xdb" + most}),
        "tag keys of 2^32-1": item(columns={"time": time, "v": v}, tag_keys=b"\xdd" + most),
        "2^32-1 fields": item(t=1, fields=b"\xdf" + most),
        "2^32-1 values": item(t=1, f=b"\xdd" + most),
        "columns longer than time": columns(v=[1.5, 2.5]),
        "columns shorter than time": columns(v=[]),
        "columns of no length": columns(v=1.5),
        "columns of three lengths": item(columns={"time": [1, 2, 3], "a": [1.5], "b": [1.5, 2.5]}),
        "time that is no list": item(columns={"time": 1700000000, "v": v}),
        "time that is an extension": item(columns={"time": [b"\xd6\xff\0\0\0\0"], "v": v}),
        "values that are extensions": columns(v=[b"\xd4\x05\0"]),
        "an item that is an extension": b"\xc7\x01\x05\0",
        "values that are lists": columns(v=[[1.5]]),
        "values of two kinds": columns(v=[{"a": 1}]),
        "binary values": columns(v=[b"\xc4\x01\0"]),
        "the byte that is never used": b"\xc1",
        "that byte within": columns(v=[b"\xc1"]),
        "nothing": b"",
        "a value behind the value": item(t=1700000000, fields={"v": 1}) + b"\xc0",
        "a text that is not UTF-8": columns(v=[b"\xa2\xff\xfe"]),
        "a name that is not UTF-8": packed({"m": b"\xa2\xff\xfe", "t": 1700000000, "fields": {"v": 1}}),
        "a name of 1 MiB": packed({"m": "n" * MIB, "t": 1700000000, "fields": {"v": 1}}),
        "a name that is a list": packed({"m": ["t"], "t": 1700000000, "fields": {"v": 1}}),
        "700 lists within each other": b"\x91" * 700 + b"\xc0",
        "100,000 lists within each other": b"\x91" * 100_000 + b"\xc0",
        "700 maps within each other": b"\x81\xa1a" * 700 + b"\xc0",
        "100,000 maps within each other": b"\x81\xa1a" * 100_000 + b"\xc0",
        "100,000 lists that begin": b"\xdd" + (b"\0\0\0\1\xdd" * 100_000),
        "100,000 lists in a value": columns(v=[b"\x91" * 100_000 + b"\xc0"]),
        "100,000 lists in a key": b"\x81" + b"\x91" * 100_000 + b"\xc0\xc0",
        "1,000,000 items that are none": b"\xdd" + struct.pack(">I", MIB) + b"\xc0" * MIB,
        "1,000,000 empty items": b"\xdd" + struct.pack(">I", MIB) + b"\x80" * MIB,
        "100,000 empty columns": item(columns={"time": time, **{f"c{number}": [] for number in range(100_000)}}),
    }


JSON, FORM = "content-type: application/json", "content-type: application/x-www-form-urlencoded"


def questions(most):
    """Target, kind and body for the routes that take a question as JSON or as a form; `most` bytes are allowed."""
    arc, v3, v1 = "/api/v1/query", "/api/v3/query_sql?db=healthy", "/query"
    many = most - 64

    def sql(text):
        return b'{"sql": "%s"}' % text

    def listed(part):
        return b'{"sql": [' + part * (many // len(part)) + b"0]}"

    named = b"{" + b",".join(b'"%x":0' % number for number in range(many // 10)) + b"}"
    return {
        "100,000 lists within each other": (arc, JSON, b'{"sql":' + b"[" * 100_000),
        "100,000 lists that end": (arc, JSON, b'{"sql":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "100,000 objects within each other": (arc, JSON, b'{"sql":' * 100_000),
        "1,000 lists in params": (arc, JSON, b'{"sql":"SELECT 1","params":' + b"[" * 1000 + b"]" * 1000 + b"}"),
        "100,000 lists as a form's params": (v3, FORM, b"q=SELECT+1&params=" + b"[" * 100_000),
        "a text of 10 MiB": (arc, JSON, sql(b"x" * (10 * MIB))),
        "a text of most bytes": (arc, JSON, sql(b"x" * many)),
        "a text of most bytes in a form": (v3, FORM, b"q=" + b"x" * many),
        "a text of most bytes at /query": (v1, FORM, b"q=" + b"x" * many),
        "a text of escapes": (arc, JSON, sql(b"\\u0000" * (many // 6))),
        "half of a pair": (arc, JSON, sql(b"\\ud800")),
        "a name of most bytes": (arc, JSON, b'{"%s": 1}' % (b"x" * many)),
        "a number of many digits": (arc, JSON, b'{"sql": %s}' % (b"9" * many)),
        "a number out of range": (arc, JSON, b'{"sql": 1e999999}'),
        "no object": (arc, JSON, b"[]"),
        "no text": (arc, JSON, b"\xff\xfe{}"),
        "an object behind the object": (arc, JSON, b'{"sql":"SELECT 1"}{}'),
        "a statement that is null": (arc, JSON, b'{"sql": null}'),
        "brackets within each other": (arc, JSON, sql(b"SELECT " + b"(" * 100_000 + b"1" + b")" * 100_000)),
        "minus signs": (arc, JSON, sql(b"SELECT " + b"- " * 100_000 + b"1")),
        "NOT of NOT": (arc, JSON, sql(b"SELECT " + b"NOT " * 50_000 + b"true")),
        "selects within each other": (arc, JSON, sql(b"SELECT * FROM (" * 15_000 + b"SELECT 1" + b")" * 15_000)),
        "lists in SQL": (arc, JSON, sql(b"SELECT " + b"[" * 100_000 + b"]" * 100_000)),
        "CASE of CASE": (arc, JSON, sql(b"SELECT " + b"CASE WHEN " * 20_000 + b"true" + b" THEN 1 END" * 1_000)),
        "casts of casts": (arc, JSON, sql(b"SELECT 1" + b"::int" * 40_000)),
        "AND of AND": (arc, JSON, sql(b"SELECT true" + b" AND true" * 25_000)),
        "unions": (arc, JSON, sql(b"SELECT 1" + b" UNION ALL SELECT 1" * 12_000)),
        "lists of lists of most bytes": (arc, JSON, listed(b"[],")),
        "numbers of most bytes": (arc, JSON, listed(b"0,")),
        "objects of most bytes": (arc, JSON, listed(b'{"a":0},')),
        "parameters of most bytes": (arc, JSON, b'{"sql":"SELECT 1","params":[' + b"0," * (many // 2) + b"0]}"),
        "names of most bytes": (arc, JSON, named),
        "what is no text of most bytes in a form": (v3, FORM, b"q=" + b"\xff" * many),
        "parts of a form of most bytes": (v3, FORM, b"=&" * (many // 2)),
        "parts of a form of most bytes at /query": (v1, FORM, b"=&" * (many // 2)),
    }


def announced(cluster, most, slack):
    """Each is refused, and nothing of it is stored. Lengths cost nothing, and questions no more than bodies may."""
    packs = {name: ("/api/v1/write/msgpack?db=lengths", "content-type: application/msgpack", body) for name, body in lengths().items()}
    figures = []
    with Meanwhile(cluster) as calm:
        for kind, cases, allowed in (
            ("lengths", packs, slack),
            # As long as they may be, so that they are read: nothing is made of what they do not ask. And longer.
            ("questions", questions(MIB), 12 + slack),
            ("questions that are too long", questions(8 * MIB), most + slack),
        ):
            peaks, counts = {end: Peak(end) for end in cluster.ends}, {}
            for name, (target, coding, body) in cases.items():
                for end in cluster.ends:
                    what = f"{len(body)} bytes to {target} of the {end.name}, {name}"
                    said = refused(f"{what},", post(cluster, end, target, body, coding), range(400, 500))
                    counts[said] = counts.get(said, 0) + 1
                    for peak in peaks.values():
                        peak.below(allowed, f"after {what}")
            figures.append(f"{len(cases)} {kind} at each end: {counted(counts)}, {grown(peaks)} of {allowed} MiB")
    return f"{'; '.join(figures)}; meanwhile {calm.figures('with bodies that are hard to read')}"
