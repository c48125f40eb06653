"""Custom: the user's own statements, limited to the chunk, in the chunk's transaction."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager, suppress
from operator import index
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects import PASSING, ErrorKind
from backfill.dialects.base import NO_COMMIT
from backfill.errors import DeclarationError
from backfill.keys import alike
from backfill.statements import ChunkStatements
from backfill.writers.base import Writer, Written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill.chunks import Chunk
    from backfill.dialects import Dialect
    from backfill.keys import KeyValues
    from backfill.scans import Scans
    from backfill.targets import Target

    _Found = tuple[KeyValues, bool]
    """The key of a row that is there, and whether it is pending."""


class CustomWriter(Writer):
    """Calls `apply`."""

    def __init__(self, target: Target, scans: Scans) -> None:
        super().__init__(target, scans)
        self.declaration = target.declaration()
        self._may_lock: bool | None = None
        """Whether this user may lock rows of the table; None: not tried yet."""
        self._waits = False
        """For rows that others have locked; else it gives way."""

    def wait_for_locks(self) -> None:
        self._waits = True

    def write(self, connection: sa.Connection, chunk: Chunk) -> Written:
        if chunk.page is None:
            chunk = self.scans.whole(connection, chunk)
        assert chunk.page is not None
        keys = chunk.page.keys
        if not self.target.dialect.one_writer:
            keys = self._held(connection, keys)
        if not keys:
            return Written(0)
        condition = self._condition(keys)
        if self.scans.pending is not None:
            condition = sa.and_(condition, self.scans.pending)
        statements = ChunkStatements(self.target.table, condition)
        with _in_one_piece(connection, self.target):
            changed = self.declaration.apply(connection, statements)
        return Written(_count(changed, self.target.declaration.name, len(keys)))

    def _held(self, connection: sa.Connection, keys: Sequence[KeyValues]) -> list[KeyValues]:
        """Lock rows, where this user may, and return the keys of those that are pending still:
        the application must not change them between two statements."""
        if not keys:
            return []
        if self._may_lock is None:
            with _unless_forbidden(connection, self.target.dialect) as refused:
                found = self._read(connection, self._locked(keys))
            self._may_lock = not refused
        elif self._may_lock:
            found = self._read(connection, self._locked(keys))
        if not self._may_lock:
            found = self._read(connection, self._looking(keys))
        elif len(found) < len(keys):  # some are deleted, or, as a policy may say, not to be locked
            found = _merged(found, self._read(connection, self._looking(keys)))
        return [key for key, is_pending in found if is_pending]

    def _looking(self, keys: Sequence[KeyValues]) -> sa.Select[Any]:
        """By the keys alone: an index of what is pending would be locked beyond these rows."""
        pending = sa.true() if self.scans.pending is None else self.scans.pending
        is_pending = sa.case((pending, 1), else_=0)
        key = self.target.key
        return (
            sa.select(*key.selected, is_pending)
            .select_from(self.target.table)
            .where(self._condition(keys))
            .order_by(*key.columns)
        )

    def _locked(self, keys: Sequence[KeyValues]) -> sa.Select[Any]:
        looking = self._looking(keys)
        if self._waits:
            return looking.with_for_update(key_share=True)
        return self.target.dialect.lock(looking)

    def _read(self, connection: sa.Connection, looking: sa.Select[Any]) -> list[_Found]:
        return [(tuple(row[:-1]), bool(row[-1])) for row in connection.execute(looking)]

    def _condition(self, keys: Sequence[KeyValues]) -> sa.ColumnElement[bool]:
        """Return the condition of these rows with its values inside: it must stand alone.

        Where others write it lists them all, since they may insert between two statements.
        """
        key = self.target.key
        if key.is_single and not self.target.dialect.one_writer:
            return key.among(keys)
        low, high = keys[0], keys[-1]
        within = key.between(
            key.constants(low), key.constants(high), alike=alike(low, high), inclusive=True
        )
        return within if self.target.dialect.one_writer else sa.and_(within, key.among(keys))


def _merged(locked: Sequence[_Found], seen: Sequence[_Found]) -> list[_Found]:
    """Return what is there, each row as it was when it was locked, where it is; both in order."""
    found, rest = [], deque(locked)
    for one in seen:
        is_locked = rest and rest[0][0] == one[0]
        found.append(rest.popleft() if is_locked else one)
    return found


@contextmanager
def _unless_forbidden(connection: sa.Connection, dialect: Dialect) -> Iterator[list[str]]:
    """Take back what this user has no right to; says so in the list."""
    refused: list[str] = []
    savepoint = connection.begin_nested()
    try:
        yield refused
    except sa.exc.DBAPIError as error:
        if dialect.error_kind(error) is not ErrorKind.RIGHTS:
            raise
        savepoint.rollback()
        refused.append(dialect.error_code(error))
    else:
        savepoint.commit()


def _count(changed: Any, name: str, rows: int) -> int:
    """Return a number of rows, all of them where none is told. Raises DeclarationError for what
    is no number."""
    if changed is None:
        return rows
    with suppress(TypeError):
        if (number := index(changed)) >= 0:
            return number
    raise DeclarationError(
        f"{name}: apply() must return how many rows it changed (as `result.rowcount` says), or None"
        f" for all of the chunk; it returned {_shown(changed)}."
    )


def _shown(changed: Any) -> str:
    return "a negative number" if isinstance(changed, int) else f"a {type(changed).__name__}"


@contextmanager
def _in_one_piece(connection: sa.Connection, target: Target) -> Iterator[None]:
    """Refuse that `apply` ends the transaction: its writes would part from their checkpoint.

    A COMMIT is stopped before it happens. Of what goes past SQLAlchemy, the savepoint tells:
    it is gone when the transaction is another one.
    """
    problem = DeclarationError(
        f"{target.declaration.name}: apply() must not commit or roll back, nor run DDL; its"
        " statements are committed together with the checkpoint. Raise an error where the chunk"
        " cannot be done."
    )

    connection.exec_driver_sql("SAVEPOINT backfill_apply")
    info = connection.info  # of a connection that is lost meanwhile it could not be asked for
    info[NO_COMMIT] = problem
    try:
        yield
    finally:
        info.pop(NO_COMMIT, None)
    try:
        connection.exec_driver_sql("RELEASE SAVEPOINT backfill_apply")
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated or target.dialect.error_kind(error) in PASSING:
            raise
        raise problem from error
