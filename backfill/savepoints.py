"""Savepoints on connections of somebody else's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa


def is_in_transactions(connection: sa.Connection) -> bool:
    """Whether what is done on a connection can be taken back: not where it is AUTOCOMMIT."""
    return not connection._is_autocommit_isolation()


@contextmanager
def savepoint(connection: sa.Connection) -> Iterator[None]:
    """Take back what was done inside after an error, so that the caller's transaction goes on,
    as PostgreSQL's would not. Under AUTOCOMMIT there is none, and each statement stands alone."""
    if not is_in_transactions(connection):
        yield
        return
    with connection.begin_nested():
        yield
