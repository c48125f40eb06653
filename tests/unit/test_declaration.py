"""What a class says, and what is refused when it is created."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from backfill import Backfill, DeclarationWarning
from backfill.declaration import Level
from backfill.errors import DeclarationError
from tests.projects import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SET = {"table": "users", "where": "name IS NULL", "values": {"name": "'nobody'"}}


def transform(self: Any, row: Any) -> dict[str, Any]:
    return {"name": row.first}


def transform_chunk(self: Any, rows: Any) -> list[dict[str, Any]]:
    return [{"name": row.first} for row in rows]


def apply(self: Any, connection: Any, chunk: Any) -> None:
    connection.execute(chunk.delete())


ROWS = {"table": "users", "reads": ["first"], "writes": ["name"], "transform": transform}
CHUNKS = {
    "table": "users",
    "reads": ("first",),
    "writes": ["name"],
    "transform_chunk": transform_chunk,
}
CUSTOM = {"table": "users", "apply": apply}


def declare(attributes: dict[str, Any], name: str = "FillNames") -> type[Backfill]:
    return type(name, (Backfill,), dict(attributes))


def without_addresses(value: object) -> str:
    """A test's name has to be the same in every process."""
    return re.sub(r"0x[0-9a-f]+|%\(\d+", "", str(value))


def its_end(value: object) -> str:
    return without_addresses(value)[-60:]


@pytest.mark.parametrize(
    ("attributes", "level"),
    [(SET, Level.SET), (ROWS, Level.ROWS), (CHUNKS, Level.ROWS), (CUSTOM, Level.CUSTOM)],
)
def test_level(attributes: dict[str, Any], level: Level) -> None:
    assert declare(attributes).level is level


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("FillFullName", "fill_full_name"),
        ("Fill", "fill"),
        ("HTTPStatus", "http_status"),
        ("FillHTTPStatus", "fill_http_status"),
        ("FillUTF8Names", "fill_utf8_names"),
        ("Fill2Names", "fill2_names"),
        ("already_snake", "already_snake"),
        ("FüllNamen", "füll_namen"),
    ],
)
def test_name_is_the_class_name_in_snake_case(class_name: str, name: str) -> None:
    assert declare(SET, class_name).name == name


def test_name_can_be_given() -> None:
    assert declare({**SET, "name": "names.v2-final"}).name == "names.v2-final"


def test_name_is_not_inherited() -> None:
    class Second(declare({**SET, "name": "first"})):  # type: ignore[misc]
        pass

    assert Second.name == "second"


def test_abstract_base_says_nothing() -> None:
    class OfUsers(Backfill, abstract=True):
        table = "users"

    class FillNames(OfUsers):
        values = SET["values"]

    assert FillNames.table == "users"
    assert not hasattr(OfUsers, "level")


def test_description_is_the_first_line_of_the_docstring() -> None:
    assert declare({**SET, "__doc__": "Fill names.\n\nSlowly."}).description() == "Fill names."
    assert declare(SET).description() == ""


def where(self: Any, table: sa.Table) -> sa.ColumnElement[bool]:
    return table.c.name.is_(None)


def values(self: Any, table: sa.Table) -> dict[str, Any]:
    return {"name": sa.func.lower(table.c.first)}


@pytest.mark.parametrize(
    "change",
    [
        {"where": None},
        {"where": where},
        {"where": sa.column("name").is_(None)},
        {"values": values},
        {"values": {"name": sa.func.lower(sa.column("first"))}},
        {"values": {"name": sa.literal("x"), "other": "first || last"}},
        {"key": "id"},
        {"key": ["account", "number"]},
        {"key": ("account", "number")},
        {"schema": "shop"},
        {"table": "shop.users"},
        {"revision": "8f2c1a"},
        {"sync": True, "where": "name IS NULL"},
        {"chunk_size": None},
        {"chunk_size": 100, "lock_timeout": 0, "max_failures": 0, "target_seconds": 1},
    ],
    ids=without_addresses,
)
def test_accepted(change: dict[str, Any]) -> None:
    declare({**SET, **change})


SQL_TEXT = "SQL text"

REFUSED: list[tuple[dict[str, Any], str]] = [
    # the table
    ({**SET, "table": None}, "table"),
    ({**SET, "table": ""}, "table"),
    ({**SET, "table": 5}, "table"),
    # exactly one level
    ({"table": "users"}, "none of them"),
    ({**SET, "transform": transform}, "more than one"),
    ({**ROWS, "transform_chunk": transform_chunk}, "more than one"),
    ({**CUSTOM, "values": SET["values"]}, "more than one"),
    # the name
    ({**SET, "name": ""}, "name"),
    ({**SET, "name": "two words"}, "name"),
    ({**SET, "name": "x" * 201}, "name"),
    ({**SET, "name": "a\n"}, "name"),
    ({**SET, "name": "a'b"}, "name"),
    ({**SET, "name": None}, "name"),
    # columns
    ({**ROWS, "reads": "first"}, "reads"),
    ({**ROWS, "reads": None}, "reads"),
    ({**ROWS, "reads": [1]}, "reads"),
    ({**ROWS, "writes": "name"}, "writes"),
    ({**ROWS, "writes": 5}, "writes"),
    ({**ROWS, "writes": [sa.column("name")]}, "writes"),
    ({**ROWS, "writes": []}, "writes"),
    ({**SET, "reads": ["first"]}, "belong to `transform`"),
    ({**CUSTOM, "writes": ["name"]}, "belong to `transform`"),
    # the key
    ({**SET, "key": 5}, "key"),
    ({**SET, "key": ""}, "key"),
    ({**SET, "key": []}, "key"),
    ({**SET, "key": [1]}, "key"),
    ({**SET, "schema": 5}, "schema"),
    ({**SET, "revision": 5}, "revision"),
    # SQL
    ({**SET, "values": {}}, "values"),
    ({**SET, "values": []}, "values"),
    ({**SET, "values": "name = 'x'"}, "values"),
    ({**SET, "values": {"name": ""}}, SQL_TEXT),
    ({**SET, "values": {"name": 5}}, SQL_TEXT),
    ({**SET, "values": {"name": None}}, SQL_TEXT),
    ({**SET, "values": {"name": sa.text("'x'")}}, SQL_TEXT),
    ({**SET, "values": {5: "'x'"}}, "column names"),
    ({**SET, "where": ""}, "where"),
    ({**SET, "where": "  \n"}, "where"),
    ({**SET, "where": True}, "where"),
    ({**SET, "where": sa.text("name IS NULL")}, "where"),
    # triggers
    ({**SET, "sync": "yes"}, "True or False"),
    ({**SET, "where": None, "sync": True}, "`sync` needs `values` and `where`"),
    ({**ROWS, "where": "name IS NULL", "sync": True}, "`sync` needs `values` and `where`"),
    ({**CUSTOM, "where": "name IS NULL", "sync": True}, "`sync` needs `values` and `where`"),
    # settings
    ({**SET, "chunk_size": 0}, "FillNames sets chunk_size to 0"),
    ({**SET, "workers": "many"}, "FillNames sets workers to 'many'"),
    ({**SET, "lock_timeout": None}, "FillNames sets lock_timeout to None"),
]


@pytest.mark.parametrize(
    ("attributes", "told"), REFUSED, ids=lambda value: without_addresses(value)[-60:]
)
def test_refused(attributes: dict[str, Any], told: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        declare(attributes)
    assert "FillNames" in str(refused.value)
    assert told in str(refused.value)


def test_refusal_comes_with_a_correct_example() -> None:
    with pytest.raises(DeclarationError) as refused:
        declare({"table": "users"})
    example = str(refused.value).partition("A correct example:\n")[2]
    names: dict[str, Any] = {"Backfill": Backfill}
    exec(example, names)
    assert names["FillFullName"].level is Level.SET


@pytest.mark.parametrize(
    ("attribute", "meant"),
    [
        ("were", "where"),
        ("wehre", "where"),
        ("value", "values"),
        ("chunksize", "chunk_size"),
        ("max_failure", "max_failures"),
        ("tabel", "table"),
    ],
)
def test_misspelt_attribute_is_refused(attribute: str, meant: str) -> None:
    """A `were` that is taken for a helper of the class would overwrite every row."""
    with pytest.raises(DeclarationError, match=f"did you mean `{meant}`"):
        declare({**SET, attribute: "name IS NULL"})


def test_misspelt_method_is_refused() -> None:
    with pytest.raises(DeclarationError, match="did you mean `where`"):
        declare({"table": "users", "values": values, "wheres": where})


@pytest.mark.parametrize(
    "helper",
    ["clean", "prefix", "PREFIX", "country_of", "lookup", "_where", "__init__", "transform_row"],
)
def test_helpers_are_allowed(helper: str) -> None:
    declare({**ROWS, helper: lambda *_: None})


@pytest.mark.parametrize("kind", ["class", "table"])
def test_mapped_class_is_warned_about(kind: str) -> None:
    users = sa.Table("users", sa.MetaData(schema="shop"), sa.Column("id", sa.Integer))
    live: Any = type("User", (), {"__table__": users}) if kind == "class" else users
    with pytest.warns(DeclarationWarning, match=r'table = "shop\.users"') as told:

        class FillNames(Backfill):
            table = live
            values = SET["values"]

    assert FillNames.table == "shop.users"
    assert told[0].filename == __file__


def test_name_of_a_table_is_not_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        declare(SET)


# -- fingerprint -----------------------------------------------------------------------------


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], type[Backfill]]:
    """Write a module with a class FillNames, and import it."""
    numbers = count()

    def load(body: str) -> type[Backfill]:
        path = tmp_path / f"declared_{next(numbers)}.py"
        path.write_text(source(body), encoding="utf-8")
        spec = spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        found: type[Backfill] = module.FillNames
        return found

    return load


def source(body: str) -> str:
    head = (
        "import re\nfrom datetime import date\nfrom decimal import Decimal\n"
        "from functools import lru_cache\nimport sqlalchemy as sa\nfrom backfill import Backfill\n"
        "class FillNames(Backfill):\n"
    )
    return head + textwrap.indent(textwrap.dedent(body), "    ")


IN_PYTHON = """
table = "users"
reads = ["first"]
writes = ["name"]
def transform(self, row):
    return {"name": self.clean(row.first, suffix="x")}
def clean(self, text, suffix):
    return text + suffix
"""

IN_PYTHON_LAID_OUT = '''
"""A docstring."""
table = "users"   # a comment
reads = ["first"]
writes = ["name",
]

def clean(
    self,
    text,
    suffix,
):
    """Another docstring."""
    return (text
            + suffix)

def transform(self, row):
    # a comment
    return {
        'name': self.clean(row.first, suffix='x'),
    }
'''

IN_SQL = """
table = "users"
where = "name IS NULL"
values = {"name": "first"}
"""

AS_METHODS = """
table = "users"
def where(self, table):
    return table.c.name.is_(None)
def values(self, table):
    return {"name": sa.func.lower(table.c.first)}
"""


def test_fingerprint_ignores_layout(load: Callable[[str], type[Backfill]]) -> None:
    assert load(IN_PYTHON).fingerprint() == load(IN_PYTHON_LAID_OUT).fingerprint()


@pytest.mark.parametrize("body", [IN_PYTHON, IN_SQL, AS_METHODS], ids=["python", "sql", "methods"])
@pytest.mark.parametrize(
    "addition",
    ["name = 'other'", "revision = 'b2'", "chunk_size = 7", "max_failures = 0", "'''Doc.'''"],
)
def test_fingerprint_ignores_what_writes_nothing_else(
    load: Callable[[str], type[Backfill]], body: str, addition: str
) -> None:
    assert load(body).fingerprint() == load(f"{addition}\n{body}").fingerprint()


def test_fingerprint_ignores_triggers() -> None:
    """The walk writes the same with them, so a run may go on when they are wanted later."""
    attributes = {**SET, "where": "name IS NULL"}
    assert declare({**attributes, "sync": True}).fingerprint() == declare(attributes).fingerprint()


def with_constant(value: str) -> str:
    return f"{IN_PYTHON}\nconstant = {value}\n"


CONSTANTS = [
    ("'a'", "'b'"),
    ("{'a'}", "{'b'}"),
    ("{'a': 1}", "{'a': 2}"),
    ("Decimal('1')", "Decimal('2')"),
    ("date(2026, 1, 1)", "date(2027, 1, 1)"),
    ("re.compile('a')", "re.compile('b')"),
]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(IN_SQL, IN_SQL.replace("users", "people"), id="table"),
        pytest.param(IN_SQL, IN_SQL + 'schema = "shop"', id="schema"),
        pytest.param(IN_SQL, IN_SQL + 'key = "number"', id="key"),
        pytest.param(IN_SQL, IN_SQL.replace("IS NULL", "= ''"), id="where"),
        pytest.param(IN_SQL, IN_SQL.replace('"first"', '"last"'), id="values"),
        pytest.param(
            IN_SQL.replace('"first"', 'sa.literal("a")'),
            IN_SQL.replace('"first"', 'sa.literal("b")'),
            id="value of a parameter",
        ),
        pytest.param(AS_METHODS, AS_METHODS.replace("lower", "upper"), id="values as a method"),
        pytest.param(AS_METHODS, AS_METHODS.replace("is_", "is_not"), id="where as a method"),
        pytest.param(IN_PYTHON, IN_PYTHON.replace('["name"]', '["name", "b"]'), id="writes"),
        pytest.param(IN_PYTHON, IN_PYTHON.replace('["first"]', '["first", "b"]'), id="reads"),
        pytest.param(IN_PYTHON, IN_PYTHON.replace('suffix="x"', 'suffix="y"'), id="transform"),
        pytest.param(IN_PYTHON, IN_PYTHON.replace("text + ", "text * "), id="helper"),
        pytest.param(
            IN_PYTHON.replace("def clean", "@lru_cache\ndef clean"),
            IN_PYTHON.replace("def clean", "@lru_cache\ndef clean").replace("text + ", "text * "),
            id="cached helper",
        ),
        *(
            pytest.param(with_constant(before), with_constant(after), id=before)
            for before, after in CONSTANTS
        ),
    ],
)
def test_fingerprint_changes_with_logic(
    load: Callable[[str], type[Backfill]], before: str, after: str
) -> None:
    assert load(before).fingerprint() == load(before).fingerprint()
    assert load(before).fingerprint() != load(after).fingerprint()


def test_fingerprint_knows_what_only_one_database_has() -> None:
    json = sa.cast(sa.column("first"), postgresql.JSONB)
    one = declare({**SET, "values": {"name": json["a"].astext}})
    other = declare({**SET, "values": {"name": json["b"].astext}})
    assert one.fingerprint() != other.fingerprint()


IN_ANOTHER_PROCESS = source(
    with_constant("{'a', 'b', 'c', 'd'}, frozenset('xyz'), object(), lambda: [x for x in 'ab']")
)


@pytest.mark.parametrize("has_source", [True, False], ids=["source", "no source"])
def test_fingerprint_is_the_same_in_every_process(tmp_path: Path, has_source: bool) -> None:
    path = tmp_path / "declared.py"
    path.write_text(IN_ANOTHER_PROCESS + "\nprint(FillNames.fingerprint())\n", encoding="utf-8")
    run = [str(path)] if has_source else ["-c", f"exec(open({str(path)!r}).read())"]
    assert fingerprint_of(run, seed="1") == fingerprint_of(run, seed="2")


def fingerprint_of(arguments: list[str], *, seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout
