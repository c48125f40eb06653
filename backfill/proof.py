"""Whether a backfill is complete. With a `where` the data say so, not a status column."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from backfill import store
from backfill.chunks import count_pending, last_key
from backfill.keys import START
from backfill.runs import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import sqlalchemy as sa

    from backfill.targets import Target


def incomplete_reason(
    connection: sa.Connection,
    target: Target,
    *,
    reading: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> str | None:
    """Say why a backfill is not complete; None if it is. Reads only.

    With a `where`: no row matches it, quarantined rows included. Without one: its run has
    succeeded, or the table is empty.
    """
    if target.pending is not None:
        if count_pending(connection, target, enough=1, reading=reading):
            return f"rows of {target.table.fullname} are pending"
        return None
    with reading():
        if last_key(connection, target.key) == START:
            return None
        name = target.declaration.name
        run = store.current(connection, name) if store.exists(connection) else None
    if run is None:
        return "it was never run"
    return None if run.status is Status.SUCCEEDED else f"its run is {run.status.value}"
