"""What differs between databases: comparisons of keys, and what an error means."""

from __future__ import annotations

import sqlite3
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import psycopg
import pymysql  # type: ignore[import-untyped,unused-ignore]
import pytest
import sqlalchemy as sa

from backfill.dialects import Dialect, ErrorKind, Limits, dialect_for
from backfill.dialects.mysql import MariaDB, MySQL
from backfill.dialects.mysql_columns import MariaDBColumns, decided
from backfill.dialects.postgresql import PostgreSQL
from backfill.dialects.sqlite import SQLite
from backfill.errors import ConfigurationError
from backfill.keys import Key, alike

if TYPE_CHECKING:
    from collections.abc import Callable

URLS = {
    "sqlite": "sqlite://",
    "postgresql": "postgresql+psycopg://",
    "mysql": "mysql+pymysql://",
    "mariadb": "mariadb+pymysql://",
}


class Psycopg2Error(Exception):
    """psycopg2's errors have their code in `pgcode`, which connect failures leave empty."""

    def __init__(self, pgcode: str | None) -> None:
        super().__init__("psycopg2")
        self.pgcode = pgcode


@cache
def dialect(name: str) -> Dialect:
    if name != "psycopg2":
        return dialect_for(sa.create_engine(URLS[name]))
    engine = sa.create_engine(URLS["postgresql"])
    unsendable = type("DataError", (Psycopg2Error,), {})
    psycopg2: Any = SimpleNamespace(Error=Psycopg2Error, DataError=unsendable)
    engine.dialect.dbapi = psycopg2
    return dialect_for(engine)


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        ("`a` int(11) DEFAULT NULL", "`a` int(11) NOT NULL"),
        ("`a` text NOT NULL COMMENT 'a NULL, it''s'", "`a` text COMMENT 'a NULL, it''s' NOT NULL"),
        ("`a` int(11) NULL CHECK (`a` > 0)", "`a` int(11) NOT NULL CHECK (`a` > 0)"),
        (
            "`a` text DEFAULT ' CHECK (' CHECK (`a` is not NULL)",
            "`a` text DEFAULT ' CHECK (' NOT NULL CHECK (`a` is not NULL)",
        ),
        (
            "`a` longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin DEFAULT NULL COMMENT 'x'"
            " CHECK (json_valid(`a`))",
            "`a` json COMMENT 'x' NOT NULL",
        ),
    ],
)
def test_column_of_mariadb_becomes_not_null(shown: str, wanted: str) -> None:
    assert decided(shown, "NOT NULL") == wanted


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sqlite", SQLite),
        ("postgresql", PostgreSQL),
        ("psycopg2", PostgreSQL),
        ("mysql", MySQL),
        ("mariadb", MariaDB),
    ],
)
def test_dialect_for(name: str, kind: type[Dialect]) -> None:
    assert type(dialect(name)) is kind


def test_unknown_database_is_refused() -> None:
    engine: Any = SimpleNamespace(dialect=SimpleNamespace(name="oracle"))
    with pytest.raises(ConfigurationError, match="'oracle' is not supported"):
        dialect_for(engine)


# -- keys ------------------------------------------------------------------------------------

TABLE = sa.Table("t", sa.MetaData(), *(sa.Column(name, sa.Integer) for name in "abc"))

# ABOVE, AT OR ABOVE and UPTO for one, two and three columns; measured to become index ranges
# (research/performance.md, E), so a change here is a change of plans.
COMPARISONS = {
    ("sqlite", 1): ("t.a > :0", "t.a >= :0", "t.a <= :0"),
    ("sqlite", 2): (
        "(t.a, t.b) > (:0, :1)",
        "(t.a, t.b) >= (:0, :1)",
        "(t.a, t.b) <= (:0, :1)",
    ),
    ("sqlite", 3): (
        "(t.a, t.b, t.c) > (:0, :1, :2)",
        "(t.a, t.b, t.c) >= (:0, :1, :2)",
        "(t.a, t.b, t.c) <= (:0, :1, :2)",
    ),
    ("postgresql", 1): ("t.a > :0", "t.a >= :0", "t.a <= :0"),
    ("mariadb", 1): ("t.a > :0", "t.a >= :0", "t.a <= :0"),
    ("mariadb", 2): (
        "t.a > :0 OR t.a = :0 AND t.b > :1",
        "t.a > :0 OR t.a = :0 AND t.b >= :1",
        "t.a < :0 OR t.a = :0 AND t.b <= :1",
    ),
    ("mariadb", 3): (
        "t.a > :0 OR t.a = :0 AND (t.b > :1 OR t.b = :1 AND t.c > :2)",
        "t.a > :0 OR t.a = :0 AND (t.b > :1 OR t.b = :1 AND t.c >= :2)",
        "t.a < :0 OR t.a = :0 AND (t.b < :1 OR t.b = :1 AND t.c <= :2)",
    ),
    ("base", 1): ("t.a > :0", "t.a >= :0", "t.a <= :0"),
    ("base", 2): (
        "t.a >= :0 AND (t.a > :0 OR t.b > :1)",
        "t.a >= :0 AND (t.a > :0 OR t.b >= :1)",
        "t.a <= :0 AND (t.a < :0 OR t.b <= :1)",
    ),
    ("base", 3): (
        "t.a >= :0 AND (t.a > :0 OR t.b >= :1 AND (t.b > :1 OR t.c > :2))",
        "t.a >= :0 AND (t.a > :0 OR t.b >= :1 AND (t.b > :1 OR t.c >= :2))",
        "t.a <= :0 AND (t.a < :0 OR t.b <= :1 AND (t.b < :1 OR t.c <= :2))",
    ),
}
COMPARISONS |= {("mysql", n): COMPARISONS["mariadb", n] for n in (1, 2, 3)}
COMPARISONS |= {("postgresql", n): COMPARISONS["sqlite", n] for n in (2, 3)}


@pytest.mark.parametrize(("name", "width"), COMPARISONS, ids=str)
def test_comparisons_of_keys(name: str, width: int) -> None:
    used = Dialect(sa.create_engine("sqlite://")) if name == "base" else dialect(name)
    key = Key(tuple(TABLE.c)[:width], (sa.Integer(),) * width, used)
    operands = key.operands("p")
    conditions = (key.above(operands), key.above(operands, inclusive=True), key.upto(operands))
    assert tuple(map(shown, conditions, [used] * 3)) == COMPARISONS[name, width]


def test_columns_that_are_alike_at_both_ends_are_compared_for_equality() -> None:
    used = dialect("postgresql")
    key = Key(tuple(TABLE.c)[:3], (sa.Integer(),) * 3, used)
    ends = key.operands("p"), key.operands("p")
    assert [shown(key.between(*ends, alike=n), used) for n in (0, 1, 2)] == [
        "(t.a, t.b, t.c) > (:0, :1, :2) AND (t.a, t.b, t.c) <= (:0, :1, :2)",
        "t.a = :0 AND (t.b, t.c) > (:1, :2) AND (t.b, t.c) <= (:1, :2)",
        "t.a = :0 AND t.b = :1 AND t.c > :2 AND t.c <= :2",
    ]
    lows = [(), (1, 2, 3), (1, 2, 2), (1, 1, 3), (0, 2, 3)]
    assert [alike(low, (1, 2, 3)) for low in lows] == [0, 2, 2, 1, 0]


def shown(condition: sa.ColumnElement[Any], used: Dialect) -> str:
    """The SQL with its parameters by number, and without PostgreSQL's casts of them."""
    text = str(condition.compile(dialect=NAMED[type(used)]))
    for i in range(3):
        text = text.replace(f"%(p_{i})s::INTEGER", f":{i}").replace(f"%(p_{i})s", f":{i}")
        text = text.replace(f":p_{i}", f":{i}")
    return " ".join(text.split())


def named(url: str) -> sa.Dialect:
    """SQLite has positional parameters otherwise."""
    style = {"paramstyle": "named"} if url.startswith("sqlite") else {}
    return sa.create_engine(url, **style).dialect


NAMED: dict[type[Dialect], sa.Dialect] = {
    SQLite: named(URLS["sqlite"]),
    Dialect: named(URLS["sqlite"]),
    PostgreSQL: named(URLS["postgresql"]),
    MySQL: named(URLS["mysql"]),
    MariaDB: named(URLS["mariadb"]),
}


def test_parameters_fit_the_operands() -> None:
    key = Key(tuple(TABLE.c)[:2], (sa.Integer(),) * 2, dialect("sqlite"))
    assert key.parameters("p", (1, 2)) == {"p_0": 1, "p_1": 2}
    assert [operand.key for operand in key.operands("p")] == ["p_0", "p_1"]


@pytest.mark.parametrize("width", [1, 2])
def test_keys_can_be_left_out(width: int) -> None:
    with sa.create_engine("sqlite://").connect() as connection:
        TABLE.create(connection)
        rows = [{"a": a, "b": b, "c": 0} for a in (1, 2, 3) for b in (1, 2)]
        connection.execute(TABLE.insert(), rows)
        key = Key(tuple(TABLE.c)[:width], (sa.Integer(),) * width, dialect("sqlite"))
        left_out = [(1, 2)[:width], (3, 1)[:width]]
        found = connection.execute(sa.select(*key.columns).where(key.other_than(left_out)))
        everything = {(row["a"], row["b"])[:width] for row in rows}
        assert {tuple(row) for row in found} == everything - set(left_out)


# -- errors ----------------------------------------------------------------------------------


def postgresql_error(code: str) -> BaseException:
    try:
        kind = psycopg.errors.lookup(code)
    except KeyError:
        kind = type("New", (psycopg.DatabaseError,), {"sqlstate": code})
    return kind("message")


def sqlite_error(code: int) -> BaseException:
    error = sqlite3.OperationalError("message")
    error.sqlite_errorcode = code
    return error


RAISED: dict[str, Callable[[Any], BaseException]] = {
    "postgresql": postgresql_error,
    "psycopg2": Psycopg2Error,
    "mariadb": lambda code: pymysql.err.OperationalError(code, "message"),
    "mysql": lambda code: pymysql.err.InternalError(code, "message"),
    "sqlite": sqlite_error,
}

IN_POSTGRESQL: dict[ErrorKind, list[Any]] = {
    ErrorKind.CONFLICT: ["40001", "40P01"],
    ErrorKind.LOCKED: ["55P03"],
    ErrorKind.TOO_SLOW: ["57014", "25P04"],
    ErrorKind.SESSION_LOST: ["08000", "08006", "57P01", "57P02", "57P05", "25P03", "40003"],
    ErrorKind.NOT_READY: ["57P03", "53300"],
    ErrorKind.READ_ONLY: ["25006"],
    ErrorKind.OUT_OF_SPACE: ["53100", "53200", "53400"],
    ErrorKind.DATA: ["22001", "22003", "22P02", "23502", "23505", "23514", "23P01"],
    ErrorKind.SCHEMA: ["42P01", "42703", "42804", "42883", "42601"],
    ErrorKind.RIGHTS: ["42501", "28000", "28P01"],
    ErrorKind.DAMAGE: ["XX001", "XX002", "58030"],
    ErrorKind.UNKNOWN: ["XX000", "25001", "3D000", "99999"],
}  # fmt: skip
IN_POSTGRESQL[ErrorKind.DATA] += ["21000", "44000", "54000", "P0001"]  # one row may cause these

IN_MYSQL: dict[ErrorKind, list[Any]] = {
    ErrorKind.CONFLICT: [1213, 1020, 1412, 1615],
    ErrorKind.LOCKED: [1205, 3572],
    ErrorKind.TOO_SLOW: [3024, 1969, 1317],
    ErrorKind.SESSION_LOST: [2006, 2013, 2055, 1053, 1927, 4031, 0],
    ErrorKind.NOT_READY: [1040, 1203, 1226, 2002, 2003, 2005, 1047],
    ErrorKind.READ_ONLY: [1290, 1836, 1792],
    ErrorKind.OUT_OF_SPACE: [1021, 1114, 1041],
    ErrorKind.DATA: [1062, 1048, 1264, 1292, 1366, 1406, 1451, 1452, 3819, 4025, 1644, 1242, 1586],
    ErrorKind.SCHEMA: [1146, 1054, 1064],
    ErrorKind.RIGHTS: [1044, 1045, 1142, 1143, 1227],
    ErrorKind.DAMAGE: [1030, 1034, 126, 145],
    ErrorKind.UNKNOWN: [1000, 1105, 99999],
}
IN_MYSQL[ErrorKind.DATA] += [1216, 1217, 3140, 4038]

IN_SQLITE: dict[ErrorKind, list[Any]] = {
    ErrorKind.CONFLICT: [17, 517],
    ErrorKind.LOCKED: [5, 261, 6, 262, 15],
    ErrorKind.TOO_SLOW: [9],
    ErrorKind.NOT_READY: [14],
    ErrorKind.SESSION_LOST: [1032],
    ErrorKind.UNWRITABLE: [8, 264, 1544],
    ErrorKind.OUT_OF_SPACE: [7, 10, 778, 13],
    ErrorKind.DATA: [19, 275, 787, 1299, 1811, 2067, 20, 18],
    ErrorKind.RIGHTS: [3, 23],
    ErrorKind.DAMAGE: [11, 267, 26],
    ErrorKind.UNKNOWN: [1, 2, 21, 99],
}

KINDS = [
    (name, code, kind)
    for name, kinds in (
        ("postgresql", IN_POSTGRESQL),
        ("psycopg2", IN_POSTGRESQL),
        ("mariadb", IN_MYSQL),
        ("mysql", IN_MYSQL),
        ("sqlite", IN_SQLITE),
    )
    for kind, codes in kinds.items()
    for code in codes
]


def wrapped(original: BaseException, *, invalidated: bool = False) -> sa.exc.DBAPIError:
    return sa.exc.DBAPIError("UPDATE t", {}, original, connection_invalidated=invalidated)


@pytest.mark.parametrize(("name", "code", "kind"), KINDS)
def test_kind_of_code(name: str, code: Any, kind: ErrorKind) -> None:
    used, error = dialect(name), RAISED[name](code)
    assert used.error_kind(error) is kind
    assert used.error_kind(wrapped(error)) is kind
    if code:
        assert used.error_code(wrapped(error)) == str(code)


@pytest.mark.parametrize(
    ("name", "code"), [("postgresql", "08006"), ("mariadb", 2013), ("sqlite", 5)]
)
def test_class_of_the_exception_does_not_count(name: str, code: Any) -> None:
    used, original = dialect(name), RAISED[name](code)
    for kind in (sa.exc.OperationalError, sa.exc.IntegrityError, sa.exc.InternalError):
        assert used.error_kind(kind("UPDATE t", {}, original)) is used.error_kind(original)


@pytest.mark.parametrize("name", ["postgresql", "psycopg2"])
def test_lost_session_without_a_code(name: str) -> None:
    original = psycopg.OperationalError("gone") if name == "postgresql" else Psycopg2Error(None)
    lost = wrapped(original, invalidated=True)
    assert dialect(name).error_kind(lost) is ErrorKind.SESSION_LOST
    assert dialect(name).error_kind(wrapped(original)) is ErrorKind.UNKNOWN


@pytest.mark.parametrize("name", ["postgresql", "psycopg2"])
def test_connection_that_never_was(name: str) -> None:
    original = psycopg.OperationalError("no") if name == "postgresql" else Psycopg2Error(None)
    refused = sa.exc.OperationalError(None, None, original)
    assert dialect(name).error_kind(refused) is ErrorKind.NOT_READY


def test_cached_plan_is_tried_again_and_no_other_lack_of_a_feature() -> None:
    used = dialect("postgresql")
    cached = psycopg.errors.FeatureNotSupported("cached plan must not change result type")
    other = psycopg.errors.FeatureNotSupported("FOR UPDATE is not allowed with DISTINCT")
    assert used.error_kind(wrapped(cached)) is ErrorKind.CONFLICT
    assert used.error_kind(wrapped(other)) is ErrorKind.UNKNOWN


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("database is locked", ErrorKind.LOCKED),
        ("database table is locked", ErrorKind.LOCKED),
        ("interrupted", ErrorKind.TOO_SLOW),
        ("attempt to write a readonly database", ErrorKind.UNWRITABLE),
        ("database or disk is full", ErrorKind.OUT_OF_SPACE),
        ("unable to open database file", ErrorKind.NOT_READY),
        ("database disk image is malformed", ErrorKind.DAMAGE),
        ("UNIQUE constraint failed: t.a", ErrorKind.DATA),
        ("no such table: t", ErrorKind.SCHEMA),
        ("no such column: a", ErrorKind.SCHEMA),
        ("something else", ErrorKind.UNKNOWN),
    ],
)
def test_sqlite_before_python_3_11_tells_no_codes(text: str, kind: ErrorKind) -> None:
    assert dialect("sqlite").error_kind(wrapped(sqlite3.OperationalError(text))) is kind


def test_sqlite_error_of_a_real_database() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(sa.exc.OperationalError) as raised:
        connection.exec_driver_sql("SELECT * FROM absent")
    assert dialect_for(engine).error_kind(raised.value) is ErrorKind.SCHEMA


class WithState(Exception):
    sqlstate = "40001"
    pgcode = "40001"


@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize(
    "error",
    [
        KeyError(1205),
        KeyError(0),
        OSError(2013, "message"),
        ValueError("UNIQUE constraint failed: t.a"),
        KeyError("no such thing"),
        ValueError("database is locked"),
        ValueError(),
        KeyboardInterrupt(),
        WithState(),
    ],
    ids=repr,
)
def test_an_error_that_is_not_the_drivers_has_no_code(name: str, error: BaseException) -> None:
    used = dialect(name)
    assert used.error_kind(error) is ErrorKind.UNKNOWN
    assert used.error_code(error) == type(error).__name__


@pytest.mark.parametrize(
    ("code", "text", "objects"),
    [
        (1048, "Column 'email' cannot be null", {"column": "email"}),
        (1406, "Data too long for column 'email' at row 1", {"column": "email"}),
        (1264, "Out of range value for column 'age' at row 1", {"column": "age"}),
        (1062, "Duplicate entry 'a@b.c' for key 'users.email'", {"constraint": "users.email"}),
        (1062, "Duplicate entry 'for key 'x'' for key 'email'", {"constraint": "email"}),
        (4025, "CONSTRAINT `adult` failed for `shop`.`users`", {"constraint": "adult"}),
        (3819, "Check constraint 'adult' is violated.", {"constraint": "adult"}),
        (1366, "Incorrect integer value: 'secret' for column `a`.`b`.`c` at row 1", {}),
        (1644, "secret", {}),
    ],
)
def test_mysql_names_of_an_error_without_its_values(
    code: int, text: str, objects: dict[str, str]
) -> None:
    error = wrapped(pymysql.err.DataError(code, text))
    assert dialect("mariadb").error_objects(error) == objects


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("UNIQUE constraint failed: users.email", {"constraint": "users.email"}),
        ("UNIQUE constraint failed: t.a, t.b", {"constraint": "t.a, t.b"}),
        ("NOT NULL constraint failed: users.email", {"constraint": "users.email"}),
        ("CHECK constraint failed: adult", {"constraint": "adult"}),
        ("CHECK constraint failed: name <> 'secret'", {}),
        ("a trigger says: secret", {}),
    ],
)
def test_sqlite_names_of_an_error_without_its_values(text: str, objects: dict[str, str]) -> None:
    error = wrapped(sqlite3.IntegrityError(text))
    assert dialect("sqlite").error_objects(error) == objects


def test_sqlite_uses_its_journal_again_and_leaves_none(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db", poolclass=sa.NullPool)
    used, limits = dialect_for(engine), Limits(1, 1, 1)
    with used.open(limits) as connection:
        for statement in ("CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"):
            with used.transaction(connection, limits):
                connection.exec_driver_sql(statement)
            assert Path(f"{tmp_path}/app.db-journal").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["app.db"]


def test_sqlite_keeps_the_write_ahead_log(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db", poolclass=sa.NullPool)
    used, limits = dialect_for(engine), Limits(1, 1, 1)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = wal")
    with used.open(limits) as connection, used.transaction(connection, limits):
        connection.exec_driver_sql("CREATE TABLE t (a)")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


@pytest.mark.parametrize(
    ("old", "new", "is_in_place"),
    [
        (sa.VARCHAR(50), sa.String(60), True),
        (sa.VARCHAR(50), sa.String(300), False),
        (sa.VARCHAR(300), sa.String(400), True),
        (sa.VARCHAR(50), sa.Text(), False),
        (sa.Text(), sa.Text(), False),
        (sa.Numeric(10, 2), sa.Numeric(12, 2), False),
    ],
)
def test_what_mariadb_widens_in_place(old: Any, new: Any, is_in_place: bool) -> None:
    assert MariaDBColumns().widens_in_place(old, new) is is_in_place


@pytest.mark.parametrize(
    ("default", "is_volatile"),
    [("uuid()", True), ("concat('u', UUID ())", True), ("now()", False), ("my_uuid(1)", False)],
)
def test_which_defaults_give_each_row_another_value_on_mariadb(
    default: str, is_volatile: bool
) -> None:
    assert MariaDBColumns().is_volatile(mock.Mock(), default) is is_volatile
