"""The pytest plugin: the fixture `backfill_test`, for tests of a project's own backfills.

    def test_fill_full_name(backfill_test):
        case = backfill_test("fill_full_name")
        case.insert("users", first="Ada", last="Lovelace")
        case.insert("users", first="Grace", last="Hopper", full_name="Rear Admiral Hopper")
        case.check()  # complete, idempotent, with chunks of any size, killed and resumed
        ada, grace = case.rows("users")
        assert ada.full_name == "Ada Lovelace"
        assert grace.full_name == "Rear Admiral Hopper"
        case.upgrade("head")  # through the gate

The database is an SQLite file of the test, made by the project's own migrations up to the
backfill's revision. Override `backfill_url` and `backfill_config` in conftest.py for another one.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backfill.testing.case import Case


@pytest.fixture
def backfill_url() -> str | None:
    """Say where `backfill_test` makes its databases; override it to return a URL.

    None: an SQLite file in `tmp_path`. Else the URL of a server, with a user who may create
    databases: each case gets one of its own, and the one in the URL is not touched.
    """
    return None


@pytest.fixture
def backfill_config(pytestconfig: pytest.Config) -> str | None:
    """Say which Alembic configuration `backfill_test` uses; override it to return a path.

    By default the `alembic.ini` in pytest's rootdir, if there is one; else `$ALEMBIC_CONFIG`, or
    what `backfill` finds in the current directory.
    """
    file = pytestconfig.rootpath / "alembic.ini"
    return str(file) if file.is_file() else None


@pytest.fixture
def backfill_test(
    backfill_url: str | None, backfill_config: str | None, tmp_path: Path
) -> Iterator[Callable[[str], Case]]:
    """Return a function from a backfill's name to a Case: a database at its revision, in which
    the test inserts rows, and `check()` runs the backfill in several ways."""
    with ExitStack() as cases:

        def new(name: str) -> Case:
            from backfill.testing.case import new_case  # here: most tests never ask

            return cases.enter_context(
                new_case(name, config=backfill_config, url=backfill_url, directory=tmp_path)
            )

        yield new
