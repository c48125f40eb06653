"""What is told of backfills: the documents of `list`, `status`, `failures`, `verify`, `check`.

Each document is an array with one object a backfill (or failure). Their names are stable:
users script against them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from backfill import keys, owners, sync
from backfill.dialects import Limits
from backfill.errors import BackfillError, DeclarationError
from backfill.proof import count_pending, incomplete_reason
from backfill.runs import TRANSITIONS, Status
from backfill.store import current, exists
from backfill.targets import bind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    import sqlalchemy as sa

    from backfill.declaration import Backfill
    from backfill.dialects import Dialect
    from backfill.discovery import Declared
    from backfill.keys import KeyValues
    from backfill.runs import KeyRange, Run
    from backfill.store import Store
    from backfill.sync import Sought
    from backfill.targets import Target

Document = list[dict[str, Any]]
TakenBack = Callable[["Run"], bool]
"""Whether the revision of a run was applied once and is not any more."""


def _never(_run: Run) -> bool:
    return False


_UNKNOWN = "revision unknown"
_GONE = "class is gone"
_READING = Limits(lock_timeout=5, statement_timeout=30, idle_timeout=30, label="backfill: look")


def listing(
    declared: Sequence[Declared], store: Store, *, taken_back: TakenBack = _never
) -> Document:
    """Return every declared backfill, in the order of the revisions, and those that were run and
    are declared no more. `taken_back` says of a run whether its revision was downgraded."""
    runs = {run.name: run for run in store.latest()}
    document = []
    for one in declared:
        run = runs.pop(one.name, None)
        document.append(
            {
                "name": one.name,
                "revision": one.revision,
                "applied": one.is_applied,
                "status": _status(run, taken_back),
                "description": one.declaration.description(),
                "problem": None if one.is_known else _UNKNOWN,
            }
        )
    return document + [_listed_gone(run, taken_back) for run in runs.values()]


def _listed_gone(run: Run, taken_back: TakenBack) -> dict[str, Any]:
    return {
        "name": run.name,
        "revision": run.revision,
        "applied": False,
        "status": _status(run, taken_back),
        "description": "",
        "problem": _GONE,
    }


def status(
    declared: Sequence[Declared],
    store: Store,
    gone: Sequence[Run] = (),
    *,
    taken_back: TakenBack = _never,
) -> Document:
    """Return how far each backfill is, who works on it and how fast; those whose class is gone,
    as their run remembers them, come last."""
    with store.kept_open():
        runs = {run.name: run for run in store.latest()}
        return [
            _progress(
                one.name,
                one.revision,
                store,
                runs.get(one.name),
                taken_back,
                in_sync=_is_in_sync(one.declaration, store),
                problem=None if one.is_known else _UNKNOWN,
            )
            for one in declared
        ] + [
            _progress(
                run.name,
                run.revision,
                store,
                run,
                taken_back,
                in_sync=_is_in_sync(run.name, store),
                problem=_GONE,
            )
            for run in gone
        ]


def failures(declared: Sequence[Declared], store: Store) -> Document:
    """Return the quarantined rows of each backfill's latest run."""
    has_state = store.exists()
    document = []
    for one in declared:
        run = store.current(one.name) if has_state else None
        document += [
            {
                "name": one.name,
                "key": _shown(failure.key),
                "error": failure.error,
                "attempts": failure.attempts,
            }
            for failure in (store.failures(run) if run is not None else ())
        ]
    return document


def verify(declared: Sequence[Declared], dialect: Dialect) -> Document:
    """Count the pending rows of each backfill in short reads.

    Without a `where` nothing can be counted: 0 once its run has succeeded, null before.
    """
    document = []
    for one in declared:
        try:
            pending = _count(one, dialect)
        except DeclarationError:
            if not is_history(one, dialect):
                raise
            pending = 0
        document.append({"name": one.name, "pending": pending})
    return document


def _count(one: Declared, dialect: Dialect) -> int | None:
    with looking_at(one.declaration, dialect) as (connection, target, reading):
        if target.pending is not None:
            return count_pending(connection, target, reading=reading)
        reason = incomplete_reason(connection, target, reading=reading)
        return 0 if reason is None else None


def check(declared: Sequence[Declared], dialect: Dialect) -> Document:
    """Say of each backfill that is due whether it is complete, and if not, why."""
    document = []
    for one in declared:
        if one.is_applied or not one.is_known:
            reason = why_incomplete(one, dialect)
            document.append({"name": one.name, "complete": reason is None, "reason": reason})
    return document


def why_incomplete(one: Declared, dialect: Dialect) -> str | None:
    """Say why a backfill is not complete; None if it is, as the data say, in short reads."""
    if one.is_known and not one.is_applied:
        return f"revision {one.revision} is not applied"
    try:
        with looking_at(one.declaration, dialect) as (connection, target, reading):
            reason = incomplete_reason(connection, target, reading=reading)
    except BackfillError as error:
        is_over = isinstance(error, DeclarationError) and is_history(one, dialect)
        reason = None if is_over else str(error)
    if reason is not None and not one.is_known:
        reason += f" (and its revision {one.revision} is unknown)"
    return reason


def is_history(one: Declared, dialect: Dialect) -> bool:
    """Whether a backfill has succeeded as it is declared now: if its table does not fit it any
    more, later revisions have dropped what it was about, and nothing is left to do."""
    with (
        dialect.open(_READING) as connection,
        dialect.transaction(connection, _READING, write=False),
    ):
        run = current(connection, one.name) if exists(connection) else None
    if run is None or run.status is not Status.SUCCEEDED:
        return False
    return run.fingerprint == one.declaration.fingerprint()


@contextmanager
def looking_at(
    declaration: type[Backfill], dialect: Dialect, limits: Limits = _READING
) -> Iterator[tuple[sa.Connection, Target, Callable[[], AbstractContextManager[Any]]]]:
    """Open a connection, bind the declaration, and give a wrapper for short reads."""
    with dialect.open(limits) as connection:

        def reading() -> AbstractContextManager[Any]:
            return dialect.transaction(connection, limits, write=False)

        with reading():
            target = bind(declaration, dialect, connection)
        yield connection, target, reading


def _status(run: Run | None, taken_back: TakenBack) -> str:
    if run is None:
        return Status.PENDING.value
    is_stale = Status.STALE in TRANSITIONS[run.status] and taken_back(run)
    return (Status.STALE if is_stale else run.status).value


def _progress(
    name: str,
    revision: str,
    store: Store,
    run: Run | None,
    taken_back: TakenBack,
    *,
    in_sync: bool,
    problem: str | None,
) -> dict[str, Any]:
    ranges = store.ranges(run) if run is not None else []
    changed, quarantined = store.totals(run) if run is not None else (0, 0)
    scanned = sum(found.rows_scanned for found in ranges)
    rate = sum(found.rows_per_second for found in ranges if _is_worked_on(found))
    estimated = run.rows_estimated if run is not None else None
    left = None
    if rate > 0 and estimated is not None:
        left = round(max(estimated - scanned, 0) / rate, 1)
    return {
        "name": name,
        "revision": revision,
        "status": _status(run, taken_back),
        "rows_scanned": scanned,
        "rows_changed": changed,
        "rows_estimated": estimated,
        "rows_per_second": round(rate, 1),
        "seconds_left": left,
        "failures": quarantined,
        "throttled": _reason(run, ranges, store),
        "set": dict(run.changed) if run is not None else {},
        "sync": in_sync,
        "error": run.error if run is not None else None,
        "problem": problem,
        "ranges": [_range(found) for found in ranges],
    }


def _reason(run: Run | None, ranges: Sequence[KeyRange], store: Store) -> str | None:
    """Say why a run waits, or is slower than it was told to be: on the way, or after all ranges are
    walked, when its last look waits for older transactions."""
    is_walked = all(found.finished for found in ranges)
    if run is None or run.status is not Status.RUNNING or not is_walked:
        return next((found.throttled for found in ranges if found.throttled), None)
    if run.horizon is None or run.pass_number > 1:
        return None
    with store.transaction(write=False) as connection:
        older = store.dialect.older_than_horizon(connection, run.horizon)
    return None if older is None else f"waits for {older} to end"


def _is_in_sync(of: Sought, store: Store) -> bool:
    """Whether triggers keep up with new writes; they may outlive the run, and even `sync`."""
    with store.transaction(write=False) as connection:
        return sync.is_installed(of, store.dialect, connection)


def _is_worked_on(found: KeyRange) -> bool:
    """Whether its rate still holds: not where its worker waits, or is dead."""
    if (found.throttled or "").startswith("waits"):
        return False
    return found.lease_is_live and not (found.owner and owners.is_dead(found.owner))


def _range(found: KeyRange) -> dict[str, Any]:
    expires = found.lease_expires
    return {
        "lower": _shown(found.lower),
        "upper": _shown(found.upper),
        "cursor": _shown(found.cursor),
        "rows_scanned": found.rows_scanned,
        "rows_changed": found.rows_changed,
        "owner": _owner(found),
        "lease_expires": f"{expires.isoformat(timespec='milliseconds')}Z" if expires else None,
        "seconds_quiet": round(max(found.quiet_seconds, 0), 1) if found.owner else None,
    }


def _owner(found: KeyRange) -> str | None:
    if found.owner is None:
        return None
    tail = ""
    if owners.is_dead(found.owner):
        tail = ", which has died"
    elif not found.lease_is_live:
        tail = ", whose lease has run out"
    return owners.shown(found.owner) + tail


def _shown(values: KeyValues) -> Any:
    """Return a key as JSON: an array of its values, null before the first key."""
    return json.loads(keys.dumps(values)) or None
