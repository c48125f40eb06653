"""SQL on `backfill_failure`, in the caller's transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from backfill import keys, tables
from backfill.runs import Failure
from backfill.store.placing import execute
from backfill.store.reading import as_written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.dialects import Dialect
    from backfill.runs import Run

_failure = tables.failure


@as_written
def of_run(connection: sa.Connection, run: Run) -> list[Failure]:
    """Return the run's quarantined rows."""
    rows = execute(
        connection, sa.select(_failure).where(_failure.c.run_id == run.id).order_by(_failure.c.id)
    )
    return [Failure(keys.loads(r.key), r.error, r.id, r.attempts) for r in rows]


def count(connection: sa.Connection, run: Run) -> int:
    """Count the run's quarantined rows."""
    statement = sa.select(sa.func.count()).where(_failure.c.run_id == run.id)
    return int(execute(connection, statement).scalar_one())


def insert(
    connection: sa.Connection, dialect: Dialect, run_id: int, found: Sequence[Failure]
) -> None:
    """Put rows into quarantine."""
    execute(
        connection,
        sa.insert(_failure).values(updated_at=dialect.now()),
        [
            {
                "run_id": run_id,
                "key": keys.dumps(failure.key),
                "error": failure.error,
                "attempts": failure.attempts,
            }
            for failure in found
        ],
    )


def failed_again(connection: sa.Connection, dialect: Dialect, failure: Failure, error: str) -> None:
    """Count another attempt at a row."""
    execute(
        connection,
        sa.update(_failure)
        .where(_failure.c.id == failure.id)
        .values(error=error, attempts=_failure.c.attempts + 1, updated_at=dialect.now()),
    )


def delete(connection: sa.Connection, failure: Failure) -> bool:
    """Take a row off the list; False if it is not there any more."""
    gone = execute(connection, sa.delete(_failure).where(_failure.c.id == failure.id))
    return gone.rowcount == 1


def clear(connection: sa.Connection, run: Run) -> None:
    """Take all rows of a run off the list."""
    execute(connection, sa.delete(_failure).where(_failure.c.run_id == run.id))
