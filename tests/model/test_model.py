"""The real runner against the model, and the tests against protocols that are known to be wrong."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from tests.availability import give_up
from tests.databases import Unavailable
from tests.model.machine import run_model
from tests.model.mutants import MUTANTS, what_breaks
from tests.model.stages import LONG_STAGES, STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.databases import Database, Servers
    from tests.model.mutants import Mutant
    from tests.model.stages import Stage

LIVES = {"sqlite": [125] * 4, "postgresql": [30], "mariadb": [30]}
"""In each run of the tests, in parts that workers can share; with BACKFILL_SLOW_TESTS so many times
more, and the long stages."""
SLOW = 40
IS_SLOW = "BACKFILL_SLOW_TESTS" in os.environ


@pytest.fixture
def seed() -> int:
    """Always the same lives, so that a change which breaks none finds none; with
    BACKFILL_SLOW_TESTS, as in the soak, new ones. MODEL_SEED repeats those of a test that failed.
    """
    drawn = random.randrange(1_000_000) if IS_SLOW else 0
    seed = int(os.environ.get("MODEL_SEED", drawn))
    print(f"MODEL_SEED={seed}")
    return seed


@pytest.fixture
def opened(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Database]:
    """The database that a parameter names. Without its server: skipped here, failed in CI."""
    try:
        fresh = servers.database(request.param, tmp_path)
    except Unavailable as error:
        give_up(request.param, error)
    with fresh as database:
        yield database


@pytest.mark.parametrize(
    ("part", "lives", "opened"),
    [
        pytest.param(part, lives, name, id=f"{name}-{part}")
        for name, parts in LIVES.items()
        for part, lives in enumerate(parts)
    ],
    indirect=["opened"],
)
def test_random_lives(part: int, lives: int, opened: Database, seed: int) -> None:
    wanted = lives * (SLOW if IS_SLOW else 1)
    figures = run_model(opened, wanted, seed + part)
    assert figures.findings == []
    assert figures.lives >= wanted


@pytest.mark.parametrize(
    ("stage", "opened"),
    [
        pytest.param(stage, name, id=f"{stage}-{name}")
        for stage in (*STAGES, *(LONG_STAGES if IS_SLOW else ()))
        for name in stage.databases
    ],
    indirect=["opened"],
)
def test_stage(stage: Stage, opened: Database) -> None:
    stage(opened)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_wrong_protocol_is_noticed(mutant: Mutant, servers: Servers, tmp_path: Path) -> None:
    """By its stage, which is one of those that pass without it."""
    assert mutant.stage in STAGES
    try:
        broken = what_breaks(mutant, servers, tmp_path)
    except Unavailable as error:
        give_up(mutant.database, error)
    assert broken in mutant.breaks
