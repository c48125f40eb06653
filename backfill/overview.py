"""What is told of backfills: the documents of `list`, `status`, `failures`, `verify`, `check`.

Each document is an array with one object a backfill (or failure). Their names are stable:
users script against them.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from backfill import keys, owners, sync
from backfill.dialects import Limits
from backfill.errors import BackfillError
from backfill.proof import count_pending, incomplete_reason
from backfill.runs import Status
from backfill.targets import bind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import sqlalchemy as sa

    from backfill.declaration import Backfill
    from backfill.dialects import Dialect
    from backfill.discovery import Declared
    from backfill.keys import KeyValues
    from backfill.runs import KeyRange, Run
    from backfill.store import Store
    from backfill.targets import Target

Document = list[dict[str, Any]]

_READING = Limits(lock_timeout=5, statement_timeout=30, idle_timeout=30, label="backfill: look")


def listing(declared: Sequence[Declared], store: Store) -> Document:
    """Return every declared backfill, in the order of the revisions."""
    has_state = store.exists()
    return [
        {
            "name": one.name,
            "revision": one.revision,
            "applied": one.is_applied,
            "status": _status(store.current(one.name) if has_state else None),
            "description": one.declaration.description(),
            "declared": True,
        }
        for one in declared
    ]


def listing_of_gone(declared: Sequence[Declared], store: Store) -> Document:
    """Return what has triggers in the database, and no class any more."""
    return [
        {
            "name": run.name,
            "revision": run.revision,
            "applied": True,
            "status": _status(run),
            "description": "its class is gone, and its triggers are not",
            "declared": False,
        }
        for run in _gone(declared, store)
    ]


def status_of_gone(declared: Sequence[Declared], store: Store) -> Document:
    """Return how far each of them is, likewise."""
    with store.kept_open():
        return [
            _progress(run.name, run.revision, store, run) | {"sync": True, "declared": False}
            for run in _gone(declared, store)
        ]


def _gone(declared: Sequence[Declared], store: Store) -> list[Run]:
    if not store.exists():
        return []
    names = sorted({*store.names()} - {one.name for one in declared})
    with store.transaction(write=False) as connection:
        names = [name for name in names if sync.is_installed(name, store.dialect, connection)]
    return [run for run in map(store.current, names) if run is not None]


def status(declared: Sequence[Declared], store: Store) -> Document:
    """Return how far each backfill is, who works on it and how fast."""
    with store.kept_open():
        has_state = store.exists()
        return [
            _progress(one.name, one.revision, store, store.current(one.name) if has_state else None)
            | {"sync": _is_in_sync(one, store), "declared": True}
            for one in declared
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
        with looking_at(one.declaration, dialect) as (connection, target, reading):
            if target.pending is not None:
                pending: int | None = count_pending(connection, target, reading=reading)
            else:
                reason = incomplete_reason(connection, target, reading=reading)
                pending = 0 if reason is None else None
        document.append({"name": one.name, "pending": pending})
    return document


def check(declared: Sequence[Declared], dialect: Dialect) -> Document:
    """Say of each backfill that is due whether it is complete, and if not, why."""
    document = []
    for one in declared:
        if not one.is_applied:
            continue
        try:
            with looking_at(one.declaration, dialect) as (connection, target, reading):
                reason = incomplete_reason(connection, target, reading=reading)
        except BackfillError as error:
            reason = str(error)
        document.append({"name": one.name, "complete": reason is None, "reason": reason})
    return document


@contextmanager
def looking_at(
    declaration: type[Backfill], dialect: Dialect
) -> Iterator[tuple[sa.Connection, Target, Callable[[], AbstractContextManager[Any]]]]:
    """Open a connection, bind the declaration, and give a wrapper for short reads."""
    with dialect.open(_READING) as connection:

        def reading() -> AbstractContextManager[Any]:
            return dialect.transaction(connection, _READING, write=False)

        with reading():
            target = bind(declaration, dialect, connection)
        yield connection, target, reading


def _status(run: Run | None) -> str:
    return (run.status if run is not None else Status.PENDING).value


def _progress(name: str, revision: str, store: Store, run: Run | None) -> dict[str, Any]:
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
        "status": _status(run),
        "rows_scanned": scanned,
        "rows_changed": changed,
        "rows_estimated": estimated,
        "rows_per_second": round(rate, 1),
        "seconds_left": left,
        "failures": quarantined,
        "throttled": next((r.throttled for r in ranges if r.throttled), None),
        "set": dict(run.changed) if run is not None else {},
        "error": run.error if run is not None else None,
        "ranges": [_range(found) for found in ranges],
    }


def _is_in_sync(one: Declared, store: Store) -> bool:
    """Whether triggers keep up with new writes; they may outlive the run, and even `sync`."""
    with store.transaction(write=False) as connection:
        return sync.is_installed(one.declaration, store.dialect, connection)


def _is_worked_on(found: KeyRange) -> bool:
    return found.lease_is_live and not (found.owner and owners.is_dead(found.owner))


def _range(found: KeyRange) -> dict[str, Any]:
    expires = found.lease_expires
    return {
        "lower": _shown(found.lower),
        "upper": _shown(found.upper),
        "cursor": _shown(found.cursor),
        "rows_scanned": found.rows_scanned,
        "rows_changed": found.rows_changed,
        "owner": _owner(found.owner),
        "lease_expires": f"{expires.isoformat(timespec='milliseconds')}Z" if expires else None,
    }


def _owner(owner: str | None) -> str | None:
    if owner is None:
        return None
    return f"{owners.shown(owner)}{', which has died' if owners.is_dead(owner) else ''}"


def _shown(values: KeyValues) -> Any:
    """Return a key as JSON: an array of its values, null before the first key."""
    return json.loads(keys.dumps(values)) or None
