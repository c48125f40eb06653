"""Connections with one set of limits, which are used again while somebody says so."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

    from backfill.dialects import Dialect, Limits

_REUSABLE_SECONDS = 5.0
"""A connection idle for longer may have been cut by a pooler or a firewall."""


class Connections:
    """Opens connections, each for one user at a time; any thread may take one that is spare."""

    def __init__(self, dialect: Dialect, limits: Limits) -> None:
        self.dialect = dialect
        self.limits = limits
        self._spare: list[tuple[float, sa.Connection]] = []
        """Open connections that nobody uses, and since when."""
        self._keeps_open = False

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[sa.Connection]:
        """Run one transaction."""
        with (
            self.borrowed() as connection,
            self.dialect.transaction(connection, self.limits, write=write),
        ):
            yield connection

    @contextmanager
    def borrowed(self) -> Iterator[sa.Connection]:
        """Lend a connection, which is closed after an error."""
        connection = self._spare_one() or self.dialect.open(self.limits)
        try:
            yield connection
        except BaseException:
            self.dialect.close(connection)
            raise
        if self._keeps_open:
            self._spare.append((time.monotonic(), connection))
        else:
            self.dialect.close(connection)

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Use connections again while this lasts: to open one costs more than most of our SQL."""
        self._keeps_open = not self.dialect.is_async  # there, each belongs to its thread
        try:
            yield
        finally:
            self._keeps_open = False
            while self._spare:
                self.dialect.close(self._spare.pop()[1])

    def _spare_one(self) -> sa.Connection | None:
        while self._spare:
            with suppress(IndexError):  # another thread took it
                since, connection = self._spare.pop()
                if time.monotonic() - since < _REUSABLE_SECONDS:
                    return connection
                self.dialect.close(connection)
        return None
