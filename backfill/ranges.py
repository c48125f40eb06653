"""How a run's key space is cut into ranges for several workers, by the data's own distribution."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from backfill import owners
from backfill.errors import StateError
from backfill.keys import START, KeyValues
from backfill.scans import last_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

    from backfill.runs import KeyRange, Run
    from backfill.targets import Target

PER_WORKER = 8
"""Workers pull ranges, so that several for each even out what the cut got wrong."""
_ROWS = 5_000
"""A range of fewer rows is not worth a claim of its own."""

Bounds = list[tuple[KeyValues, KeyValues]]


def is_free(found: KeyRange) -> bool:
    """Whether nobody alive holds a range, as far as one can know."""
    if found.token is None or not found.lease_is_live:
        return True
    return found.owner is not None and owners.is_dead(found.owner)


def cut_table(connection: sa.Connection, target: Target, rows: int | None, workers: int) -> Bounds:
    """Cut a table up to its highest key of this moment; no range for an empty one.

    The points are taken first, so that the bound is above them all.
    """
    points: list[KeyValues] = []
    parts = _parts(rows, workers)
    if parts > 1:
        points = target.dialect.split_points(connection, target.key, rows, parts)
    upper = last_key(connection, target.key)
    return [] if upper == START else _between(START, points, upper)


def cut_range(
    connection: sa.Connection, target: Target, found: KeyRange, rows: int | None, workers: int
) -> Bounds:
    """Cut what is left of a range; one bound if that is not worth it."""
    points: list[KeyValues] = []
    parts = _parts(rows, workers)
    if parts > 1:
        points = target.dialect.split_points(
            connection, target.key, rows, parts, after=found.cursor, upto=found.upper
        )
    return _between(found.cursor, points, found.upper)


def check_whole(target: Target, run: Run, found: Sequence[KeyRange]) -> None:
    """Raise StateError unless a run's key ranges follow each other without a gap, and those that
    are finished were walked to their ends: what somebody deleted or edited would be left out."""
    looks = _widths if target.dialect.mixes_types else _types
    alike = {looks(key) for one in found for key in (one.lower, one.cursor, one.upper) if key}
    lowers, uppers = {one.lower for one in found}, {one.upper for one in found}
    is_whole = lowers - uppers == {START} and len(uppers - lowers) == 1 and len(alike) == 1
    was_walked = all(one.cursor == one.upper for one in found if one.finished)
    if (not found and (run.is_empty or run.pass_number > 1)) or (is_whole and was_walked):
        return
    raise StateError(
        f"The key ranges of backfill {run.name!r} in backfill_range are not as they were written:"
        " somebody deleted or edited some. Begin again:"
        f" `backfill cancel {run.name}`, then `backfill run {run.name}`."
    )


def _widths(key: KeyValues) -> tuple[object, ...]:
    return (len(key),)


def _types(key: KeyValues) -> tuple[object, ...]:
    return tuple(map(type, key))


def _parts(rows: int | None, workers: int) -> int:
    parts = workers * PER_WORKER if workers > 1 else 1
    return parts if rows is None else min(parts, rows // _ROWS)


def _between(low: KeyValues, points: list[KeyValues], high: KeyValues) -> Bounds:
    return list(pairwise(dict.fromkeys([low, *points, high])))
