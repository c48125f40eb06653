"""Keeping up with new writes: triggers that do to them what the walk does to the rows before.

They are installed before a run's bound is taken, and stay until the gate or `cancel` removes
them. Their names come from the backfill's name alone, so that they can be found and removed when
neither the table nor the class is any more what it was.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill import store
from backfill.dialects import PASSING, ErrorKind, Limits
from backfill.dialects.triggers import Place, Script, mentions
from backfill.errors import DeclarationError, RunFailed, TableBusy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backfill.declaration import Backfill
    from backfill.dialects import Dialect
    from backfill.dialects.triggers import Triggers
    from backfill.targets import Target

    Sought = type[Backfill] | str
    """A backfill, or its name where the class is gone."""

Trying = Callable[[], AbstractContextManager[Any]]

_LONGEST_NAME = 48
"""PostgreSQL's names have 63 bytes; `zz01_` and `_insert` come to this."""
_PATIENCE_SECONDS = 30.0
"""How long a removal is tried again, a short wait each time, before a person has to look."""
_LIMITS = Limits(lock_timeout=1, statement_timeout=5, idle_timeout=5, label="backfill: sync")
_BUSY = (ErrorKind.LOCKED, ErrorKind.TOO_SLOW, ErrorKind.CONFLICT)


def trigger_name(name: str) -> str:
    """Return how the names of a backfill's triggers begin, whatever letters it has."""
    plain = re.sub(r"[^a-z0-9_]", "_", name.lower())
    whole = f"backfill_sync_{plain}"
    if plain == name and len(whole) <= _LONGEST_NAME:
        return whole
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{whole[: _LONGEST_NAME - 9]}_{digest}"


# -- installing --------------------------------------------------------------------------


def checked(target: Target, connection: sa.Connection) -> Triggers:
    """Return the triggers of a target's database. Raises DeclarationError where its SQL would not
    do there what it does in the walk; reads only."""
    triggers = target.dialect.triggers
    if triggers is None:
        raise _unfit(target, "triggers are made on PostgreSQL, MariaDB and SQLite only")
    problem = triggers.unfit(connection, target)
    if problem is not None:
        raise _unfit(target, problem)
    script = Script(target)
    _check_columns(target, triggers, script)
    _check_foreign_keys(target, triggers, script, connection)
    _check_sql(target, triggers, script, connection)
    return triggers


def ddl(target: Target, connection: sa.Connection) -> list[str]:
    """Return the statements that install the triggers. Raises DeclarationError."""
    return checked(target, connection).ddl(connection, target, _place(target))


def install(target: Target, connection: sa.Connection) -> bool:
    """Install or mend the triggers, in the caller's short transaction; whether that was needed.

    Raises TableBusy where the lock was not to be had at once: roll back and try again.
    """
    triggers, dialect = checked(target, connection), target.dialect
    try:
        is_new = triggers.install(connection, target, _place(target))
        if is_new and store.exists(connection):
            store.note(connection, dialect, target.declaration.name, store.SYNC_INSTALLED)
        return is_new
    except sa.exc.DBAPIError as error:
        kind = dialect.error_kind(error)
        if kind in _BUSY:
            raise TableBusy(target.table.fullname) from error
        if kind is ErrorKind.RIGHTS:
            raise RunFailed(
                f"{target.declaration.name}: the database refuses this user the triggers of `sync`"
                f" on {target.table.fullname!r}. {triggers.privileges}."
            ) from error
        raise


def reinstate(target: Target) -> bool:
    """Install the triggers on a connection of our own; whether there were none.

    Raises TableBusy as `remove` does.
    """
    dialect = target.dialect

    def once() -> bool:
        with dialect.transaction(connection, _LIMITS):
            return install(target, connection)

    with dialect.open(_LIMITS) as connection:
        return _patiently(once, dialect)


def _place(target: Target) -> Place:
    name = target.declaration.name
    return Place(target.table.schema, target.table.name, trigger_name(name), name)


def _unfit(target: Target, problem: str) -> DeclarationError:
    return DeclarationError(
        f"{target.declaration.name}: `sync` does not work here: {problem}. Leave `sync` out, and"
        " deploy the code that writes these columns before the run."
    )


def _check_columns(target: Target, triggers: Triggers, script: Script) -> None:
    """Refuse what a trigger does not know yet when it computes, and rows that are not the one."""
    for column in target.table.c:
        if triggers.is_unknown(column) and script.mentions(column.name):
            raise _unfit(
                target,
                f"`where` or `values` use {column.name!r}, whose value a trigger does not know yet",
            )
    whole = script.over(script.row_of("NEW"), script.columns, pending=True)
    table = re.escape(target.table.name)
    if re.search(rf"(?i)\b(?:from|join)\s+(?:[\w\"`\[\]]+\.)?[\"`\[]?{table}(?!\w)", whole):
        raise _unfit(
            target,
            f"`where` or `values` look at other rows of {target.table.name!r}, and a trigger cannot"
            " follow when those change",
        )


def _check_foreign_keys(
    target: Target, triggers: Triggers, script: Script, connection: sa.Connection
) -> None:
    """Refuse columns that a foreign key sets: the triggers would set them back, to a row of the
    other table that is gone. And values that are made of such where no trigger would fire."""
    unseen = triggers.unseen(connection, target.table)
    for name in unseen:
        if script.uses(name):
            raise _unfit(
                target,
                f"{name!r} is in a foreign key with {unseen[name]}, which fires no triggers here,"
                " so that what `values` make of it would not follow",
            )
    acted_on = triggers.acted_on(connection, target.table)
    for name in target.assignments:
        if name in acted_on:
            raise _unfit(
                target,
                f"{name!r} is in a foreign key with {acted_on[name]}, and the triggers would take"
                " back what that has written",
            )


def _check_sql(
    target: Target, triggers: Triggers, script: Script, connection: sa.Connection
) -> None:
    """Let the database parse the SQL over a row as the triggers see it."""
    row = f"SELECT * FROM {triggers.table(_place(target))} WHERE 1 = 0"
    statement = script.over(row, script.columns, pending=True)
    try:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True}).all()
    except sa.exc.DBAPIError as error:
        if target.dialect.error_kind(error) in PASSING:
            raise
        text = str(error.orig).strip()
        raise _unfit(target, f"a trigger cannot compute this SQL ({text}): {statement}") from error


def advice(target: Target, connection: sa.Connection) -> list[str]:
    """Return what somebody should know before the triggers are there."""
    name, triggers, script = target.declaration.name, target.dialect.triggers, Script(target)
    if triggers is None:
        return []
    refusing = {*triggers.refusing(connection, target), *_checked_columns(target, connection)}
    return [
        "triggers stay until the gate or `backfill cancel` removes them; a downgrade that drops"
        f' what they write begins with op.stop_backfill_sync("{name}").',
        *(
            f"a constraint looks at {column!r}: a value of the triggers that it refuses fails the"
            " application's statement, not only a chunk of ours."
            for column in sorted(refusing.intersection(target.assignments))
        ),
        *(
            f"{column!r} keeps its old value where a change of its sources leaves none that fits,"
            " since it takes no NULL, or stands beside a value that is computed from what is"
            " written: nothing finds such a row."
            for column in script.stale
        ),
        *triggers.advice(connection, target),
    ]


def _checked_columns(target: Target, connection: sa.Connection) -> Iterator[str]:
    inspector = sa.inspect(connection)
    for check in inspector.get_check_constraints(target.table.name, target.table.schema):
        yield from (name for name in target.assignments if mentions(check["sqltext"], name))
    for key in inspector.get_foreign_keys(target.table.name, target.table.schema):
        yield from key["constrained_columns"]


# -- finding and removing ------------------------------------------------------------------


def is_installed(of: Sought, dialect: Dialect, connection: sa.Connection) -> bool:
    """Whether the database has triggers of this backfill; reads only."""
    return bool(_found(of, dialect, connection))


def left_behind(
    names: Iterable[str], dialect: Dialect, connection: sa.Connection
) -> list[tuple[str, str]]:
    """Return table and name of the triggers that belong to none of these backfills."""
    if dialect.triggers is None:
        return []
    known = {trigger_name(name) for name in names}
    return [
        (table, trigger)
        for table, trigger in dialect.triggers.installed(connection)
        if re.sub(r"^zz\d*_|_(?:insert|update)$", "", trigger) not in known
    ]


def remove(
    of: Sought,
    dialect: Dialect,
    connection: sa.Connection,
    *,
    by: str = "",
    trying: Trying = nullcontext,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Remove what there is; whether there was anything. `by` is the revision that wants it;
    `trying` wraps each try, in a transaction of its own where the caller has none open.

    Nobody has to wait for us for long: the lock is asked for again and again, for a short time
    each. Raises TableBusy when even that went on for too long.
    """

    def once() -> bool:
        with trying():
            places = _found(of, dialect, connection)
            if places:
                _note_end(_name(of), by, dialect, connection)
            for place in places:
                _remove_from(place, dialect, connection)
        return bool(places)

    return _patiently(once, dialect, sleep)


def _note_end(name: str, by: str, dialect: Dialect, connection: sa.Connection) -> None:
    """Note who ends the triggers, first: on MariaDB the removal commits it, and what fails later
    does not take it back. Only once, though it may be tried again."""
    if store.exists(connection):
        last = store.end_of_sync(connection, name)
        if last is None or last[0] != by:
            store.note(connection, dialect, name, store.SYNC_REMOVED, by)


def _patiently(
    once: Callable[[], bool], dialect: Dialect, sleep: Callable[[float], None] = time.sleep
) -> bool:
    from backfill import retries  # here, since `status` needs none

    patiently = retries.retrying(
        kind_of=dialect.error_kind,
        recover=lambda *_: None,
        sleep=sleep,
        seconds=_PATIENCE_SECONDS,
    )
    return patiently(once)


def withdraw(of: Sought, dialect: Dialect) -> bool:
    """Remove what there is on a connection of our own; likewise."""
    with dialect.open(_LIMITS) as connection:
        return remove(
            of,
            dialect,
            connection,
            trying=lambda: dialect.transaction(connection, _LIMITS),
        )


def _remove_from(place: Place, dialect: Dialect, connection: sa.Connection) -> None:
    assert dialect.triggers is not None
    try:
        dialect.triggers.remove(connection, place)
    except sa.exc.DBAPIError as error:
        kind = dialect.error_kind(error)
        if kind in _BUSY:
            raise TableBusy(place.table) from error
        if kind is ErrorKind.RIGHTS:
            raise RunFailed(
                f"The triggers of {place.backfill!r} on {place.table!r} can be removed only by the"
                f" user who made them, or the table's owner: `backfill cancel {place.backfill}` as"
                " that user."
            ) from error
        raise


def _name(of: Sought) -> str:
    return of if isinstance(of, str) else of.name


def _found(of: Sought, dialect: Dialect, connection: sa.Connection) -> list[Place]:
    triggers = dialect.triggers
    if triggers is None:
        return []
    if isinstance(of, str):
        return triggers.named(connection, trigger_name(of), of)
    found = [triggers.find(connection, place) for place in _places(of)]
    return [place for place in found if place is not None]


def _places(declaration: type[Backfill]) -> Iterator[Place]:
    """Return where a backfill's triggers may be: `a.b` is a name, or one in a schema."""
    name = declaration.name
    yield Place(declaration.schema, declaration.table, trigger_name(name), name)
    if declaration.schema is None and "." in declaration.table:
        schema, table = declaration.table.rsplit(".", 1)
        yield Place(schema, table, trigger_name(name), name)
