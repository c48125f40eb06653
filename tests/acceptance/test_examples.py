"""The examples run as they stand; each checks its own results."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.documents import Page
from tests.projects import REPOSITORY, environment

if TYPE_CHECKING:
    from pathlib import Path

    from tests.databases import Database

EXAMPLES = REPOSITORY / "examples"
QUICKSTART = EXAMPLES / "flights" / "quickstart.py"
SECONDS = 600.0

FOLDERS = sorted(path.parent.name for path in EXAMPLES.glob("*/check.py"))
FOLDERS.remove(QUICKSTART.parent.name)


@pytest.mark.parametrize("name", FOLDERS)
def test_readme_can_be_followed(name: str, tmp_path: Path) -> None:
    (tmp_path / "flights").symlink_to(EXAMPLES / "flights")  # its data are those of others, too
    shutil.copytree(EXAMPLES / name, tmp_path / name)
    Page(EXAMPLES / name / "README.md").follow(tmp_path / name)


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
