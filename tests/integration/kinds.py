"""Types of columns as each database spells them, and values as its own literals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence

Value = str | bytes | int | float | None
"""bytes stand for themselves; anything else is what stands in a literal."""


@dataclass(frozen=True)
class Kind:
    """A type of column as its database spells it, values that are always tried, and more."""

    declared: str
    edges: Sequence[Value]
    more: st.SearchStrategy[Any] | None = None
    form: str = "{}"
    """The form in which values are compared, where the bytes are not what they mean."""


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXT = st.text(CHARACTERS, max_size=30)
TEXTS = ["", " ", "a ", "'", '"', "\\", "\\n", "\\N", "\\0", "\\x00", "\\\\x41", "a\nb\r\n\tc", "%"]
TEXTS += ["%s %(x)s", ":x", "?", "$1", "{}", "{a,b}", "[]", "NULL", "null", "(,)", "nan", "0x41"]
TEXTS += [
    "é日本😀👩‍👧 e\u0301",
    "\u200b\ufeff",
    "\u2028",
    "\\u0041",
    "\x01",
    "\x7f",
    "--",
    "/*",
    "😀" * 10,
]
LATIN = st.text(st.characters(codec="cp1252", exclude_characters="\0"), max_size=30)
BYTES: list[Value] = [b"", b"\0", b"\0\xff\xfe'\"\\%", bytes(range(40)), b"4142", b"\\x41", b"%s"]
BINARY = st.binary(max_size=40)
DATES = ["0001-01-01", "0999-12-31", "1900-03-01", "2000-02-29", "9999-12-31"]
NOON = "2024-02-29 12:30:59"
MOMENTS = ["0001-01-01 00:00:00", NOON, f"{NOON}.000001", f"{NOON}.999999"]
MOMENTS += ["9999-12-31 23:59:59.999999", "9999-12-31 00:00:00", "1969-12-31 23:59:59.5"]
TIMES = ["00:00:00", "00:00:00.000001", "23:59:59.999999", "12:30:00"]
DOCUMENTS = ["{}", "[]", '""', "0", "true", "1.5", "[[[]]]", '{"": null}', "[1, null, -0.1, 1e-07]"]
DOCUMENTS += ['{"\'\\"\\\\%s": ["\\n", {"é😀": [true, 123456789012345678901234567890]}]}']
DOCUMENTS += ['"\\\\u0041 :x"', '["\\u0001\\u2028"]', "[9007199254740993, 1e+300]"]
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e6, 1e6) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
).map(lambda document: json.dumps([document], ensure_ascii=False))
UUIDS: list[Value] = [
    "00000000-0000-0000-0000-000000000000",
    f"{'f' * 8}-ffff-4fff-bfff-{'f' * 12}",
]
NUMBERS = ["0", "0.00", "-0.000001", "1.10", "99999999999999.999999", "-99999999999999.999999"]
FLOATS = ["0", "-0.0", "0.1", "1e-300", "-1.7976931348623157e308", "9007199254740994", "5e-324"]
LABELS = ["a", "b b", "ç'\"", "NULL", "a,b", "{}", "\\", "%s"]


def whole(bits: int, *, unsigned: bool = False) -> tuple[list[str], st.SearchStrategy[int]]:
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return [*map(str, (low, low + 1, 1, high - 1, high))], st.integers(low, high)


def array(items: st.SearchStrategy[Any], *, nested: bool = True) -> st.SearchStrategy[str]:
    """PostgreSQL's text of an array, of one dimension or two."""

    def shown(found: list[Any]) -> str:
        return "{" + ",".join(map(item, found)) + "}"

    def item(value: Any) -> str:
        if isinstance(value, list):
            return shown(value)
        text = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return "NULL" if value is None else f'"{text}"'

    some = items | st.none()
    pairs = st.lists(st.lists(some, min_size=2, max_size=2), min_size=1, max_size=3)
    return (st.lists(some, max_size=4) | pairs if nested else st.lists(some, max_size=4)).map(shown)


def quoted(labels: Sequence[str], backslash: str = "\\") -> str:
    return ", ".join("'" + x.replace("'", "''").replace("\\", backslash) + "'" for x in labels)


POSTGRESQL = {
    "smallint": Kind("smallint", *whole(16)),
    "integer": Kind("integer", *whole(32)),
    "bigint": Kind("bigint", *whole(64)),
    "oid": Kind("oid", ["0", "4294967295"]),
    "xid8": Kind("xid8", ["0", "18446744073709551615"]),
    "numeric": Kind(
        "numeric",
        [*NUMBERS, "NaN", "Infinity", "-Infinity", "1e30", "9" * 500 + "." + "9" * 500, "1e-40"],
        st.decimals(allow_nan=False, allow_infinity=False),
    ),
    "numeric(20,6)": Kind("numeric(20,6)", [*NUMBERS, "NaN"], st.decimals(-999, 999, places=6)),
    "numeric(5,-2)": Kind("numeric(5,-2)", ["1234500", "-100", "0"]),
    "real": Kind(
        "real", ["-0.0", "0.1", "inf", "-inf", "nan", "1e-45", "16777216"], st.floats(width=32)
    ),
    "double": Kind("double precision", [*FLOATS, "inf", "-inf", "nan"], st.floats()),
    "boolean": Kind("boolean", ["t", "f"]),
    "money": Kind("money", ["0", "-12345.67", "92233720368547758.07"]),
    "text": Kind("text", TEXTS, TEXT),
    "varchar": Kind("varchar(30)", TEXTS, TEXT),
    "char": Kind("char(30)", TEXTS, TEXT),
    "bpchar": Kind("bpchar", TEXTS, TEXT),
    '"char"': Kind('"char"', ["a", "", "'", "\\", "\\377"]),
    "name": Kind("name", ["a", "", "x y"]),
    "citext": Kind("citext", TEXTS, TEXT),
    "bytea": Kind("bytea", BYTES, BINARY),
    "date": Kind("date", DATES, st.dates()),
    "timestamp": Kind("timestamp", MOMENTS, st.datetimes()),
    "timestamp(3)": Kind("timestamp(3)", [f"{NOON}.123"]),
    "timestamptz": Kind(
        "timestamptz", [f"{text}+00" for text in MOMENTS] + [f"{NOON}.000001+05:30"], st.datetimes()
    ),
    "time": Kind("time", TIMES, st.times()),
    "timetz": Kind("timetz", ["12:30:59.000001+05:30", "00:00:00-12", "23:59:59.999999+15:59:59"]),
    "interval": Kind(
        "interval",
        ["0", "-1 us", "3 days -04:05:06.000007", "-99999 days", "25:00:00"],
        st.timedeltas().map(
            lambda delta: f"{delta.days} days {delta.seconds}.{delta.microseconds:06} s"
        ),
        "justify_hours({})",  # a timedelta has no hours above 24
    ),
    "uuid": Kind("uuid", UUIDS, st.uuids()),
    "json": Kind("json", DOCUMENTS, NESTED, "{}::jsonb"),
    "jsonb": Kind("jsonb", DOCUMENTS, NESTED),
    "jsonpath": Kind("jsonpath", ["$", "$.a[*] ? (@.b > 1)", '$."é\\"%s"']),
    "hstore": Kind("hstore", ["", "a=>1", "a=>NULL", '"a b"=>"NULL"', '"=>\\"\'\\\\"=>", {}%s"']),
    "enum": Kind("mood", LABELS),
    "enum of a schema": Kind('"My Types"."Mood Type"', ["A b", "2"]),
    "inet": Kind("inet", ["10.0.0.1", "10.0.0.1/8", "::1", "2001:db8::1/64", "0.0.0.0/0"]),
    "cidr": Kind("cidr", ["10.0.0.0/8", "2001:db8::/32", "10.0.0.1/32"]),
    "macaddr": Kind("macaddr", ["08:00:2b:01:02:03"]),
    "macaddr8": Kind("macaddr8", ["08:00:2b:01:02:03:04:05"]),
    "bit": Kind("bit(10)", ["0000000001", "1111111111"]),
    "varbit": Kind("varbit(70)", ["", "0", "1", "01" * 35]),
    "int4range": Kind("int4range", ["empty", "[1,5)", "(,)", "[,5)", "[-3,)"]),
    "numrange": Kind("numrange", ["empty", "(1.10,2.0]", "[1,1]", "(,)"]),
    "daterange": Kind("daterange", ["empty", "[2024-01-01,9999-12-31)", "(,2024-01-01)"]),
    "tsrange": Kind("tsrange", [f"[{NOON}.000001,)", f"({NOON},9999-12-31 23:59:59.999999]"]),
    "tstzrange": Kind("tstzrange", ["empty", f"[{NOON}.000001+00,)"]),
    "int8multirange": Kind("int8multirange", ["{}", "{[1,5),[9,)}", "{(,)}"]),
    "tsvector": Kind("tsvector", ["", "a b", "'it''s':1A,2 b:3", "'\\\\ é'"]),
    "tsquery": Kind("tsquery", ["a & !b", "'it''s':*A <-> b"]),
    "point": Kind("point", ["(0,-0)", "(1.5,1e300)", "(nan,inf)"]),
    "box": Kind("box", ["(3,4),(1,2)"]),
    "circle": Kind("circle", ["<(1,2),3.5>"]),
    "polygon": Kind("polygon", ["((0,0),(1,1),(1,0))"]),
    "path": Kind("path", ["[(0,0),(1,1)]", "((0,0),(1,1))"]),
    "line": Kind("line", ["{1,2,3}"]),
    "lseg": Kind("lseg", ["[(0,0),(1,1)]"]),
    "pg_lsn": Kind("pg_lsn", ["0/0", "FFFFFFFF/FFFFFFFF"]),
    "regclass": Kind("regclass", ["pg_class"]),
    "composite": Kind("pair", ["(1,a)", "(,)", '(-2,"a,b ""c"" \\\\ (")', '(3,"")']),
    "domain over integer": Kind("positive", ["1", "2147483647"], st.integers(1, 2**31 - 1)),
    "domain over varchar": Kind("short", ["abc", "", "'\\\"", "é😀"]),
    "domain over jsonb": Kind("document", DOCUMENTS),
    "domain over text[]": Kind("labels", ["{}", '{a,"b c",NULL}']),
    "domain over enum": Kind("good_mood", ["a", "b b"]),
    "int[]": Kind("int[]", ["{}", "{1,NULL}", "{{1,2},{3,4}}"], array(st.integers(-9, 9))),
    "bigint[]": Kind("bigint[]", ["{9223372036854775807}"], array(whole(64)[1])),
    "boolean[]": Kind("boolean[]", ["{t,f,NULL}"]),
    "domain[]": Kind("positive[]", ["{1,NULL}"]),
    "hstore[]": Kind("hstore[]", ['{"\\"a\\"=>\\"b c\\"",NULL}']),
    "hstore[] with an empty one": Kind("hstore[]", ['{"a=>1","",NULL}']),
    "double[]": Kind("float8[]", ["{-0,NaN,Infinity,0.1}"], array(st.floats())),
    "numeric[]": Kind("numeric[]", ["{1.10,NaN,1e30}"], array(st.decimals(-9, 9, places=3))),
    "text[]": Kind("text[]", ["{}", '{"NULL",NULL,"","{}","a,b"}'], array(TEXT)),
    "varchar[]": Kind("varchar(30)[]", ["{}", '{"\\"",NULL}'], array(TEXT)),
    "bytea[]": Kind("bytea[]", ['{"\\\\x00ff","\\\\x"}', "{NULL}"]),
    "date[]": Kind("date[]", ["{9999-12-31,0001-01-01}"], array(st.dates())),
    "timestamp[]": Kind("timestamp(3)[]", [f'{{"{NOON}.123",NULL}}']),
    "timestamptz[]": Kind("timestamptz[]", [f'{{"{NOON}+05",NULL}}'], array(st.datetimes())),
    "uuid[]": Kind("uuid[]", ["{}"], array(st.uuids())),
    # A list in it is a document, unless the column is declared to have more dimensions.
    "jsonb[]": Kind(
        "jsonb[]", ["{}", '{"{\\"a\\": [1]}",NULL,"\\"x\\"","[]"}'], array(NESTED, nested=False)
    ),
    "jsonb[][]": Kind("jsonb[][]", ['{{"[[1], 2]",NULL},{"{}","\\"x\\""}}']),
    "enum[]": Kind("mood[]", ["{}", '{a,"b b","NULL",NULL,"a,b","{}"}']),
    "citext[]": Kind("citext[]", ["{A,a}"], array(TEXT)),
    "inet[]": Kind("inet[]", ["{10.0.0.1/8,::1,NULL}"]),
    "int4range[]": Kind("int4range[]", ['{"[1,5)",empty,NULL}']),
    "composite[]": Kind("pair[]", ['{"(1,a)","(,)",NULL}']),
}

CHARS = "varchar(30) CHARACTER SET utf8mb4 COLLATE"
MARIADB = {
    **{
        f"{name}{sign}": Kind(f"{name}{sign}", *whole(bits, unsigned=bool(sign)))
        for name, bits in {
            "tinyint": 8,
            "smallint": 16,
            "mediumint": 24,
            "int": 32,
            "bigint": 64,
        }.items()
        for sign in ("", " unsigned")
    },
    "boolean": Kind("boolean", ["0", "1", "2"]),
    "zerofill": Kind("int(5) zerofill", ["0", "12345"]),
    "decimal(20,6)": Kind("decimal(20,6)", NUMBERS, st.decimals(-999, 999, places=6)),
    "decimal(65,30)": Kind("decimal(65,30)", ["9" * 35 + "." + "9" * 30, "-1e-30"]),
    "decimal(10)": Kind("decimal(10)", ["-9999999999"]),
    "float": Kind(
        "float", ["-0.0", "0.1", "16777216", "3.4028e38", "1e-38"], st.floats(-999, 999, width=32)
    ),
    "double": Kind("double", FLOATS, st.floats(allow_nan=False, allow_infinity=False)),
    "double unsigned": Kind("double unsigned", ["0.1", "1e300"]),
    "varchar": Kind("varchar(30)", TEXTS, TEXT),
    "char": Kind("char(30)", TEXTS, TEXT),
    "text": Kind("text", TEXTS, TEXT),
    "tinytext": Kind("tinytext", TEXTS),
    "longtext": Kind("longtext", TEXTS),
    "compressed": Kind("text COMPRESSED", TEXTS),
    "utf8mb4_bin": Kind(f"{CHARS} utf8mb4_bin", TEXTS, TEXT),
    "utf8mb4_unicode_ci": Kind(f"{CHARS} utf8mb4_unicode_ci", [*TEXTS, "A", "ä"]),
    "latin1": Kind("varchar(30) CHARACTER SET latin1", ["", "é€'\\", "\xff"], LATIN),
    "utf16": Kind("varchar(30) CHARACTER SET utf16", TEXTS, TEXT),
    "json": Kind("json", [*DOCUMENTS, "null", '{"a": 1,  "a":2.50}'], NESTED),
    "blob": Kind("blob", BYTES, BINARY),
    "longblob": Kind("longblob", BYTES),
    "binary": Kind("binary(40)", BYTES, BINARY),
    "varbinary": Kind("varbinary(40)", BYTES, BINARY),
    "date": Kind("date", DATES, st.dates()),
    "datetime": Kind("datetime", ["1000-01-01 00:00:00", NOON]),
    "datetime(3)": Kind("datetime(3)", [f"{NOON}.123"]),
    "datetime(6)": Kind("datetime(6)", MOMENTS, st.datetimes()),
    "timestamp(6)": Kind("timestamp(6)", ["1970-01-01 00:00:01", f"{NOON}.000001"]),
    "time": Kind("time", ["838:59:59", "-838:59:59", "-00:00:01"]),
    "time(6)": Kind("time(6)", [*TIMES, "-00:00:00.000001", "838:59:59.999999", "24:00:00"]),
    "year": Kind("year", ["0000", "1901", "2155"]),
    "enum": Kind(f"enum({quoted(LABELS, chr(92) * 2)})", LABELS),
    "set": Kind("set('a','b b','NULL','%s')", ["", "a", "a,b b", "NULL,%s"]),
    "bit(1)": Kind("bit(1)", [b"\0", b"\1"]),
    "bit(64)": Kind("bit(64)", [b"\0", b"\xff" * 8, b"A'", b"12"]),
    "uuid": Kind("uuid", UUIDS, st.uuids(version=4)),
    "inet6": Kind("inet6", ["::", "2001:db8::1", "::ffff:1.2.3.4"]),
    "inet4": Kind("inet4", ["0.0.0.0", "255.255.255.255"]),
    "point": Kind("point", [b"\0" * 4 + b"\1\1\0\0\0" + b"\0" * 6 + b"\xf8\x3f" + b"\0" * 8]),
}

SQLITE = {
    "integer": Kind("integer", [-(2**63), 2**63 - 1, 0, "abc", 1.5, b"\0"], whole(64)[1]),
    "bigint": Kind("bigint", [], whole(64)[1]),
    "boolean": Kind("boolean", [0, 1]),
    "real": Kind("real", [0.1, 1e300, -1.5, 5e-324], st.floats(allow_nan=False)),
    "double": Kind("double precision", [0.1], st.floats(allow_nan=False)),
    "numeric(20,6)": Kind("numeric(20,6)", [1, 0.1, -99999999.999999, 10**15]),
    "numeric": Kind("numeric", [1, 0.1, 1e-12, 1 / 3, 1e30, 2**62 + 1]),
    "text": Kind("text", [*TEXTS, "a\0b", "\0"], TEXT),
    "varchar": Kind("varchar(30)", TEXTS, TEXT),
    "nocase": Kind("text COLLATE NOCASE", ["a", "A"], TEXT),
    "blob": Kind("blob", BYTES, BINARY),
    "date": Kind("date", DATES, st.dates().map(str)),
    "datetime": Kind("datetime", [f"{text:.19}.000001" for text in MOMENTS]),
    "datetime of SQLite": Kind("datetime", [NOON, f"{NOON}.5", NOON[:10]], form="julianday({})"),
    "time": Kind("time", [f"{text:.8}.000001" for text in TIMES]),
    "json": Kind("json", [json.dumps(json.loads(x)) for x in DOCUMENTS], form="json({})"),
    "no type": Kind("", [1, 1.5, "a", "1", b"a", b"\0"], st.integers(-9, 9) | TEXT | BINARY),
    "unknown type": Kind("money", [1, 1.5, "a", b"a"]),
    "strange name": Kind("unsigned big int", [0, 2**63 - 1]),
}

KINDS = {"sqlite": SQLITE, "postgresql": POSTGRESQL, "mariadb": MARIADB}
