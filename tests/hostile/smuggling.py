"""Requests over HTTP/1 that two parsers may see differently, each with a second request hidden in it.

The outer request is a write to one database, what is hidden is a write to another with a token for it. Read as
one request, the lines of the hidden one are the body: all are bad but the last, which is then a point of the
outer database. So an answer and two tables tell what became of each.
"""

from concurrent.futures import ThreadPoolExecutor

from cluster import exchange, need, statuses

# The time of every point, so that one that is written twice is one.
AT = 1700000000000000000
# In the name of a case, and replaced by a name of the same length.
CASE = b"CASE"

# The whole hidden request is the body of the outer one: its last line is then a point there.
WHOLE = "whole"
# It is refused, or has another body, and nothing of it is a point.
NOTHING = "nothing"


def hidden_request(token, database="canary"):
    """A write that would be good, alone."""
    point = b"canary,case=%s v=1i %d\n" % (CASE, AT)
    head = b"POST /write?db=%s HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n\r\n"
    return head % (database.encode(), token.encode(), len(point)) + point


def corpus(outer, hidden):
    """Name, bytes, what becomes of them, and how many answers there may be. No case is two requests that are both good."""
    n = len(hidden)
    auth = b"host: localhost\r\nauthorization: Bearer %s\r\n" % outer.encode()
    line = b"POST /write?db=outer HTTP/1.1\r\n"
    te, cl = b"transfer-encoding: chunked\r\n", b"content-length: %d\r\n" % n
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (n, hidden)
    ended = b"0\r\n\r\n" + hidden

    def post(headers, body=hidden, line=line, auth=auth):
        return line + auth + headers + b"\r\n" + body

    def sized(value, body=hidden):
        return post(b"content-length:%b\r\n" % value, body)

    def coded(lines, body=chunked):
        return post(lines + b"\r\n", body)

    cases = [
        # Both lengths: the chunks count, and the connection is closed behind them (RFC 9112, 6.1).
        ("CL.TE", post(b"content-length: 6\r\n" + te, ended), NOTHING),
        ("CL.TE, length of all", post(b"content-length: %d\r\n" % len(ended) + te, ended), NOTHING),
        ("TE.CL", post(te + b"content-length: 4\r\n", chunked), WHOLE),
        ("TE.CL, length 0", post(te + b"content-length: 0\r\n", chunked), WHOLE),
        # Two lengths, and lengths that are no numbers.
        ("CL 0 and n", post(b"content-length: 0\r\n" + cl), NOTHING),
        ("CL n and 0", post(cl + b"content-length: 0\r\n"), NOTHING),
        ("CL list", sized(b" 0, %d" % n), NOTHING),
        ("CL twice the same in one line", sized(b" %d, %d" % (n, n)), NOTHING),
        ("CL with plus", sized(b" +%d" % n), NOTHING),
        ("CL plus 0", sized(b" +0"), NOTHING),
        ("CL minus 0", sized(b" -0"), NOTHING),
        ("CL minus 1", sized(b" -1"), NOTHING),
        ("CL hexadecimal", sized(b" 0x%x" % n), NOTHING),
        ("CL with space within", sized(b" %d 0" % n), NOTHING),
        ("CL with exponent", sized(b" 1e2"), NOTHING),
        ("CL with point", sized(b" %d.0" % n), NOTHING),
        ("CL above 64 bits", sized(b" 18446744073709551616"), NOTHING),
        ("CL empty", sized(b""), NOTHING),
        ("CL behind a vertical tab", sized(b" \x0b%d" % n), NOTHING),
        ("CL in other digits", sized(b" \xd9\xa1\xd9\xa2"), NOTHING),
        ("CL in underscores", post(b"content_length: %d\r\ncontent-length: 0\r\n" % n, b"x" + hidden), NOTHING, 2),
        ("CL with leading zeros", sized(b" 000%d" % n), WHOLE),
        ("CL of a body where all is body", post(cl), WHOLE),
        # Codings.
        ("TE identity", coded(b"transfer-encoding: identity", hidden), NOTHING),
        ("TE chunked, identity", coded(b"transfer-encoding: chunked, identity"), NOTHING),
        ("TE identity behind chunked", coded(b"transfer-encoding: chunked\r\ntransfer-encoding: identity"), NOTHING),
        ("TE xchunked", coded(b"transfer-encoding: xchunked"), NOTHING),
        ("TE chunked-x", coded(b"transfer-encoding: chunked-x"), NOTHING),
        ("TE chunked with a parameter", coded(b"transfer-encoding: chunked;q=0.5"), NOTHING),
        ("TE behind a vertical tab", coded(b"transfer-encoding: \x0bchunked"), NOTHING),
        ("TE before a form feed", coded(b"transfer-encoding: chunked\x0c"), NOTHING),
        ("TE in quotes", coded(b'transfer-encoding: "chunked"'), NOTHING),
        ("TE with a NUL", coded(b"transfer-encoding: chunked\0"), NOTHING),
        ("TE folded", coded(b"transfer-encoding:\r\n chunked"), NOTHING),
        ("TE behind a bare CR", coded(b"x: y\rtransfer-encoding: chunked"), NOTHING),
        ("TE cow and CL", post(b"transfer-encoding: cow\r\n" + cl), NOTHING),
        ("TE in underscores", post(b"transfer_encoding: chunked\r\n" + cl), WHOLE),
        ("TE in capitals", coded(b"TRANSFER-ENCODING: CHUNKED"), WHOLE),
        ("TE behind a tab", coded(b"transfer-encoding:\tchunked"), WHOLE),
        ("TE that is empty, and CL", post(b"transfer-encoding:\r\n" + cl), NOTHING),
        # Names and lines.
        ("space before the colon of CL", post(b"content-length : %d\r\n" % n), NOTHING),
        ("tab before the colon of TE", post(b"transfer-encoding\t: chunked\r\n", chunked), NOTHING),
        ("space before the first name", line + b" content-length: %d\r\n" % n + auth + b"\r\n" + hidden, NOTHING),
        ("obsolete fold", post(b"x-folded: a\r\n content-length: %d\r\n" % n), NOTHING),
        ("line without colon", post(b"content-length\r\n" + cl), NOTHING),
        ("line without name", post(b": x\r\n" + cl), NOTHING),
        ("NUL in a name", post(b"x\0y: z\r\n" + cl), NOTHING),
        ("NUL in a value", post(b"x: y\0z\r\n" + cl), NOTHING),
        ("CR in a value", post(b"x: y\rz\r\n" + cl), NOTHING),
        ("bytes above ASCII in a name", post(b"x-\xff\xfe: y\r\n" + cl), NOTHING),
        ("brackets in a name", post(b"x[0]: y\r\n" + cl), NOTHING),
        ("CR alone between the head and a hidden one", post(b"content-length: 0\r\n", b"\r" + hidden), NOTHING, 2),
        ("bare LF ends every line of the head", post(cl).replace(b"\r\n", b"\n", 5), None),
        ("bare LF before TE", post(b"x: y\ntransfer-encoding: chunked\r\n", chunked), None),
        # Chunks.
        ("chunk size in 0x", post(te, b"0x%x\r\n%s\r\n0\r\n\r\n" % (n, hidden)), NOTHING),
        ("chunk size with plus", post(te, b"+%x\r\n%s\r\n0\r\n\r\n" % (n, hidden)), NOTHING),
        ("chunk size with minus", post(te, b"-1\r\n%s" % hidden), NOTHING),
        ("chunk size with underscore", post(te, b"%x_0\r\n%s\r\n0\r\n\r\n" % (n, hidden)), NOTHING),
        ("chunk size above 64 bits", post(te, b"ffffffffffffffff1\r\n%s\r\n0\r\n\r\n" % hidden), NOTHING),
        ("chunk size of 64 bits", post(te, b"fffffffffffffffe\r\n%s\r\n0\r\n\r\n" % hidden), NOTHING),
        ("chunk size that is missing", post(te, b"\r\n%s" % hidden), NOTHING),
        ("chunk that is longer than its size", post(te, b"%x\r\n%s\r\n0\r\n\r\n" % (n - 5, hidden)), NOTHING),
        ("chunk that is shorter than its size", post(te, b"%x\r\n%s\r\n0\r\n\r\n" % (n + 900, hidden)), NOTHING),
        ("chunk without its end", post(te, b"%x\r\n%sxx0\r\n\r\n" % (n, hidden)), NOTHING),
        ("chunk lines with bare LF", post(te, b"%x\n%s\n0\n\n" % (n, hidden)), NOTHING),
        ("chunk size behind a CR", post(te, b"%x\r%s\r\n0\r\n\r\n" % (n, hidden)), NOTHING),
        ("last chunk that is missing", post(te, b"%x\r\n%s\r\n" % (n, hidden)), NOTHING),
        ("last chunk 00 and no end", post(te, b"00\r\n%s" % hidden), NOTHING),
        ("hidden in a chunk extension", post(te, b"%x;%s" % (n, hidden)), NOTHING),
        ("LF in a chunk extension", post(te, b"0;x\n\r\n%s" % hidden), NOTHING),
        ("hidden in the trailers", post(te, b"0\r\n%s" % hidden), NOTHING),
        ("trailers that say a length", post(te, b"%x\r\n%s\r\n0\r\ncontent-length: 0\r\n\r\n" % (n, hidden)), WHOLE),
        ("chunk extension in quotes", post(te, b'%x;a="b"\r\n%s\r\n0\r\n\r\n' % (n, hidden)), WHOLE),
        ("chunk size with zeros in capitals", post(te, b"0000%X \r\n%s\r\n0\r\n\r\n" % (n, hidden)), WHOLE),
        # Request lines and versions.
        ("HTTP/0.9", b"GET /ping\r\n" + hidden, NOTHING),
        ("HTTP/0.9 of a write", b"POST /write?db=outer\r\n\r\n" + hidden, NOTHING),
        ("HTTP/1.0 with TE", post(te, chunked, line.replace(b"1.1", b"1.0")), NOTHING),
        ("HTTP/1.0 with TE and CL", post(te + b"content-length: 0\r\n", chunked, line.replace(b"1.1", b"1.0")), NOTHING),
        ("HTTP/1.2", post(cl, hidden, line.replace(b"1.1", b"1.2")), NOTHING),
        ("HTTP/2.0 in words", post(cl, hidden, line.replace(b"1.1", b"2.0")), NOTHING),
        ("http in small letters", post(cl, hidden, line.replace(b"HTTP", b"http")), NOTHING),
        ("two spaces", post(cl, hidden, line.replace(b" /", b"  /")), NOTHING),
        ("tab for a space", post(cl, hidden, line.replace(b" HTTP", b"\tHTTP")), NOTHING),
        ("space in the target", post(cl, hidden, line.replace(b"outer", b"outer HTTP/1.1 x")), NOTHING),
        ("two request lines", post(cl, hidden, line + b"POST /write?db=canary HTTP/1.1\r\n"), NOTHING),
        ("CR in the target", post(cl, hidden, line.replace(b"outer", b"outer\rx")), NOTHING),
        ("fragment in the target", post(cl, hidden, line.replace(b"outer", b"outer#")), None),
        ("method with a colon", post(cl, hidden, line.replace(b"POST", b"POST:")), NOTHING),
        # Hosts and forms of the target.
        ("two hosts", post(b"host: evil.example\r\n" + cl), NOTHING),
        ("two hosts that are the same", post(b"host: localhost\r\n" + cl), NOTHING),
        ("absolute form of another host", post(cl, hidden, line.replace(b"/write", b"http://evil.example/write")), NOTHING),
        ("absolute form, own, with another Host",
         post(cl, hidden, line.replace(b"/write", b"http://localhost/write"), auth.replace(b"localhost", b"evil.example")), None),
        ("host with a path", post(cl, auth=auth.replace(b"localhost", b"localhost/write")), NOTHING),
        ("host with a user", post(cl, auth=auth.replace(b"localhost", b"localhost@evil.example")), NOTHING),
        ("CONNECT", post(cl, hidden, b"CONNECT localhost:80 HTTP/1.1\r\n"), NOTHING),
        ("asterisk form", post(cl, hidden, b"POST * HTTP/1.1\r\n"), NOTHING),
        # Answers that come before the body: what is left of it is no request.
        ("no token", post(cl, auth=b"host: localhost\r\n"), NOTHING),
        ("no such path", post(cl, hidden, line.replace(b"write", b"nowhere")), NOTHING),
        ("no such method", post(cl, hidden, line.replace(b"POST", b"PUT")), NOTHING),
        ("body of a GET", post(cl, hidden, b"GET /ping HTTP/1.1\r\n"), NOTHING),
        ("body of a HEAD", post(cl, hidden, b"HEAD /ping HTTP/1.1\r\n"), NOTHING),
        ("body of a GET in chunks", post(te, chunked, b"GET /ping HTTP/1.1\r\n"), NOTHING),
        ("body that is too long", post(b"content-length: 9000000\r\n"), NOTHING),
        ("body that is too long in chunks", post(te, b"fffffff\r\n" + hidden), NOTHING),
        ("body that is expected", post(b"expect: 100-continue\r\n" + cl), WHOLE, 2),
        ("expectation that nobody knows", post(b"expect: 200-maybe\r\n" + cl), None),
        ("no token, and expected", post(b"expect: 100-continue\r\n" + cl, auth=b"host: localhost\r\n"), NOTHING),
        # Other protocols.
        ("upgrade to h2c", post(b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n" + cl), WHOLE),
        ("upgrade to a websocket", post(b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n" + cl), WHOLE),
        ("preface of HTTP/2 in a body", post(b"content-length: 24\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0" + hidden), NOTHING, 2),
        ("preface that breaks off", b"PRI * HTTP/2.0\r\n\r\nSM\r\n" + hidden, NOTHING),
        # Rests of one request before the next: it is refused, and none behind it is read.
        ("rubbish before a hidden one", post(b"content-length: 0\r\n", b"\0\0" + hidden), NOTHING, 2),
        ("half a line before a hidden one", post(b"content-length: 0\r\n", b"GET /none HTTP/1.1\r\nx: y" + hidden), NOTHING, 2),
    ]
    return [case if len(case) == 4 else (*case, 1) for case in cases]


def judged(end, name, request, want, most):
    """What is wrong with the answer to a case; and whether it says that its point was taken."""
    answer = exchange(end.address, request)
    said = statuses(answer)
    took = b"1 points written" in answer
    wrong = []
    if len([status for status in said if status != 100]) > most - (100 in said):
        wrong.append(f"{len(said)} answers, {most} allowed")
    if any(status >= 500 for status in said):
        wrong.append("an error of the server")
    if any(status == 101 for status in said):
        wrong.append("another protocol")
    if b"/write?db=outer" in request and any(200 <= status < 300 for status in said):
        wrong.append("taken as good, which no body here is")
    if want and took != (want == WHOLE):
        wrong.append(f"wanted {want} of the body")
    return [f"{end.name}: {name}: {'; '.join(wrong)}\n    {request!r}\n    {answer[:400]!r}"] if wrong else [], took


# What says something of one connection, or of who asks, to whoever believes it: it takes no header away and gives no rights.
ABOUT_THE_CONNECTION = [
    {"connection": "authorization"},
    {"connection": "x-arc-database, authorization, content-length"},
    {"connection": "close, x-arc-database", "keep-alive": "timeout=1000, max=1"},
    {"connection": "keep-alive", "proxy-connection": "keep-alive", "keep-alive": "timeout=1"},
    {"connection": "te", "te": "trailers, chunked"},
    {"connection": "upgrade", "upgrade": "h2c, websocket"},
    {"connection": "transfer-encoding, host"},
    {"connection": "\t,,;=x"},
    {"proxy-authorization": "Basic Og==", "proxy-authenticate": "Basic"},
    {"trailer": "authorization, content-length", "max-forwards": "0"},
    {"via": "1.1 gateway", "x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1;host=evil.example"},
    {"x-original-url": "/api/v1/tokens", "x-rewrite-url": "/api/v1/tokens", "x-http-method-override": "DELETE"},
]
OF_WHO_ASKS = [
    {"proxy-authorization": "Bearer TOKEN"},
    {"connection": "proxy-authorization", "proxy-authorization": "Bearer TOKEN"},
    {"x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1", "forwarded": "for=127.0.0.1"},
    {"x-skein-vouched": "true", "vouched": "true", "x-skein-forwarded": "true", "x-skein-node": "gateway"},
    {"x-original-url": "/ping", "x-rewrite-url": "/ping", "x-forwarded-uri": "/ping"},
    {"cookie": "authorization=TOKEN", "x-forwarded-authorization": "Bearer TOKEN", "x-authorization": "Bearer TOKEN"},
]


def headers_of_one_connection(cluster):
    """Each request does what it does without them, at either end."""
    query, rows = ("/api/v3/query_sql?db=healthy", b'{"q": "SELECT n FROM point ORDER BY n LIMIT 1"}'), '[{"n":1}]'
    for end in cluster.ends:
        for number, headers in enumerate(ABOUT_THE_CONNECTION):
            line = f"hop,case={end.name[0]}{number} v=1i {AT}"
            sent = {"x-arc-database": "outer", **cluster.bearer, **headers}
            status, text = end.ask("POST", "/api/v1/write/line-protocol", line, sent)
            need(status == 204, f"a write by the {end.name} with {headers}: {status} {text}")
            status, text = end.ask("POST", *query, {**cluster.bearer, **headers})
            need((status, text.strip()) == (200, rows), f"a query by the {end.name} with {headers}: {status} {text}")
        for headers in OF_WHO_ASKS:
            headers = {name: value.replace("TOKEN", cluster.token) for name, value in headers.items()}
            status, text = end.ask("POST", *query, headers)
            need(status == 401, f"a query by the {end.name} without a token and with {headers}: {status} {text}")
        # A trailer is no header: it comes when everything has been judged.
        late = b"POST /write?db=outer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ntrailer: authorization\r\n\r\n"
        late += b"9\r\nhop v=1i \n\r\n0\r\nauthorization: Bearer %s\r\n\r\n" % cluster.token.encode()
        answer = exchange(end.address, late)
        need(statuses(answer) == [401], f"a token in the trailers at the {end.name}: {answer!r}")
    return sorted(f"{end.name[0]}{number}" for end in cluster.ends for number in range(len(ABOUT_THE_CONNECTION)))


def run(cluster):
    outer, inner = (cluster.api_token("write", databases=[database]) for database in ("outer", "canary"))
    hidden, ping = hidden_request(inner), b"GET /ping HTTP/1.1\r\nhost: localhost\r\n\r\n"
    cases, wrong, taken = corpus(outer, hidden), [], set()

    def one(asked):
        end, number, (name, request, *wanted) = asked
        case = f"{end.name[0]}{number:03}"
        return case, judged(end, name, request.replace(CASE, case.encode()), *wanted)

    with ThreadPoolExecutor(64) as pool:
        # What is hidden would be seen if it came through: alone, and behind another request, it is good.
        controls = {}
        for end, number, before in [(end, *control) for end in cluster.ends for control in ((998, b""), (999, ping))]:
            case = f"{end.name[0]}{number}"
            controls[case] = pool.submit(exchange, end.address, before + hidden.replace(CASE, case.encode()))
        for case, (faults, took) in pool.map(one, [(end, *numbered) for numbered in enumerate(cases) for end in cluster.ends]):
            wrong += faults
            taken |= {case} if took else set()
        for case, good in controls.items():
            need(statuses(good.result())[-1:] == [204], f"the hidden request by itself: {case}: {good.result()!r}")
    apart = {case[1:] for case in taken if case[0] == "n"} ^ {case[1:] for case in taken if case[0] == "g"}
    wrong += [f"{cases[int(case)][0]}: taken at one end and not at the other" for case in apart]
    hops = headers_of_one_connection(cluster)
    cluster.stored |= {"canary.canary", "outer.canary", "outer.hop"}
    for database, table, wanted in (("canary", "canary", controls), ("outer", "canary", taken), ("outer", "hop", hops)):
        stored = [row["case"] for row in cluster.rows(database, f'SELECT "case" FROM {table} ORDER BY "case"')]
        if stored != sorted(wanted):
            wrong.append(f"{database}.{table} has {stored} instead of {sorted(wanted)}")
    need(not wrong, f"{len(wrong)} faults with smuggled requests:\n" + "\n".join(wrong))
    return f"{len(cases)} requests with a write hidden in them at each end, none got through; {len(taken) // 2} were taken whole; " \
           f"{len(hops) + 2 * len(OF_WHO_ASKS) + 2} with headers of one connection"
