"""The real runner against the model, and the model against protocols that are known to be wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import Machine
from tests.model.mutants import MUTANTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

pytestmark = pytest.mark.skipif(
    "BACKFILL_SLOW_TESTS" not in os.environ, reason="BACKFILL_SLOW_TESTS not set"
)

LIVES = 500
"""Each begins with an empty database, takes 50 steps and has to end well."""
MUTANT_LIVES = 400
"""Until one of them notices."""


def live(lives: int, *, alike: bool) -> None:
    """Let the machine live so often; `alike`: as in every call. The recording says what was done,
    so that nothing is shrunk, which would take thousands of lives more."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=lives,
            stateful_step_count=50,
            deadline=None,
            database=None,
            derandomize=alike,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_runner_keeps_what_the_model_says() -> None:
    live(LIVES, alike=False)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_wrong_protocol_is_noticed(mutant: Callable[[], AbstractContextManager[None]]) -> None:
    with mutant(), pytest.raises(AssertionError):
        live(MUTANT_LIVES, alike=True)
