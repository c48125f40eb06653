"""What every backfill is to be: complete, idempotent, independent of its chunks and of kills."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from backfill.testing.contents import told
from backfill.testing.trials import Trial, by_lives, by_size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backfill.declaration import Backfill
    from backfill.testing.contents import Contents, Tables
    from backfill.testing.trials import Runs

_TURNS = 2
"""Rows are put back so often: what triggers add while we do it is taken away in the second turn."""
_HINT = 'A column that may differ, such as a time: check(ignore=["table.column"]).'


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a case: trials on the same rows, compared with the first of them."""

    declaration: type[Backfill]
    runs: Runs
    tables: Tables
    transact: Callable[[Callable[..., Any]], Any]
    """Calls a function with a connection, in a transaction."""
    ignore: Collection[str]
    number: int
    """Tells the trials of one check from those of another."""

    def run(self, kills: int, seed: int) -> None:
        """Raise AssertionError if a trial is not complete, or leaves other rows."""
        __tracebackhide__ = True
        self.tables.refuse_unknown(self.ignore)
        rows = self.runs.count_due()
        self._refuse_pointless(rows)
        start = self._contents()
        first, *others = by_size(rows)
        wanted = self._after(first)
        if self.declaration.where is not None:
            again = Trial("again", rows)
            self._compare(wanted, self._after(again), "is not idempotent", again)
        for trial in others:
            self._put_back(start)
            self._compare(wanted, self._after(trial), "depends on the size of its chunks", trial)
        self._put_back(start)
        lives = by_lives(rows, kills, seed)
        self._compare(wanted, self._after(lives), "does not survive kills", lives)

    def _refuse_pointless(self, rows: int) -> None:
        name, has_where = self.declaration.name, self.declaration.where is not None
        if not rows:
            raise AssertionError(
                f"{name} has nothing to do here: insert rows that"
                f" {'match its `where`' if has_where else 'are in its table'} before check()."
            )
        if not has_where and self.runs.was_done():
            raise AssertionError(
                f"{name} has been run in this test, and without a `where` it is done once: make"
                " another case for another check."
            )

    def _contents(self) -> Contents:
        found: Contents = self.transact(self.tables.read)
        return found

    def _after(self, trial: Trial) -> Contents:
        """Return what a trial makes of the rows that are there."""
        __tracebackhide__ = True
        if trial.label:
            trial = replace(trial, label=f"{trial.label}{self.number}")
        self.runs.complete(trial)
        if trial.label:
            self.runs.withdraw(trial)
        return self._contents()

    def _put_back(self, start: Contents) -> None:
        __tracebackhide__ = True
        for _ in range(_TURNS):
            self.transact(lambda connection: self.tables.put_back(connection, start))
            lines = told(self.tables.differences(start, self._contents(), self.ignore))
            if not lines:
                return
        raise AssertionError(
            "\n".join(
                ["The rows are not what they were: does a trigger change them?", *lines, _HINT]
            )
        )

    def _compare(self, wanted: Contents, found: Contents, why: str, trial: Trial) -> None:
        __tracebackhide__ = True
        if lines := told(self.tables.differences(wanted, found, self.ignore)):
            raise AssertionError(
                "\n".join([f"{self.declaration.name} {why} ({trial}):", *lines, _HINT])
            )
