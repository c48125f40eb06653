"""A runner that dies at a chosen commit, in this process, as `kill -9` would end it.

To its database a dead process is one thing only: what was not committed is rolled back, and no
further statement comes. A dialect is what every statement of a runner goes through; this one
stops there.
"""

from __future__ import annotations

from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

from backfill.dialects import Dialect, dialect_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

    from backfill.dialects import Limits
    from backfill.settings import Settings
    from backfill.speed.readings import Signal


class Moment(Enum):
    """When a process dies."""

    BEFORE_COMMIT = "before"
    """The chunk was written: it is rolled back."""
    AFTER_COMMIT = "after"
    """The chunk is there, and its runner has never heard of it."""


class Killed(BaseException):
    """Not an Exception: nothing in a process that is killed can handle it."""


class Death:
    """When a runner dies: at the `chunk`th chunk that it writes (1 is its first)."""

    def __init__(self, chunk: int, moment: Moment, label: str) -> None:
        self._left = chunk
        self._moment = moment
        self._label = label
        """What the limits of the transactions that count are called."""
        self.has_come = False

    def strike(self, moment: Moment, limits: Limits) -> None:
        """Raise Killed if it is the moment; `moment` comes in each writing transaction."""
        if limits.label != self._label:
            return
        if moment is Moment.BEFORE_COMMIT:
            self._left -= 1
        if self._left == 0 and moment is self._moment:
            self.has_come = True
            raise Killed

    def keep_silent(self) -> None:
        """Raise Killed if it has come."""
        if self.has_come:
            raise Killed


class _Mortal(Dialect):
    """Goes before a database's own dialect among the bases of a class."""

    death: Death | None

    def health(self, table: sa.Table, settings: Settings) -> list[Signal]:
        """Return no signals: what else happens on the server is nothing to a test."""
        return []

    def open(self, limits: Limits) -> sa.Connection:
        if self.death is not None:
            self.death.keep_silent()
        return super().open(limits)

    @contextmanager
    def transaction(
        self, connection: sa.Connection, limits: Limits, *, write: bool = True
    ) -> Iterator[sa.Connection]:
        death = self.death
        if death is not None:
            death.keep_silent()
        with super().transaction(connection, limits, write=write):
            yield connection
            if death is not None and write:
                death.strike(Moment.BEFORE_COMMIT, limits)
        if death is not None and write:
            death.strike(Moment.AFTER_COMMIT, limits)


def mortal(engine: sa.Engine, death: Death | None = None) -> Dialect:
    """Return the dialect for a runner that dies so; None: it lives on."""
    kind = type(dialect_for(engine))
    born = type(f"Mortal{kind.__name__}", (_Mortal, kind), {"death": death})
    dialect: Dialect = born(engine)
    return dialect
