"""SQL on `backfill_run`, `backfill_event` and `backfill_schema`, in the caller's transaction."""

from __future__ import annotations

import getpass
import json
import socket
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from backfill import tables
from backfill.errors import StateError
from backfill.runs import Run, Status
from backfill.store.placing import execute, schema_of
from backfill.store.reading import as_written

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backfill.dialects import Dialect
    from backfill.runs import NewRun

SYNC_INSTALLED, SYNC_REMOVED = "sync installed", "sync removed"
"""Events: triggers were made, or ended; the details are the revision that did."""

_run, _event = tables.run, tables.event
_CHANGED = "set"
"""Where in its settings a run keeps what `backfill set` made of them."""
_KEY, _EMPTY = "key", "empty"
"""Likewise, by what it walks, and whether there was nothing to walk."""
_PROJECT = "version_table"
"""Likewise, whose run it is."""


def exists(connection: sa.Connection) -> bool:
    """Whether the tables are there. Raises StateError if they are a newer version's."""
    if not sa.inspect(connection).has_table(tables.schema.name, schema_of(connection)):
        return False
    version = execute(connection, sa.select(sa.func.max(tables.schema.c.version))).scalar()
    if version is not None and version > tables.SCHEMA_VERSION:
        raise StateError(
            f"The tables backfill_* are of version {version}; this backfill knows"
            f" {tables.SCHEMA_VERSION}. Install the newer backfill that made them."
        )
    return version is not None


def refuse_missing(connection: sa.Connection) -> None:
    """Raise StateError where the version says that all tables are there, and some are not."""
    inspector, schema = sa.inspect(connection), schema_of(connection)
    gone = [name for name in sorted(tables.NAMES) if not inspector.has_table(name, schema)]
    if gone:
        raise StateError(
            f"Somebody has dropped {', '.join(gone)}, and with it what runs had recorded. Restore"
            " it from a backup; or drop all tables backfill_*, and every backfill begins anew."
        )


def create_tables(connection: sa.Connection) -> None:
    """Create what is missing; the version comes last: where it is, everything is."""
    inspector, schema = sa.inspect(connection), schema_of(connection)
    if schema is not None and schema not in inspector.get_schema_names():
        raise StateError(
            f"There is no schema {schema!r} for the tables backfill_*, or this user may not see it."
            " Create it, or take `state_schema` out of the configuration."
        )
    others = [table for table in tables.metadata.sorted_tables if table is not tables.schema]
    for table in [*others, tables.schema]:
        if not inspector.has_table(table.name, schema):
            execute(connection, CreateTable(table))
            for index in table.indexes:
                execute(connection, CreateIndex(index))
    execute(connection, sa.insert(tables.schema).values(version=tables.SCHEMA_VERSION))


@as_written
def current(connection: sa.Connection, name: str, *, lock: Dialect | None = None) -> Run | None:
    """Return a backfill's latest run; with `lock`, keep others from changing its status."""
    statement = sa.select(_run).where(_run.c.name == name).order_by(_run.c.number.desc()).limit(1)
    if lock is not None and lock.row_locks:
        statement = statement.with_for_update(key_share=True)
    row = execute(connection, statement).first()
    return None if row is None else _to_run(row)


@as_written
def latest(connection: sa.Connection) -> list[Run]:
    """Return the latest run of every backfill that was ever run, by name."""
    newest = sa.select(_run.c.name, sa.func.max(_run.c.number).label("number"))
    last = newest.group_by(_run.c.name).subquery()
    statement = sa.select(_run).join(
        last, sa.and_(_run.c.name == last.c.name, _run.c.number == last.c.number)
    )
    return [_to_run(row) for row in execute(connection, statement.order_by(_run.c.name))]


def unproved(name: str, schema: str | None) -> sa.ColumnElement[bool]:
    """Return SQL for: the latest run of a backfill has not succeeded, or there is none; for tables
    in a schema, if one is given."""
    run = _run.to_metadata(sa.MetaData(schema=schema))
    latest = sa.select(sa.func.max(run.c.number)).where(run.c.name == name).scalar_subquery()
    succeeded: sa.Select[Any] = sa.select(sa.literal_column("1")).where(
        run.c.name == name, run.c.number == latest, run.c.status == Status.SUCCEEDED.value
    )
    return ~sa.exists(succeeded)


@as_written
def by_id(connection: sa.Connection, run_id: int) -> Run | None:
    """Return a run as it is now."""
    row = execute(connection, sa.select(_run).where(_run.c.id == run_id)).first()
    return None if row is None else _to_run(row)


def insert(connection: sa.Connection, dialect: Dialect, new: NewRun, version_table: str) -> int:
    """Add a pending run; its id. IntegrityError: another runner added this number first."""
    result = execute(
        connection,
        sa.insert(_run).values(
            name=new.name,
            number=new.number,
            revision=new.revision,
            fingerprint=new.fingerprint,
            status=Status.PENDING.value,
            pass_number=1,
            settings=json.dumps(
                {
                    **new.settings,
                    _KEY: new.key,
                    _EMPTY: new.is_empty,
                    _PROJECT: version_table,
                }
            ),
            rows_estimated=new.rows_estimated,
            horizon=new.horizon,
            created_at=dialect.now(),
            updated_at=dialect.now(),
        ),
    )
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])


def set_status(
    connection: sa.Connection, dialect: Dialect, run: Run, wanted: Status, error: str | None
) -> None:
    """Write a status that the state machine was asked about, and note who did it."""
    now = dialect.now()
    over = {"finished_at": now} if wanted in (Status.SUCCEEDED, Status.CANCELLED) else {}
    execute(
        connection,
        sa.update(_run)
        .where(_run.c.id == run.id)
        .values(status=wanted.value, error=error, updated_at=now, **over),
    )
    note(connection, dialect, run.name, run.id, wanted.value, error or "")


def set_fingerprint(connection: sa.Connection, run: Run, fingerprint: str) -> None:
    """Bind the run to another state of its declaration."""
    execute(connection, sa.update(_run).where(_run.c.id == run.id).values(fingerprint=fingerprint))


@as_written
def change(
    connection: sa.Connection, dialect: Dialect, run: Run, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Change settings of a run, None taking a change back; all that are changed then."""
    text = execute(connection, sa.select(_run.c.settings).where(_run.c.id == run.id)).scalar_one()
    changed = {k: v for k, v in {**run.changed, **changes}.items() if v is not None}
    settings = json.dumps({**json.loads(text), _CHANGED: changed})
    statement = sa.update(_run).where(_run.c.id == run.id)
    execute(connection, statement.values(settings=settings, updated_at=dialect.now()))
    return changed


def touch(connection: sa.Connection, dialect: Dialect, run: Run) -> None:
    """Say that the run's row was written to just now."""
    execute(connection, sa.update(_run).where(_run.c.id == run.id).values(updated_at=dialect.now()))


def next_pass(connection: sa.Connection, dialect: Dialect, run: Run) -> bool:
    """Count the pass up, unless another runner just did."""
    advanced = execute(
        connection,
        sa.update(_run)
        .where(_run.c.id == run.id, _run.c.pass_number == run.pass_number)
        .values(pass_number=run.pass_number + 1, updated_at=dialect.now()),
    )
    return advanced.rowcount == 1


def note(
    connection: sa.Connection,
    dialect: Dialect,
    name: str,
    run_id: int | None,
    what: str,
    details: str,
) -> None:
    """Add to the audit: who did what when."""
    execute(
        connection,
        sa.insert(_event).values(
            name=name,
            run_id=run_id,
            happened_at=dialect.now(),
            what=what,
            who=_who(),
            details=details,
        ),
    )


@as_written
def last_number(connection: sa.Connection, run_id: int, what: str) -> int:
    """Return the details of a run's last such event, which are a number; 0 if there is none."""
    statement = sa.select(_event.c.details).where(_event.c.run_id == run_id, _event.c.what == what)
    found = execute(connection, statement.order_by(_event.c.id.desc()).limit(1)).scalar()
    return int(found or 0)


def last_note(connection: sa.Connection, run_id: int) -> tuple[str, str] | None:
    """Return what happened to a run last, and its details."""
    statement = sa.select(_event.c.what, _event.c.details).where(_event.c.run_id == run_id)
    row = execute(connection, statement.order_by(_event.c.id.desc()).limit(1)).first()
    return None if row is None else (row.what, row.details)


@as_written
def end_of_sync(connection: sa.Connection, name: str) -> tuple[str, datetime] | None:
    """Return which revision has ended a backfill's triggers, "" for a person, and when; None:
    nobody has since they were installed."""
    statement = sa.select(_event.c.what, _event.c.details, _event.c.happened_at).where(
        _event.c.name == name, _event.c.what.in_((SYNC_INSTALLED, SYNC_REMOVED))
    )
    row = execute(connection, statement.order_by(_event.c.id.desc()).limit(1)).first()
    return (row.details, row.happened_at) if row and row.what == SYNC_REMOVED else None


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = "unknown"  # a container whose user id has no name
    return f"{user}@{socket.gethostname()}"[:255]


def _to_run(row: Any) -> Run:
    kept = json.loads(row.settings)
    return Run(
        id=row.id,
        name=row.name,
        number=row.number,
        revision=row.revision,
        fingerprint=row.fingerprint,
        status=Status(row.status),
        pass_number=row.pass_number,
        rows_estimated=row.rows_estimated,
        horizon=row.horizon,
        error=row.error,
        updated_at=row.updated_at,
        changed=dict(kept.get(_CHANGED, {})),
        key=tuple((str(name), str(kind)) for name, kind in kept.get(_KEY, ())),
        is_empty=bool(kept.get(_EMPTY)),
        version_table=kept.get(_PROJECT, ""),
    )
