"""Projects whose env.py is asynchronous: `backfill` runs in them as Alembic itself does."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.counting import PYTHON, assert_counts, prepare, values_of_n
from tests.databases import DRIVERS, Unavailable
from tests.integration.kinds import KINDS
from tests.integration.places import Places
from tests.integration.test_drivers import make_async_project

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.databases import Database, Servers
    from tests.integration.kinds import Kind

ROWS = 1_000

COPIES = """
from backfill import Backfill


class Copies(Backfill, abstract=True):
    reads = ["src"]
    writes = ["dst"]

    def transform(self, row):
        return {"dst": row.src}
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
    """A backfill for each type, all in one run; see test_types.py."""
    with ExitStack() as stack:
        places = Places(servers, tmp_path, stack)
        place = places[driver]
        known = KINDS[place.database].items()
        kinds = {name: kind for name, kind in known if f"{driver}-{name}" not in CRASHES}
        for number, kind in enumerate(kinds.values()):
            place.make_pairs(kind.declared, [*kind.edges, None], f"things_{number}")
        url = place.engine.url.render_as_string(hide_password=False)
        project = stack.enter_context(make_async_project(url, tmp_path / "project"))
        project.revision("a1", body=COPIES + declarations(kinds))
        project.alembic("upgrade", "head")
        done = project.backfill("run", timeout=300)
        # A run that fails, or a crash, would leave all behind it as they were.
        assert done.returncode in (0, 5), (done.returncode, done.stderr)
        different = {
            f"{driver}-{name}": rows
            for number, (name, kind) in enumerate(kinds.items())
            if (rows := place.different(kind.form, f"things_{number}"))
        }
        expected = {case for case in FAULTS if case.startswith(f"{driver}-")}
        assert different.keys() == expected, (different, done.stderr)


def declarations(kinds: Mapping[str, Kind]) -> str:
    return "".join(
        f"""

class Copy{number}(Copies):
    table = "things_{number}"
"""
        for number in range(len(kinds))
    )
