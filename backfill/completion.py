"""What an application may ask while it serves a request: is a backfill complete?

The answer is bounded in time and errs on one side only: True was proved, False may also mean that
nobody knows.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill import settings, store
from backfill.dialects import dialect_for
from backfill.errors import BackfillError
from backfill.failures import describe
from backfill.proof import first_rows
from backfill.runs import Status
from backfill.savepoints import savepoint
from backfill.targets import bind

if TYPE_CHECKING:
    from backfill.declaration import Backfill

logger = logging.getLogger(__name__)

LOOKED_AT = 1_000
"""Rows that a request looks at, at most: a few milliseconds by the primary key."""
_Question = tuple[str, bool, "str | None"]
"""Name, whether the data are asked too, and the schema of our tables."""
_REMEMBERED = "backfill_complete"
"""Key of a database connection's info: what was found complete, and whether the data were asked."""


def is_complete(
    connection_or_session: Any,
    backfill: str | type[Backfill],
    *,
    remember: bool = True,
    state_schema: str | None = None,
) -> bool:
    """Whether a backfill is complete, cheaply enough to ask in every request.

    The transaction of the Connection or Session (a `scoped_session`, too) goes on whatever is
    found. Asynchronous ones ask by `await session.run_sync(backfill.is_complete, "name")`.

    Given a name, the latest run says it: a success is recorded only after the data have proved
    it. That is one short read of our own tables; the application needs neither Alembic's
    configuration nor the declarations. A downgrade below the backfill's revision makes such a
    success stale, if Alembic had loaded us; else the next `backfill run` finds it out.

    Given the class itself, the data are asked besides: the first rows by key, `LOOKED_AT` of
    them. So a success from before a downgrade is not believed where these are pending, and a
    small table needs no run at all. That takes some 10 ms.

    True is remembered with the database connection as long as that is open, a pooled one for as
    long as it is in the pool; `remember=False` asks each time, for an application whose
    connections go from one tenant's schema to another's. False also where that is not known: no
    run yet, no privilege to read our tables, tables of a newer version. Such trouble is logged.

    `state_schema` is the project's setting of that name; without it, `$BACKFILL_STATE_SCHEMA`.
    """
    connection = _connection(connection_or_session)
    name, declaration = (backfill, None) if isinstance(backfill, str) else (backfill.name, backfill)
    remembered: set[_Question] = connection.info.setdefault(_REMEMBERED, set())
    question = (name, declaration is not None, state_schema)
    if remember and question in remembered:
        return True
    answer = _answer(connection, name, declaration, state_schema)
    if answer and remember:
        remembered.add(question)
    return answer


def _connection(given: Any) -> sa.Connection:
    if isinstance(given, sa.Connection):
        return given
    has_one = callable(getattr(type(given), "connection", None))
    found = given.connection() if has_one else None
    if isinstance(found, sa.Connection):
        return found
    if inspect.iscoroutine(found):
        found.close()  # nobody will await it
    raise TypeError(
        f"is_complete takes a Connection or a Session, not {type(given).__name__}. Where it is"
        ' asynchronous: `await session.run_sync(backfill.is_complete, "name")`.'
    )


def _answer(
    connection: sa.Connection,
    name: str,
    declaration: type[Backfill] | None,
    state_schema: str | None,
) -> bool:
    schema = state_schema or settings.from_environment().get("state_schema")
    try:
        store.keep_in(connection, schema)
        with savepoint(connection):
            return _is_complete(connection, name, declaration)
    except (BackfillError, sa.exc.DBAPIError) as error:
        if getattr(error, "connection_invalidated", False):
            raise  # the caller's transaction is gone, and it has to know
        logger.warning("is_complete(%r) is not known: %s", name, _shown(error, connection))
        return False


def _shown(error: Exception, connection: sa.Connection) -> str:
    if isinstance(error, BackfillError):
        return str(error)
    return describe(error, dialect_for(connection.engine))


def _is_complete(connection: sa.Connection, name: str, declaration: type[Backfill] | None) -> bool:
    run = store.current(connection, name) if store.exists(connection) else None
    if run is not None and run.status is not Status.SUCCEEDED:
        return False
    if declaration is None:
        return run is not None
    target = bind(declaration, dialect_for(connection.engine), connection)
    rows, pending = first_rows(connection, target, LOOKED_AT + 1)
    if target.pending is None:
        return run is not None or rows == 0
    return pending == 0 and (run is not None or rows <= LOOKED_AT)
