"""Which of the databases a test runs on: those that are here, and whose turn it is."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.databases import Unavailable

TRIES_ALL = "BACKFILL_SLOW_TESTS" in os.environ
"""Nothing takes turns."""


def give_up(name: str, why: Unavailable) -> NoReturn:
    """End a test whose database, or pooler, is missing: skipped here, failed in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{name}: {why}")
    pytest.skip(f"{name}: {why}")


def whose_turn(test: str, names: Sequence[str]) -> str:
    """Return the database that a test is tried on, always the same one."""
    return names[zlib.crc32(test.encode()) % len(names)]
