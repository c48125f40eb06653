"""The examples run as they stand; each checks its own results."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.projects import REPOSITORY, environment

if TYPE_CHECKING:
    from tests.databases import Database

QUICKSTART = REPOSITORY / "examples" / "flights" / "quickstart.py"
SECONDS = 600.0


def test_flights_on_sqlite() -> None:
    assert_runs()


@pytest.mark.requires("server")
@pytest.mark.skipif("BACKFILL_SLOW_TESTS" not in os.environ, reason="BACKFILL_SLOW_TESTS not set")
def test_flights_on_a_server(database: Database) -> None:
    assert_runs("--url", database.url)


def assert_runs(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, QUICKSTART, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
