"""Lets hypothesis direct lives: what happens next is drawn at random, and repeated from a seed."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from backfill.runs import Status
from tests.model.processes import Fault
from tests.model.world import WAYS, Place, World

if TYPE_CHECKING:
    from tests.databases import Database

STEPS = 60
BATCH = 100
"""Lives of one seed; a finding ends the batch."""
slots = st.integers(0, 2)
picks = st.integers(0, 30)
points = st.integers(0, 40)


@dataclass
class Figures:
    """What came of so many lives."""

    database: str
    seed: int
    lives: int = 0
    steps: int = 0
    findings: list[str] = field(default_factory=list)
    """Each with its seed, its last events and the steps that repeat it."""


class Machine(RuleBasedStateMachine):
    """Three runners at most, an application, and somebody at the command line."""

    place: ClassVar[Place]
    figures: ClassVar[Figures]
    world: World

    @initialize(
        way=st.sampled_from(sorted(WAYS)),
        rows=st.integers(0, 12),
        ranges=st.integers(1, 3),
        attentive=st.booleans(),
    )
    def begin(self, way: str, rows: int, ranges: int, attentive: bool) -> None:
        keys = range(10, 10 * rows + 1, 10)
        self.figures.lives += 1
        self.world = World(self.place, WAYS[way], keys, ranges=ranges, attentive=attentive)

    # -- runners ---------------------------------------------------------------------------

    @rule(slot=slots, size=st.integers(1, 5))
    def start(self, slot: int, size: int) -> None:
        if slot not in self.world.processes:
            self.world.start(slot, size)

    @precondition(lambda self: self.world.processes)
    @rule(pick=picks, times=st.integers(1, 12))
    def advance(self, pick: int, times: int) -> None:
        self.world.advance(self._slot(pick), times)

    @precondition(lambda self: self.world.processes)
    @rule(pick=picks, fault=st.sampled_from(Fault), after=points)
    def disturb(self, pick: int, fault: Fault, after: int) -> None:
        self.world.processes[self._slot(pick)].meet(fault, after)

    @precondition(lambda self: self.world.processes)
    @rule(pick=picks)
    def ask_to_stop(self, pick: int) -> None:
        self.world.processes[self._slot(pick)].stop()

    @rule(commits=st.booleans())
    def deliver(self, commits: bool) -> None:
        self.world.deliver(commits=commits)

    @rule()
    def end_leases(self) -> None:
        self.world.end_leases()

    # -- people ------------------------------------------------------------------------------

    @rule(wanted=st.sampled_from([Status.PAUSED, Status.PENDING, Status.CANCELLED]))
    def decide(self, wanted: Status) -> None:
        self.world.decide(wanted)

    @rule(size=st.integers(1, 5))
    def resize(self, size: int) -> None:
        self.world.resize(size)

    @rule()
    def retry_failures(self) -> None:
        self.world.retry_failures()

    # -- the application -----------------------------------------------------------------------

    @rule(key=st.integers(1, 150))
    def insert(self, key: int) -> None:
        self.world.insert(key, 7)

    @precondition(lambda self: self.world.keys)
    @rule(pick=picks, by=st.integers(1, 9))
    def change(self, pick: int, by: int) -> None:
        self.world.change(self._key(pick), by)

    @precondition(lambda self: self.world.keys)
    @rule(pick=picks)
    def reopen(self, pick: int) -> None:
        self.world.reopen(self._key(pick))

    @precondition(lambda self: self.world.keys)
    @rule(pick=picks)
    def settle(self, pick: int) -> None:
        if not self.world.model.rows[self._key(pick)].is_bad:
            self.world.settle(self._key(pick))

    @precondition(lambda self: self.world.keys)
    @rule(pick=picks)
    def spoil(self, pick: int) -> None:
        self.world.spoil(self._key(pick))

    @precondition(lambda self: self.world.keys)
    @rule(pick=picks)
    def mend(self, pick: int) -> None:
        self.world.mend(self._key(pick))

    @precondition(lambda self: self.world.keys)
    @rule(pick=picks)
    def delete(self, pick: int) -> None:
        self.world.delete(self._key(pick))

    @precondition(lambda self: self.world.keys and "row_locks" in self.place.capabilities)
    @rule(pick=picks, by=st.integers(1, 9))
    def hold_change(self, pick: int, by: int) -> None:
        self.world.hold_change(self._key(pick), by)

    @precondition(lambda self: "row_locks" in self.place.capabilities)
    @rule(key=st.integers(1, 150))
    def hold_insert(self, key: int) -> None:
        self.world.hold_insert(key, 7)

    @rule(commits=st.booleans())
    def let_go(self, commits: bool) -> None:
        self.world.let_go(commits=commits)

    # -- small things ----------------------------------------------------------------------------

    def _slot(self, pick: int) -> int:
        running = sorted(self.world.processes)
        return running[pick % len(running)]

    def _key(self, pick: int) -> int:
        return self.world.keys[pick % len(self.world.keys)]

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        is_over = sys.exc_info()[0] is None  # else it was broken off, or has shown what is wrong
        self.figures.steps += self.world.model.step
        with self.world:
            if is_over:
                self.world.end_well()


def run_model(database: Database, lives: int, seed_: int, steps: int = STEPS) -> Figures:
    """Let the machine live so often on a database, and say what it found. Each life begins with
    empty tables, takes so many steps and has to end well."""
    figures = Figures(database.name, seed_)
    place = Place(database)
    try:
        for number in range(-(-lives // BATCH)):
            batch = min(BATCH, lives - number * BATCH)
            _live(place, figures, batch, f"{seed_}/{number}", steps)
    finally:
        place.close()
    return figures


def _live(place: Place, figures: Figures, lives: int, name: str, steps: int) -> None:
    """Nothing is shrunk, which would take thousands of lives: the recording says what was done."""
    machine = type("Life", (Machine,), {"place": place, "figures": figures})
    said = StringIO()
    try:
        with redirect_stdout(said):  # the steps, and how to repeat them
            run_state_machine_as_test(
                seed(name)(machine),
                settings=settings(
                    max_examples=lives,
                    stateful_step_count=steps,
                    deadline=None,
                    database=None,
                    print_blob=True,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                ),
            )
    except Exception as error:
        notes = "\n".join([said.getvalue(), *getattr(error, "__notes__", ())])
        figures.findings.append(f"seed {name} on {place.name}: {error}\n{notes}")
