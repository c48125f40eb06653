"""One backfill, run in several ways on the same rows: in one life, or killed and resumed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill import settings, sync
from backfill.budget import Budget
from backfill.declaration import Backfill
from backfill.overview import looking_at
from backfill.runner import Runner
from backfill.runs import Outcome, Status
from backfill.store import Store
from backfill.testing.contents import row_text
from backfill.testing.mortal import Death, Killed, Moment, mortal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill.reporters import Event
    from backfill.runs import Result
    from backfill.targets import Target

_MOST_CHUNKS = 200
"""What the smallest chunks come to, so that a test with many rows ends, too."""
_KILLED_WITHIN = 2
"""A life ends with its first or second chunk, so that few rows are enough for several."""
_CHUNKS_OF_LIVES = 6
_PATIENCE_SECONDS = 10.0
_SHOWN = 5


class Notes:
    """A reporter that keeps what was said, for the message of a test that fails."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, event: Event) -> None:
        if event.what in ("message", "quarantined"):
            self.texts.append(event.text)

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A way to run a backfill."""

    label: str
    """What it is called in the state tables."""
    chunk_size: int | None
    kills: int = 0
    seed: int = 0
    """Decides when it is killed."""

    def __str__(self) -> str:
        rows = "row" if self.chunk_size == 1 else "rows"
        size = "" if self.chunk_size is None else f" in chunks of {self.chunk_size} {rows}"
        if self.kills:
            return f"killed and resumed{size}; again by check(seed={self.seed})"
        return f"run{size}"


def by_size(rows: int) -> list[Trial]:
    """Return trials with all rows in one chunk, with a few rows in each, and with one."""
    sizes = {"all": rows, "few": max(1, rows // 3), "one": -(-rows // _MOST_CHUNKS)}
    return [Trial(label, size) for label, size in sizes.items() if label == "all" or size < rows]


def by_lives(rows: int, kills: int, seed: int) -> Trial:
    """Return the trial that is killed, so often; it is the one by the backfill's own name."""
    return Trial("", max(1, rows // _CHUNKS_OF_LIVES), kills, seed)


class Runs:
    """Runs a declaration to its end, on one database."""

    def __init__(self, engine: sa.Engine, declaration: type[Backfill]) -> None:
        self._engine = engine
        self._declaration = declaration

    def count_due(self) -> int:
        """Count the rows that the backfill is for."""
        dialect = mortal(self._engine)

        def count() -> int:
            with looking_at(self._declaration, dialect) as (connection, target, reading):
                rows = sa.select(sa.func.count()).select_from(target.table)
                if target.pending is not None:
                    rows = rows.where(target.pending)
                with reading():
                    return int(connection.execute(rows).scalar_one())

        return dialect.call(count)

    def was_done(self) -> bool:
        """Whether a run under the backfill's own name has succeeded."""
        store = Store(mortal(self._engine))

        def look() -> bool:
            run = store.current(self._declaration.name) if store.exists() else None
            return run is not None and run.status is Status.SUCCEEDED

        return store.dialect.call(look)

    def complete(self, trial: Trial) -> None:
        """Run to the end. Raises AssertionError unless it is complete then."""
        __tracebackhide__ = True
        declaration = _called(self._declaration, trial.label)
        try:
            self._lead_lives(declaration, trial)
            self._live(declaration, trial.chunk_size)
        except AssertionError as error:
            text = str(error).replace(declaration.name, self._declaration.name)
            raise AssertionError(f"{text}\n({trial})") from None

    def withdraw(self, trial: Trial) -> None:
        """Remove the triggers that a trial has left."""
        declaration = _called(self._declaration, trial.label)
        if declaration.sync:
            dialect = mortal(self._engine)
            dialect.call(sync.withdraw, declaration, dialect)

    def _lead_lives(self, declaration: type[Backfill], trial: Trial) -> None:
        """Run and be killed, as often as the trial says, before and after a commit in turn."""
        dice, moments = random.Random(trial.seed), list(Moment)
        dice.shuffle(moments)
        for life in range(trial.kills):
            moment = moments[life % len(moments)]
            death = Death(dice.randint(1, _KILLED_WITHIN), moment, _label(declaration))
            try:
                self._live(declaration, trial.chunk_size, death)
            except Killed:
                self._bury(declaration)
            else:
                return

    def _bury(self, declaration: type[Backfill]) -> None:
        """Take the leases of a runner that is dead, though its process, ours, is alive."""
        store = Store(mortal(self._engine))

        def take() -> None:
            if store.exists() and store.current(declaration.name) is not None:
                store.move(declaration.name, Status.PAUSED)
                store.move(declaration.name, Status.PENDING)

        store.dialect.call(take)

    def _live(
        self, declaration: type[Backfill], chunk_size: int | None, death: Death | None = None
    ) -> None:
        dialect, notes = mortal(self._engine, death), Notes()
        given = {"chunk_size": chunk_size, "retry_seconds": _PATIENCE_SECONDS}
        how = settings.resolve(("The test", {k: v for k, v in given.items() if v is not None}))

        def live() -> None:
            with looking_at(declaration, dialect) as (_, target, _):
                pass
            result = Runner(target, Store(dialect), how, Budget(), notes).run()
            _raise_unless_complete(target, result, notes.texts)

        dialect.call(live)


def _label(declaration: type[Backfill]) -> str:
    """What the limits of a run's chunks are called (runner.py)."""
    return f"backfill: {declaration.name}"


def _called(declaration: type[Backfill], label: str) -> type[Backfill]:
    """Return the declaration under a name of its own in the state tables, so that it is run from
    the start; without a `throttle`, which asks how a live database is."""
    name = f"{declaration.name}.{label}" if label else declaration.name
    changes = {"name": name, "throttle": Backfill.throttle, "__module__": declaration.__module__}
    return type(declaration.__name__, (declaration,), changes)


def _raise_unless_complete(target: Target, result: Result, said: Sequence[str]) -> None:
    left = [*_pending(target)]
    if result.outcome is Outcome.COMPLETE and not left:
        return
    lines = [
        f"{target.declaration.name}: {result.text}",
        *_few(said, "and others"),
        *_few(left, "and others are pending"),
    ]
    raise AssertionError("\n".join(lines))


def _pending(target: Target) -> Iterator[str]:
    """Give the rows that are left; values may be shown, since they are a test's."""
    if target.pending is None:
        return
    statement = sa.select(target.table).where(target.pending).limit(_SHOWN + 1)
    with target.dialect.source.connect() as connection:
        for row in connection.execute(statement):
            yield f"  {target.table.fullname}: {row_text(dict(row._mapping))} is pending"


def _few(lines: Sequence[str], rest: str) -> list[str]:
    return [*lines] if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"  {rest}"]
