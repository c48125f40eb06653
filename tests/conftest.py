"""Fixtures that give each test a real, empty database of every kind."""

from __future__ import annotations

import compileall
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import backfill
from backfill.project import kept_loggers
from tests.availability import TRIES_ALL, give_up, whose_turn
from tests.databases import CAPABILITIES, CAPABILITIES_OF, Servers, Unavailable, version
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

    from tests.databases import Database


LONG = [Path(__file__).parent / name for name in ("model", "faults")]
"""Where tests take up to half a minute each."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "requires(*capabilities): run only on databases that have them "
        f"(tests/databases.py): {', '.join(CAPABILITIES)}",
    )
    config.addinivalue_line("markers", "alembic: what pytest-alembic calls its own tests")
    config.addinivalue_line(
        "markers",
        "by_turns: real commands that do the same on every database, as far as we know: each test"
        " on one of them by turns, on all with BACKFILL_SLOW_TESTS",
    )
    scrub_environment()
    if not hasattr(config, "workerinput"):
        # Where bytecode is not written, each of a thousand commands would compile all of us.
        compileall.compile_dir(backfill.__path__[0], quiet=1)


def scrub_environment() -> None:
    """A developer's own settings must not decide whether tests pass."""
    ours = {name for name in os.environ if name.startswith(("BACKFILL_", "PG"))}
    for name in ours - {"BACKFILL_SLOW_TESTS"}:
        del os.environ[name]


def pytest_report_header() -> str:
    return "databases: " + ", ".join(map(describe, CAPABILITIES_OF))


def describe(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except Unavailable as error:
        return f"{name} missing ({error})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, rather than skip, what a database cannot do: nobody can act on such a skip. Long
    tests come first, a few to each worker, lest one is left with them at the end."""
    unable = {item for item in items if not has_what_it_requires(item) or is_not_its_turn(item)}
    if unable:
        config.hook.pytest_deselected(items=list(unable))
        items[:] = [item for item in items if item not in unable]
    items.sort(key=lambda item: item.path.parent not in LONG)


def is_not_its_turn(item: pytest.Item) -> bool:
    """Whether another database has its turn with this test."""
    call = getattr(item, "callspec", None)
    if call is None or "database" not in call.params or TRIES_ALL:
        return False
    if not any(item.iter_markers("by_turns")) or any(item.iter_markers("requires")):
        return False
    test = item.nodeid.partition("[")[0]
    return bool(call.params["database"] != whose_turn(test, list(CAPABILITIES_OF)))


def has_what_it_requires(item: pytest.Item) -> bool:
    required = {name for marker in item.iter_markers("requires") for name in marker.args}
    if not required:
        return True
    if unknown := required - set(CAPABILITIES):
        raise pytest.UsageError(f"{item.nodeid} requires unknown {', '.join(sorted(unknown))}")
    call = getattr(item, "callspec", None)
    if call is None or "database" not in call.params:
        raise pytest.UsageError(f"{item.nodeid} requires capabilities, but uses no database")
    return required <= CAPABILITIES_OF[call.params["database"]]


@pytest.fixture(autouse=True)
def _loggers_stay() -> Iterator[None]:
    """What a test's env.py disables in this process is heard again in the next test."""
    with kept_loggers():
        yield


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(params=list(CAPABILITIES_OF))
def database(
    request: pytest.FixtureRequest, servers: Servers, tmp_path: Path
) -> Iterator[Database]:
    """A fresh database of each kind. Without its server: skipped here, failed in CI."""
    try:
        fresh = servers.database(request.param, tmp_path)
    except Unavailable as error:
        give_up(request.param, error)
    with fresh as database:
        yield database


@pytest.fixture
def engine(database: Database) -> Iterator[sa.Engine]:
    engine = database.engine()
    yield engine
    engine.dispose()


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Iterator[AlembicProject]:
    """A real, empty Alembic project on the test's database."""
    with AlembicProject.create(tmp_path / "project", database.url) as project:
        yield project
