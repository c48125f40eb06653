"""What a driver's error means for us, and what of it may be said."""

from __future__ import annotations

from enum import Enum

import sqlalchemy as sa

from backfill.kinds import masked

_LONGEST_REFUSAL = 300


class ErrorKind(Enum):
    """What an error means for us; found by the database's code, never by exception class."""

    CONFLICT = "conflict with another transaction"
    LOCKED = "locked by the application"
    TOO_SLOW = "the statement took too long"
    SESSION_LOST = "the connection was lost"
    NOT_READY = "the database accepts no connection"
    READ_ONLY = "the database is read-only"
    UNWRITABLE = "the database's file cannot be written"
    OUT_OF_SPACE = "the database is out of space or memory"
    DATA = "a row does not fit"
    SCHEMA = "the schema is not what the backfill needs"
    RIGHTS = "a privilege is missing"
    DAMAGE = "the database reports damage"
    UNKNOWN = "an error that is not known to be harmless"


PASSING = frozenset(
    {
        ErrorKind.CONFLICT,
        ErrorKind.LOCKED,
        ErrorKind.TOO_SLOW,
        ErrorKind.SESSION_LOST,
        ErrorKind.NOT_READY,
        ErrorKind.READ_ONLY,
    }
)
"""What may be gone at the next try, and is no statement's fault."""


class DriverErrors:
    """Judges errors by the database's own codes, which a subclass a database knows."""

    engine: sa.Engine

    @property
    def is_async(self) -> bool:
        """Whether the driver is an asynchronous one, whose connections belong to an event loop."""
        return self.engine.dialect.is_async

    def error_code(self, error: BaseException) -> str:
        """Return the database's own code for an error, or the exception's class name."""
        original = self.driver_error(error)
        code = None if original is None else self._native_code(original)
        return str(code or type(original or error).__name__)

    def error_kind(self, error: BaseException) -> ErrorKind:
        """Say what an error means; UNKNOWN is never taken for harmless."""
        original = self.driver_error(error)
        if original is None and isinstance(error, OSError) and self.is_async:
            return ErrorKind.NOT_READY  # asynchronous drivers let the network's errors through
        if original is None:
            # A value that could not be bound never reached the driver.
            is_value = isinstance(error, sa.exc.StatementError)
            return ErrorKind.DATA if is_value else ErrorKind.UNKNOWN
        code = self._native_code(original)
        if code is not None:
            return self._kind_of_code(code)
        if getattr(error, "connection_invalidated", False):
            return ErrorKind.SESSION_LOST
        if isinstance(error, sa.exc.OperationalError) and error.statement is None:
            return ErrorKind.NOT_READY  # drivers give no code to a connection that never was
        if self._is_unsendable(original):
            return ErrorKind.DATA
        return ErrorKind.UNKNOWN

    def _is_unsendable(self, original: BaseException) -> bool:
        """Whether the driver says, without a code, that it cannot send a value."""
        return isinstance(original, self.engine.dialect.loaded_dbapi.DataError)

    def driver_error(self, error: BaseException) -> BaseException | None:
        """Return the driver's own error; None for one that Python code raised."""
        original = getattr(error, "orig", None) or error
        driver = self.engine.dialect.loaded_dbapi
        return original if isinstance(original, driver.Error) else None

    def error_objects(self, error: BaseException) -> dict[str, str]:
        """Return names (constraint, column) that the error gives, never values."""
        return {}

    def refusal(self, error: sa.exc.DBAPIError) -> str:
        """Return what was said to a connection that could not be made, without the password;
        "" for any other error. No row can be in that, and drivers give it no code."""
        if error.statement is not None or self.error_kind(error) is not ErrorKind.NOT_READY:
            return ""
        text = " ".join(str(error.orig).split())
        password = self.engine.url.password
        return masked(text.replace(str(password), "***") if password else text)[:_LONGEST_REFUSAL]

    def _native_code(self, original: BaseException) -> str | int | None:
        return None

    def _kind_of_code(self, code: str | int) -> ErrorKind:
        return ErrorKind.UNKNOWN
