"""The collector's connection: opened when it is needed, and given up after any error.

Brief reads of one turn are one transaction, since to begin and to end one takes three answers of
the server, which may be far away.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from backfill.dialects import SIGNAL_LIMITS
from backfill.failures import describe
from backfill.speed.readings import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

    from backfill.dialects import Dialect

logger = logging.getLogger(__name__)


class Glances:
    """Short looks at one database, by one thread."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._connection: sa.Connection | None = None
        self._shared: ExitStack | None = None
        """The transaction that brief reads share, while it is open."""
        self._refusal: Exception | None = None
        """Why no connection was to be had in this turn: each signal would wait for it again."""

    def begin_turn(self) -> None:
        """Try again to connect, if that failed before."""
        self._refusal = None

    @contextmanager
    def sharing(self, *, write: bool = False) -> Iterator[sa.Connection]:
        """Read in the transaction that is open already, and stays so until `settle`."""
        assert not write
        with self._forsaken_after_errors() as connection:
            if self._shared is None:
                stack = ExitStack()
                stack.enter_context(
                    self._dialect.transaction(connection, SIGNAL_LIMITS, write=False)
                )
                self._shared = stack
            yield connection

    @contextmanager
    def alone(self, *, write: bool = False) -> Iterator[sa.Connection]:
        """Run a transaction of its own."""
        with (
            self._forsaken_after_errors() as connection,
            self._dialect.transaction(connection, SIGNAL_LIMITS, write=write),
        ):
            yield connection

    def settle(self) -> None:
        """End the shared transaction."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        try:
            shared.close()
        except Exception as error:  # all was read; what comes next gets another connection
            logger.debug("not ended: %s", describe(error, self._dialect))
            self.close()

    def close(self) -> None:
        """Close the connection; the next look opens another one."""
        connection, self._connection = self._connection, None
        shared, self._shared = self._shared, None
        with self._whatever_happens():
            if shared is not None:
                shared.__exit__(*sys.exc_info())
        with self._whatever_happens():
            if connection is not None:
                self._dialect.close(connection)

    @contextmanager
    def _whatever_happens(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logger.debug("not ended well: %s", describe(error, self._dialect))

    @contextmanager
    def _forsaken_after_errors(self) -> Iterator[sa.Connection]:
        connection = self._connected()
        try:
            yield connection
        except Exception:
            self.close()  # errors are rare, and a new connection is without doubt
            raise

    def _connected(self) -> sa.Connection:
        if self._refusal is not None:
            raise self._refusal
        if self._connection is None:
            try:
                self._connection = self._dialect.open(SIGNAL_LIMITS)
            except Exception as error:
                self._refusal = Unreadable(problem(error, self._dialect))
                raise self._refusal from error
        return self._connection


def problem(error: Exception, dialect: Dialect) -> str:
    """Say why a signal could not be read, without values."""
    return str(error) if isinstance(error, Unreadable) else describe(error, dialect)
