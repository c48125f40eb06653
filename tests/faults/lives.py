"""The lives of tests/model: whole runs that a model drives through crashes and lost answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.fault import Attempt, Fault
from tests.model.machine import run_model

if TYPE_CHECKING:
    from tests.faults.fault import Stage

LIVES = 20


def live(stage: Stage) -> Attempt:
    """Live a few lives; "rows" are the steps, after each of which every invariant is looked at."""
    with stage.servers.database(stage.kind, stage.directory) as database:
        found = run_model(database, LIVES, stage.dice.randrange(10**6))
    return Attempt(found.lives, found.steps, found.findings)


FAULTS = [Fault("lives of the model", live, in_ci=0, in_soak=50)]
