"""The points that every client writes, and what must come back."""

DATABASE = "clients"
# A time in nanoseconds that no float and no microsecond can hold.
BASE = 1_700_000_000_123_456_789
TAGS = ("host", "room")
FIELDS = ("f", "i", "u", "b", "s")
COLUMNS = ("time", *TAGS, *FIELDS)
# How the columns must be typed, whoever writes first.
TYPES = {
    "time": ("Timestamp(ns)", "time"),
    "host": ("Utf8", "tag"),
    "room": ("Utf8", "tag"),
    "f": ("Float64", "field"),
    "i": ("Int64", "field"),
    "u": ("UInt64", "field"),
    "b": ("Boolean", "field"),
    "s": ("Utf8", "field"),
}


def every_type(largest=2**63 - 1, times=1):
    """Every type at its ends, and points without a tag or a field. `largest`: integer of the client."""
    least = -largest - 1 if largest == 2**63 - 1 else -largest
    values = [
        ("a", "two words, a=b", 0.1, least, 2**64 - 1, True, 'say "hi" \\ \u00e4 \U0001f986, a=b c'),
        ("a", "two words, a=b", -1.5e300, largest, 0, False, "plain"),
        # A float that looks like an integer must not become one.
        ("b", None, 3.0, None, None, None, None),
        ("\u00e4", None, None, 0, 1, None, " "),
    ]
    return [dict(zip(COLUMNS, (BASE + at, *row))) for at, row in enumerate(values * times)]


def tags(point):
    return {name: point[name] for name in TAGS if point[name] is not None}


def fields(point):
    return {name: point[name] for name in FIELDS if point[name] is not None}


def line(table, point):
    """Line protocol, for clients that send it as it is given."""

    def escape(text, special):
        return "".join("\\" + c if c in special else c for c in text)

    def value(name, given):
        match name:
            case "f":
                return repr(given)
            case "i":
                return f"{given}i"
            case "u":
                return f"{given}u"
            case "b":
                return str(given).lower()
            case _:
                return '"' + escape(given, '"\\') + '"'

    head = ",".join([table, *(f"{name}={escape(text, ', =')}" for name, text in tags(point).items())])
    body = ",".join(f"{name}={value(name, given)}" for name, given in fields(point).items())
    return f"{head} {body} {point['time']}"


def check(what, found, wanted):
    """Rows as dictionaries, in any order, equal in value and type."""

    def plain(rows):
        rows = [{name: row.get(name) for name in COLUMNS} for row in rows]
        rows.sort(key=lambda row: row["time"])
        return [{name: (type(value).__name__, value) for name, value in row.items()} for row in rows]

    found, wanted = plain(found), plain(wanted)
    if len(found) != len(wanted):
        raise AssertionError(f"{what}: {len(found)} points, not {len(wanted)}")
    for have, want in zip(found, wanted):
        if have != want:
            wrong = {name: (have[name], want[name]) for name in COLUMNS if have[name] != want[name]}
            raise AssertionError(f"{what}: (found, wanted) {wrong}")
