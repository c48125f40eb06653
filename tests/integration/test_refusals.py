"""What does not fit is refused before anything is written, in words that say what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from backfill import Backfill
from backfill.discovery import Declared, discover, unknown_revision
from backfill.errors import DeclarationError
from backfill.project import load
from tests.integration.support import Row, complete, fill, make, read, run, state_tables

if TYPE_CHECKING:
    from tests.projects import AlembicProject

EXAMPLE = 'values = {"full_name": "first || \' \' || last"}'


def make_people(engine: sa.Engine) -> sa.Table:
    return make(
        engine,
        "people",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("email", sa.String(50)),
        sa.Column("team", sa.Integer, nullable=False),
        sa.Column("full_name", sa.String(50)),
        sa.UniqueConstraint("email"),
        rows=[
            {"id": i, "email": f"{i}@x", "team": i % 2, "full_name": f"P {i}"} for i in range(20)
        ],
    )


def declare(**body: Any) -> type[Backfill]:
    """A class on `people` that would write something if it were not refused."""
    level: Row = {} if {"values", "transform"} & set(body) else {"values": {"full_name": "'x'"}}
    return type("FillNames", (Backfill,), {"table": "people", **level, **body})


def transform(self: Backfill, row: Any) -> Row:
    return {"full_name": "x"}


def refused(engine: sa.Engine, table: sa.Table, body: Row) -> str:
    """Declare and run; returns why it was refused, having looked that nothing was written."""
    names = list(table.c.keys())
    before = read(engine, table, *names)
    with pytest.raises(DeclarationError) as caught:
        run(engine, declare(**body))
    assert read(engine, table, *names) == before
    assert state_tables(engine) == []
    return str(caught.value)


def check(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message


# -- the table and its key -------------------------------------------------------------


def test_missing_table(engine: sa.Engine) -> None:
    people = make_people(engine)
    message = refused(engine, people, {"table": "peple"})
    check(message, "no table 'peple'; did you mean 'people'?", "name that revision or a later one")
    message = refused(engine, people, {"table": "zzz"})
    check(message, "no table 'zzz'. If a revision creates it")


def test_missing_schema(engine: sa.Engine) -> None:
    people = make_people(engine)
    for body in ({"table": "sales.people"}, {"schema": "sales"}):
        check(refused(engine, people, body), "fill_names: there is no table", "people")


@pytest.mark.requires("schemas")
def test_missing_table_of_a_schema(engine: sa.Engine) -> None:
    people = make_people(engine)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("sales"))
    make(engine, "orders", sa.Column("id", sa.Integer, primary_key=True), schema="sales")
    message = refused(engine, people, {"table": "sales.ordres"})
    check(message, "no table 'sales.ordres'; did you mean 'orders'?")


def test_view(engine: sa.Engine) -> None:
    people = make_people(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE VIEW names AS SELECT id, full_name FROM people")
    check(refused(engine, people, {"table": "names"}), "names", "key")
    message = refused(engine, people, {"table": "names", "key": "id"})
    check(message, "'names' is a view", "Name the table behind it")


def test_table_without_a_key(engine: sa.Engine) -> None:
    lines = make(
        engine,
        "lines",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("full_name", sa.String(50)),
    )
    fill(engine, lines, [{"id": 1, "full_name": "a"}])
    message = refused(engine, lines, {"table": "lines"})
    check(message, "'lines' has no primary key", 'key = ["account", "number"]')


def test_nullable_key(engine: sa.Engine) -> None:
    people = make_people(engine)
    message = refused(engine, people, {"key": "email"})
    check(message, "nullable column 'email'", "NOT NULL", "other columns in `key`")


def test_key_that_is_not_unique(engine: sa.Engine) -> None:
    people = make_people(engine)
    for key in ("team", ["team"], ["id", "team"]):
        message = refused(engine, people, {"key": key})
        check(message, "is not unique", "unique constraint in `key`")


@pytest.mark.requires("partial_indexes")
def test_key_that_is_unique_for_some_rows_only(engine: sa.Engine) -> None:
    people = make_people(engine)
    few = people.c.id < 2
    index = sa.Index("few", people.c.team, unique=True, sqlite_where=few, postgresql_where=few)
    index.create(engine)
    check(refused(engine, people, {"key": "team"}), "is not unique")


@pytest.mark.requires("expression_indexes")
def test_key_that_is_unique_as_an_expression_only(engine: sa.Engine) -> None:
    people = make_people(engine)
    sa.Index("both", sa.func.abs(people.c.id), people.c.team, unique=True).create(engine)
    check(refused(engine, people, {"key": "team"}), "is not unique")


@pytest.mark.requires("inheritance")
def test_key_that_inheriting_tables_have_again(engine: sa.Engine) -> None:
    """Their rows are the parent's as well; where Python computes them, they would be mixed up."""
    people = make_people(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE staff (PRIMARY KEY (id)) INHERITS (people)")
        connection.exec_driver_sql("INSERT INTO staff SELECT * FROM people")
    message = refused(engine, people, {"writes": ["full_name"], "transform": transform})
    check(message, "the key of 'people', id, does not hold", "inherit", "a class of its own")
    members = {"table": "people", "values": {"full_name": "'both'"}}
    complete(engine, type("Both", (Backfill,), members))
    assert set(read(engine, people, "full_name")) == {"both"}


@pytest.mark.requires("inheritance")
def test_key_whose_index_is_invalid(engine: sa.Engine) -> None:
    people = make_people(engine)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("UPDATE people SET team = 1")
        with pytest.raises(sa.exc.IntegrityError):
            connection.exec_driver_sql("CREATE UNIQUE INDEX CONCURRENTLY one ON people (team)")
    check(refused(engine, people, {"key": "team"}), "INVALID", "CONCURRENTLY")


@pytest.mark.requires("server")
def test_float_key(engine: sa.Engine) -> None:
    points = make(
        engine,
        "points",
        sa.Column("x", sa.Double, primary_key=True),
        sa.Column("full_name", sa.String(50)),
        rows=[{"x": 0.1, "full_name": "a"}],
    )
    message = refused(engine, points, {"table": "points"})
    check(message, "column 'x'", "do not keep an exact order", "other unique columns in `key`")


@pytest.mark.requires("plain_engines")
@pytest.mark.parametrize("kind", ["MyISAM", "Aria", "MEMORY"])
def test_table_without_transactions(engine: sa.Engine, kind: str) -> None:
    plain = make(
        engine,
        "plain",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("full_name", sa.String(50)),
        rows=[{"id": 1, "full_name": "a"}],
        mysql_engine=kind,
        mariadb_engine=kind,
    )
    message = refused(engine, plain, {"table": "plain"})
    check(message, f"'plain' uses {kind}, which has no transactions", "ENGINE=InnoDB")


# -- columns ---------------------------------------------------------------------------


MISSING_COLUMN: list[Any] = [
    ({"key": "ful_name"}, "the key"),
    ({"key": ["id", "ful_name"]}, "the key"),
    ({"transform": transform, "reads": ["ful_name"], "writes": ["full_name"]}, "`reads`"),
    ({"transform": transform, "writes": ["ful_name"]}, "writing"),
    ({"values": {"ful_name": "'x'"}}, "writing"),
]


def test_missing_column(engine: sa.Engine) -> None:
    people = make_people(engine)
    for body, use in MISSING_COLUMN:
        message = refused(engine, people, body)
        check(message, f"no column 'ful_name' for {use}; did you mean 'full_name'?")
        check(message, "If a revision adds it, name that revision or a later one")


WRONG_SQL: list[Any] = [
    {"where": "ful_name IS NULL"},
    {"where": sa.column("ful_name").is_(None)},
    {"values": {"full_name": "ful_name"}},
    {"values": {"full_name": sa.column("ful_name")}},
    {"where": "full_name IS", "values": {"full_name": "'x'"}},
    {"values": {"full_name": "no_such_function(full_name)"}},
    {"values": {"full_name": "('x'"}},
    {"where": "ful_name IS NULL", "transform": transform, "writes": ["full_name"]},
]


def test_sql_that_the_database_refuses(engine: sa.Engine) -> None:
    people = make_people(engine)
    for body in WRONG_SQL:
        message = refused(engine, people, body)
        check(message, "the database refuses the SQL of `where` or `values`", "SELECT")


@pytest.mark.parametrize(
    "body",
    [
        {"values": {"id": "id + 1000"}},
        {"transform": transform, "writes": ["full_name", "id"]},
        {"key": ["team", "email"], "values": {"team": "1"}},
    ],
)
def test_writing_the_key(engine: sa.Engine, body: Row) -> None:
    people = make(
        engine,
        "people",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("team", sa.Integer, nullable=False),
        sa.Column("email", sa.String(50), nullable=False),
        sa.Column("full_name", sa.String(50)),
        sa.UniqueConstraint("team", "email"),
        rows=[{"id": 1, "team": 2, "email": "e", "full_name": "a"}],
    )
    message = refused(engine, people, body)
    check(message, "belongs to the key", "Name other columns in `key`, or use `apply`")


@pytest.mark.parametrize("persisted", [True, False])
def test_writing_a_computed_column(engine: sa.Engine, persisted: bool) -> None:
    sums = make(
        engine,
        "sums",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("n", sa.Integer),
        sa.Column("total", sa.Integer, sa.Computed("n + 1", persisted=persisted)),
        rows=[{"id": 1, "n": 1}],
    )
    levels: list[Row] = [
        {"values": {"total": "1"}},
        {"transform": transform, "writes": ["total"]},
    ]
    for level in levels:
        message = refused(engine, sums, {"table": "sums", **level})
        check(message, "'total' is computed by the database and cannot be written")


@pytest.mark.requires("always_identity")
def test_writing_an_identity_column(engine: sa.Engine) -> None:
    numbered = make(
        engine,
        "numbered",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, sa.Identity(always=True), nullable=False),
        rows=[{"id": 1}],
    )
    check(refused(engine, numbered, {"table": "numbered", "values": {"number": "1"}}), "'number'")


# -- the class itself ------------------------------------------------------------------

WRONG_CLASSES: list[tuple[Row, str]] = [
    ({"values": {"full_name": "'x'"}, "transform": transform, "writes": ["full_name"]}, "more"),
    ({"transform": transform, "transform_chunk": transform, "writes": ["full_name"]}, "more"),
    ({"values": {"full_name": "'x'"}, "apply": transform}, "more than one"),
    ({"values": None}, "none of them"),
    ({"table": None}, "`table` must be the table's name"),
    ({"table": ""}, "`table` must be the table's name"),
    ({"table": 3}, "`table` must be the table's name"),
    ({"where": 3}, "`where` must be SQL text"),
    ({"where": ""}, "`where` must be SQL text"),
    ({"where": True}, "`where` must be SQL text"),
    ({"where": sa.text("full_name IS NULL")}, "without sa.text"),
    ({"where": ["full_name IS NULL"]}, "`where` must be SQL text"),
    ({"values": {}}, "`values` must map columns to SQL"),
    ({"values": "full_name = 'x'"}, "`values` must map columns to SQL"),
    ({"values": [("full_name", "'x'")]}, "`values` must map columns to SQL"),
    ({"values": {"full_name": 3}}, "the value of 'full_name' must be SQL text"),
    ({"values": {"full_name": None}}, "the value of 'full_name' must be SQL text"),
    ({"values": {"full_name": ""}}, "the value of 'full_name' must be SQL text"),
    ({"values": {"full_name": sa.text("'x'")}}, "without sa.text"),
    ({"values": {3: "'x'"}}, "must be column names in quotes"),
    ({"values": {sa.column("full_name"): "'x'"}}, "must be column names in quotes"),
    ({"transform": transform}, "`writes` must name the columns"),
    ({"transform": transform, "writes": "full_name"}, "`writes` must be a list"),
    ({"transform": transform, "writes": [3]}, "`writes` must be a list"),
    ({"transform": transform, "writes": ["full_name"], "reads": "id"}, "`reads` must be"),
    ({"transform": transform, "writes": ["full_name"], "reads": None}, "`reads` must be"),
    ({"writes": ["full_name"]}, "`reads` and `writes` belong to `transform`"),
    ({"reads": ["full_name"]}, "`reads` and `writes` belong to `transform`"),
    ({"key": 3}, "`key` must be"),
    ({"key": []}, "`key` must be"),
    ({"name": "white space"}, "`name` must be"),
    ({"were": "full_name IS NULL"}, "did you mean `where`"),
    ({"wheres": "full_name IS NULL"}, "did you mean `where`"),
    ({"values": None, "valuse": {"full_name": "'x'"}}, "did you mean `values`"),
]


def test_wrong_classes(engine: sa.Engine) -> None:
    people = make_people(engine)
    for body, words in WRONG_CLASSES:
        check(refused(engine, people, body), "FillNames", words, EXAMPLE)


def test_wrong_settings(engine: sa.Engine) -> None:
    people = make_people(engine)
    settings: list[Row] = [{"chunk_size": 0}, {"chunk_size": "many"}, {"workers": -1}]
    for body in settings:
        ((name, value),) = body.items()
        check(refused(engine, people, body), "FillNames", f"{name} to {value!r}", "must be")


WRONG_METHODS: list[tuple[Row, str]] = [
    ({"where": lambda self, table: 3}, "`where` must be SQL text or an expression"),
    ({"where": lambda self, table: None}, "`where` must be"),
    ({"values": lambda self, table: {"full_name": 3}}, "value of 'full_name' must be SQL text"),
    ({"values": lambda self, table: {"ful_name": "'x'"}}, "did you mean 'full_name'"),
    ({"values": lambda self, table: {}}, "`values`"),
    ({"values": lambda self, table: "full_name = 'x'"}, "`values`"),
    ({"values": lambda self, table: None}, "`values`"),
]


def test_methods_that_return_something_wrong(engine: sa.Engine) -> None:
    people = make_people(engine)
    for body, words in WRONG_METHODS:
        check(refused(engine, people, body), "fill_names", words)


def test_column_that_the_key_names_twice(engine: sa.Engine) -> None:
    message = refused(engine, make_people(engine), {"key": ["id", "id"]})
    check(message, "`key` names a column twice")


# -- what a project declares -----------------------------------------------------------

CLASS = """
from backfill import Backfill

class {name}(Backfill):
    {revision}
    table = "people"
    values = {{"full_name": "'x'"}}
"""
IN_REVISION = """
def upgrade():
    pass

class FillNames(__import__("backfill").Backfill):
    table = "people"
    values = {"full_name": "'x'"}
"""


def declaration(name: str = "FillNames", revision: str | None = "a1") -> str:
    return CLASS.format(name=name, revision="" if revision is None else f'revision = "{revision}"')


def discovered(project: AlembicProject) -> list[Declared]:
    found = load(str(project.ini))
    return discover(found.script, found.applied)


def refused_project(project: AlembicProject) -> str:
    with pytest.raises(DeclarationError) as caught:
        discovered(project)
    return str(caught.value)


def test_project_that_is_right(project: AlembicProject) -> None:
    """The counterpart of those below."""
    project.revision("a1")
    project.revision("b2", down="a1", body=IN_REVISION)
    project.write("migrations/backfills/others.py", declaration("Others"))
    assert [(one.name, one.revision) for one in discovered(project)] == [
        ("others", "a1"),
        ("fill_names", "b2"),
    ]


def test_two_classes_of_one_name(project: AlembicProject) -> None:
    project.revision("a1", body=IN_REVISION)
    project.write("migrations/backfills/others.py", declaration())
    message = refused_project(project)
    check(message, "'fill_names'", "a1.py", "others.py", 'give one of them another: name = "…"')


def test_unknown_revision(project: AlembicProject) -> None:
    project.revision("a1")
    project.write("migrations/backfills/names.py", declaration(revision="zz9"))
    found = load(str(project.ini))
    (one,) = discover(found.script, found.applied)
    assert (one.revision, one.is_known, one.is_applied) == ("zz9", False, False)
    message = unknown_revision(one, found.script)
    check(message, "names.py: FillNames", "'zz9'", "Known heads: a1")


def test_class_in_the_folder_without_a_revision(project: AlembicProject) -> None:
    project.revision("a1")
    project.write("migrations/backfills/names.py", declaration(revision=None))
    check(refused_project(project), "names.py: FillNames", 'revision = "8f2c1a"')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("class FillNames(:\n", "SyntaxError"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("raise SystemExit(3)\n", "SystemExit"),
    ],
)
def test_module_that_cannot_be_imported(project: AlembicProject, text: str, words: str) -> None:
    project.revision("a1")
    project.write("migrations/backfills/names.py", text)
    check(refused_project(project), "names.py cannot be imported", words)


def test_wrong_class_in_the_folder(project: AlembicProject) -> None:
    project.revision("a1")
    project.write("migrations/backfills/names.py", declaration().replace("values", "valuse"))
    message = refused_project(project)
    assert re.search(r"names\.py: FillNames: .*did you mean `values`", message, re.DOTALL)


def test_wrong_class_in_a_revision(project: AlembicProject) -> None:
    project.revision("a1", body=IN_REVISION.replace("values", "valuse"))
    message = refused_project(project)
    assert re.search(r"a1\.py.*FillNames: .*did you mean `values`", message, re.DOTALL)


def test_text_that_closes_our_parentheses(engine: sa.Engine) -> None:
    """It would reach beyond its chunk."""
    people = make_people(engine)
    for body in (
        {"where": "team = 1) OR (team = 0"},
        {"where": "team = 1", "values": {"full_name": "'x'), (email"}},
    ):
        check(refused(engine, people, body), "refuses the SQL of `where` or `values`")


def test_key_that_is_computed_from_what_is_written(engine: sa.Engine) -> None:
    """A row that is written would be met again."""
    team = sa.Column("team", sa.Integer, nullable=False)
    made = sa.Column("made", sa.Integer, sa.Computed("id * 2 + team", persisted=True))
    ident = sa.Column("id", sa.Integer, primary_key=True, autoincrement=False)
    index = sa.Index("by_made", made, unique=True)
    name = sa.Column("full_name", sa.String(50))
    rows = [{"id": i, "team": 0} for i in range(5)]
    people = make(engine, "people", ident, team, made, name, index, rows=rows)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("ALTER TABLE people ALTER COLUMN made SET NOT NULL")
    body = {"key": "made", "values": {"team": "team + 1"}}
    check(refused(engine, people, body), "'made'")
