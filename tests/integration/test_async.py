"""Projects whose env.py is asynchronous: `backfill` runs in them as Alembic itself does."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.counting import PYTHON, assert_counts, prepare, values_of_n
from tests.databases import DRIVERS, Unavailable
from tests.integration.kinds import KINDS
from tests.integration.places import Places, literal
from tests.integration.test_drivers import make_async_project

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.databases import Database, Servers
    from tests.integration.kinds import Kind, Value
    from tests.integration.places import Place

ROWS = 1_000

COPIES = """
from backfill import Backfill


class Copies(Backfill, abstract=True):
    reads = ["src"]
    writes = ["dst"]

    def transform(self, row):
        return {"dst": row.src}


class CopiesOfManyTypes(Backfill, abstract=True):
    def transform(self, row):
        return {f"dst{row.kind}": getattr(row, f"src{row.kind}")}
"""

# What a driver itself makes of a value, before anybody could tell.
FAULTS = {
    'asyncpg-"char"': "it reads bytes, but sends text alone, so that the rows stand alone",
    "asyncpg-timetz": "it reads no seconds of an offset",
    "asyncpg-daterange": "it sends 9999-12-31 as infinity",
    "asyncpg-tsrange": "it sends the end of 9999 as infinity",
    "asyncpg-composite[]": "its records cannot be copied, so that the row stands alone",
}
CRASHES = {
    "asyncpg-hstore[] with an empty one": "it leaves a null pointer in place of an empty text, in"
    " an array of a type that it does not know (citext[] too): the process dies of SIGSEGV",
}


# asyncpg has more tests, in test_drivers.py; psycopg is of both kinds.
@pytest.fixture(params=["psycopg", "aiosqlite"])
def database(
    request: pytest.FixtureRequest, servers: Servers, tmp_path: Path
) -> Iterator[Database]:
    """A fresh database, with the URL of a driver that can be asynchronous."""
    try:
        with servers.database(DRIVERS[request.param].database, tmp_path) as database:
            yield database.through(request.param)
    except Unavailable as error:
        pytest.skip(f"{request.param}: {error}")


def test_asynchronous_project(database: Database, tmp_path: Path) -> None:
    plain = database.through("pysqlite" if database.name == "sqlite" else "psycopg")
    engine = plain.engine()
    with make_async_project(database.url, tmp_path / "project") as project:
        prepare(project, engine, PYTHON, ROWS)
        stopped = project.backfill("run", "--limit=300", "--chunk-size=50")
        assert stopped.returncode == 3, stopped.stderr
        done = project.backfill("run")
        assert done.returncode == 0, done.stderr
        assert values_of_n(engine) == {1: ROWS}
        assert_counts(project, ROWS)


@pytest.mark.parametrize("driver", ["asyncpg"])
def test_every_type_is_copied_unchanged(servers: Servers, tmp_path: Path, driver: str) -> None:
    """All in one run; see test_types.py."""
    with ExitStack() as stack:
        place = Places(servers, tmp_path, stack)[driver]
        cases = {f"{driver}-{name}": kind for name, kind in KINDS[place.database].items()}
        numbered = dict(enumerate(case for case in cases if case not in CRASHES))
        alone = [number for number, case in numbered.items() if case in FAULTS]
        slow = [n for n, case in numbered.items() if is_slow(cases[case]) and n not in alone]
        fast = [number for number in numbered if number not in alone + slow]
        kinds = {number: cases[case] for number, case in numbered.items()}
        for number in alone:
            place.make_pairs(kinds[number].declared, edges(kinds[number]), f"things_{number}")
        make_many_pairs(place, "fast", {number: kinds[number] for number in fast})
        make_many_pairs(place, "slow", {number: kinds[number] for number in slow})

        url = place.engine.url.render_as_string(hide_password=False)
        project = stack.enter_context(make_async_project(url, tmp_path / "project"))
        declarations = [copy_of_many("fast", fast), copy_of_many("slow", slow), *map(copy, alone)]
        project.revision("a1", body="\n".join([COPIES, *declarations]))
        project.alembic("upgrade", "head")
        planned = project.backfill("plan", "--json", "copy_fast", "copy_slow")
        assert planned.returncode == 0, planned.stderr
        assert [slow_columns(plan) for plan in json.loads(planned.stdout)] == [0, len(slow)]
        done = project.backfill("run", "--chunk-size=1000", timeout=300)
        # A run that fails, or a crash, would leave all behind it as they were.
        assert done.returncode in (0, 5), (done.returncode, done.stderr)
        different = {
            case: rows
            for number, case in numbered.items()
            if (rows := place.different(kinds[number].form, f"things_{number}"))
        }
        expected = {case for case in FAULTS if case.startswith(f"{driver}-")}
        assert different.keys() == expected, (different, done.stderr)


def is_slow(kind: Kind) -> bool:
    """Whether its columns are written row by row, and those beside them too."""
    return kind.declared == "hstore" or kind.declared.endswith("range")


def slow_columns(plan: Mapping[str, Any]) -> int:
    return sum("slow" in warning for warning in plan["warnings"])


def edges(kind: Kind) -> Sequence[Value]:
    return [*kind.edges, None]


def make_many_pairs(place: Place, table: str, kinds: Mapping[int, Kind]) -> None:
    """A table of many types, each with rows of its own, and a view that shows these."""
    columns = (f", src{n} {kind.declared}, dst{n} {kind.declared}" for n, kind in kinds.items())
    place.execute(f"CREATE TABLE {table} (id serial PRIMARY KEY, kind int{''.join(columns)})")
    for n, kind in kinds.items():
        given = [literal(place.database, value) for value in edges(kind)]
        rows = ", ".join(f"({n}, {v}, {given[i - 1]})" for i, v in enumerate(given))
        place.execute(
            f"INSERT INTO {table} (kind, src{n}, dst{n}) VALUES {rows}",
            f"CREATE VIEW things_{n} AS"
            f" SELECT id, src{n} AS src, dst{n} AS dst FROM {table} WHERE kind = {n}",
        )


def copy(number: int) -> str:
    return f"""

class Copy{number}(Copies):
    table = "things_{number}"
"""


def copy_of_many(table: str, numbers: Sequence[int]) -> str:
    return f"""

class Copy{table.title()}(CopiesOfManyTypes):
    table = "{table}"
    reads = {["kind", *(f"src{number}" for number in numbers)]}
    writes = {[f"dst{number}" for number in numbers]}
"""
