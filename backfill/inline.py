"""Completes a small remainder on somebody else's connection, inside its open transaction.

A revision's own connection may hold locks that a second one would wait for without end. So here
nothing is committed and nothing is resumed: the rows, the record of the run and the revision
itself are one transaction, and an error leaves all of them as they were.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill import owners, store
from backfill.chunks import Ranged
from backfill.errors import LeaseHeld, RunFailed
from backfill.failures import describe
from backfill.keys import START
from backfill.proof import incomplete_reason
from backfill.runs import NewRun, Status
from backfill.savepoints import is_in_transactions, savepoint
from backfill.scans import last_key
from backfill.targets import check_key
from backfill.trail import Stretch
from backfill.walk import Walk
from backfill.writers import writer_for
from backfill.writers.rows import RowsChanged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.runs import Run
    from backfill.settings import Settings
    from backfill.targets import Target

_SECONDS = 1.0
"""How long one chunk looks for rows where few are pending."""


def record(connection: sa.Connection, target: Target, how: Settings, version_table: str) -> None:
    """Record that a backfill has succeeded for which its gate found nothing to do, whatever has
    become of its run: nobody has begun one, or it was left, stopped or given up.

    Without that a `where`-less one would later be run on rows that were never meant, and one whose
    columns a later revision drops would be incomplete for ever. Raises LeaseHeld where somebody
    works on it, who would have to finish without these columns.
    """
    store.ensure_here(connection)  # first: on MariaDB it commits
    with savepoint(connection):
        run = store.current(connection, target.declaration.name, lock=target.dialect)
        if run is None or run.status in (Status.STALE, Status.CANCELLED):
            run = _begin(connection, target, how, run, version_table)
        elif run.status is Status.SUCCEEDED:
            return
        _refuse_while_running(connection, target, run)
        _succeed(connection, target, run, 0)


def _succeed(connection: sa.Connection, target: Target, run: Run, changed: int) -> None:
    """End a run as the class is now, by which the data were asked."""
    fingerprint = target.declaration.fingerprint()
    if run.fingerprint != fingerprint:
        store.accept_here(connection, target.dialect, run, fingerprint)
    store.succeed_here(connection, target.dialect, run, changed)


def _refuse_while_running(connection: sa.Connection, target: Target, run: Run) -> None:
    """Raise LeaseHeld while a runner is alive."""
    for found in store.ranges_here(connection, target.dialect, run):
        if found.lease_is_live and not (found.owner and owners.is_dead(found.owner)):
            raise LeaseHeld(run.name, owners.shown(found.owner) if found.owner else "another")


def complete(connection: sa.Connection, target: Target, how: Settings, version_table: str) -> int:
    """Do what is left of a backfill, and record that it succeeded; the rows changed.

    `how.inline_rows` is the most that it may be. Raises RunFailed where it is more, where a row
    cannot be written, or a person has stopped the run; LeaseHeld where somebody works on it.
    """
    if not is_in_transactions(connection):
        raise RunFailed(
            "it cannot be completed inline: env.py's connection is AUTOCOMMIT, where rows and their"
            " record are not one transaction"
        )
    store.ensure_here(connection)  # first: on MariaDB it commits
    try:
        with connection.begin_nested(), target.dialect.borrowing(connection):
            return _complete(connection, target, how, version_table)
    except sa.exc.DBAPIError as error:
        why = describe(error, target.dialect)
        raise RunFailed(f"it cannot be completed inline: {why}") from error


def _complete(connection: sa.Connection, target: Target, how: Settings, version_table: str) -> int:
    run = _run(connection, target, how, version_table)
    stretches = _stretches(connection, target, run)
    if _count(connection, target, stretches, how.inline_rows) > how.inline_rows:
        raise RunFailed(
            f"more than inline_rows = {how.inline_rows:,} rows are left, too many to be done"
            " inside a revision"
        )
    changed = sum(_walk(connection, target, stretch, how) for stretch in stretches)
    _succeed(connection, target, run, changed)
    reason = incomplete_reason(connection, target)
    if reason is not None:
        raise RunFailed(f"{reason} after it was completed inline: what is written leaves them so")
    return changed


def _begin(
    connection: sa.Connection,
    target: Target,
    how: Settings,
    last: Run | None,
    version_table: str,
) -> Run:
    """Record a new run after the last one, with all of the table before it."""
    new = NewRun(
        name=target.declaration.name,
        number=1 if last is None else last.number + 1,
        revision=target.declaration.revision or "",
        fingerprint=target.declaration.fingerprint(),
        settings=how.recorded(),
        rows_estimated=None,
        horizon=None,
        key=target.key.shape,
    )
    bounds = [(START, last_key(connection, target.key))]
    return store.create_here(connection, target.dialect, new, bounds, version_table)


def _run(connection: sa.Connection, target: Target, how: Settings, version_table: str) -> Run:
    """Return the run to end, a new one if there is none. Raises what forbids it."""
    name, dialect = target.declaration.name, target.dialect
    run = store.current(connection, name, lock=dialect)
    if run is None or run.status in (Status.SUCCEEDED, Status.STALE):
        return _begin(connection, target, how, run, version_table)
    check_key(target, run)
    if run.status in (Status.PAUSED, Status.CANCELLED):
        raise RunFailed(f"its run is {run.status.value}")
    _refuse_while_running(connection, target, run)
    return run


def _stretches(connection: sa.Connection, target: Target, run: Run) -> list[Stretch]:
    """Return where rows are left: with a `where` the data say it, without one the cursors."""
    if target.pending is not None:
        return [Stretch(START, last_key(connection, target.key))]
    if store.count_failures(connection, run):
        raise RunFailed("rows are quarantined")
    left = store.ranges_here(connection, target.dialect, run)
    return [Stretch(found.cursor, found.upper) for found in left if not found.finished]


def _count(
    connection: sa.Connection, target: Target, stretches: Sequence[Stretch], limit: int
) -> int:
    """Count the rows that are left, to one more than the limit."""
    rows = sa.select(sa.literal(1).label("one")).select_from(target.table)
    if target.pending is not None:
        rows = rows.where(target.pending)

    def build(within: sa.ColumnElement[bool]) -> sa.Select[Any]:
        some = rows.where(within).limit(limit + 1).subquery()
        return sa.select(sa.func.count()).select_from(some)

    counting, found = Ranged(target.key, build), 0
    for stretch in stretches:
        statement, parameters = counting.between(stretch.after, stretch.upto)
        found += int(connection.execute(statement, parameters).scalar_one())
    return found


def _walk(connection: sa.Connection, target: Target, stretch: Stretch, how: Settings) -> int:
    """Write chunk after chunk; the rows changed."""
    walk = Walk(target)
    writer = writer_for(target, walk.scans)
    writer.be_careful()
    writer.wait_for_locks()
    size = how.chunk_size or target.dialect.first_rows
    after, changed = stretch.after, 0
    while after != stretch.upto:
        chunk = walk.next(connection, after, stretch.upto, size, _SECONDS)
        writer.forget()
        while True:
            writer.compute(chunk, _go_on)
            try:
                written = writer.write(connection, chunk)
                break
            except RowsChanged as rows:  # by somebody, before we had locked them
                chunk = replace(chunk, page=rows.page)
        if written.failures:
            failure = written.failures[0]
            raise RunFailed(f"row {list(failure.key)} cannot be written: {failure.error}")
        walk.learn(walk.scans.counted(connection, chunk, written.changed), written.changed)
        after, changed = chunk.upto, changed + written.changed
    return changed


def _go_on() -> None:
    """No lease is to be kept alive here."""
