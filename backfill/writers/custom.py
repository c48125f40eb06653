"""Custom: the user's own statements, limited to the chunk, in the chunk's transaction."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from operator import index
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.base import NO_COMMIT
from backfill.errors import DeclarationError
from backfill.keys import alike
from backfill.statements import ChunkStatements
from backfill.writers.base import Writer, Written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill.chunks import Chunk
    from backfill.targets import Target
    from backfill.walk import Walk


class CustomWriter(Writer):
    """Calls `apply`."""

    def __init__(self, target: Target, walk: Walk) -> None:
        super().__init__(target, walk)
        self.declaration = target.declaration()

    def write(self, connection: sa.Connection, chunk: Chunk) -> Written:
        if chunk.is_empty:
            return Written(0)
        if not self.target.dialect.update_gives_way:
            self.walk.locked(connection, chunk)
        statements = ChunkStatements(self.target.table, self._condition(chunk))
        with _in_one_piece(connection, self.target.declaration.name):
            changed = self.declaration.apply(connection, statements)
        if changed is None:
            changed = chunk.scanned if chunk.page is None else len(chunk.page)
        return Written(_count(changed, self.target.declaration.name))

    def _condition(self, chunk: Chunk) -> sa.ColumnElement[bool]:
        """Return the chunk's condition with its values inside: it must stand alone."""
        key = self.target.key
        low, high, inclusive = chunk.after, chunk.upto, False
        if chunk.telling_page is not None:
            low, high, inclusive = chunk.telling_page.key(0), chunk.telling_page.key(-1), True
        within = key.between(
            key.constants(low) if low else (),
            key.constants(high),
            alike=alike(low, high),
            inclusive=inclusive,
        )
        return within if self.walk.pending is None else sa.and_(within, self.walk.pending)


def _count(changed: Any, name: str) -> int:
    """Return a number of rows. Raises DeclarationError for what is none."""
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
def _in_one_piece(connection: sa.Connection, name: str) -> Iterator[None]:
    """Refuse that `apply` ends the transaction: its writes would part from their checkpoint.

    A COMMIT is stopped before it happens. Of what goes past SQLAlchemy, the savepoint tells:
    it is gone when the transaction is another one.
    """
    problem = DeclarationError(
        f"{name}: apply() must not commit or roll back, nor run DDL; its statements are committed"
        " together with the checkpoint. Raise an error where the chunk cannot be done."
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
        if error.connection_invalidated:
            raise
        raise problem from error
