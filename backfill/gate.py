"""The gate: `op.require_backfill` lets a revision through once a backfill is complete."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import inspect

from backfill import placement, store
from backfill.configuration import settings_of, state_schema
from backfill.dialects import dialect_for, offline_check
from backfill.discovery import named
from backfill.errors import (
    BackfillRequired,
    DeclarationError,
    LeaseHeld,
    RunFailed,
    UpgradeFailed,
)
from backfill.migrating import (
    OFFLINE,
    applied_in,
    connection_of,
    declaration_of,
    declared_in,
    told_by_alembic,
)
from backfill.project import version_table
from backfill.proof import incomplete_reason, offline_conditions
from backfill.runs import Status
from backfill.sync_end import StopBackfillSync, stop_sync
from backfill.targets import bind, named_columns, place_of

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext

    from backfill.declaration import Backfill
    from backfill.settings import Settings
    from backfill.targets import Target


@Operations.register_operation("require_backfill")
class RequireBackfill(MigrateOperation):
    """`op.require_backfill("name")`, first in a revision: refuse until it is complete."""

    def __init__(self, name: str, *, inline: bool | None = None, keep_sync: bool = False) -> None:
        self.name = name
        self.inline = inline
        self.keep_sync = keep_sync

    @classmethod
    def require_backfill(
        cls,
        operations: Operations,
        name: str,
        *,
        inline: bool | None = None,
        keep_sync: bool = False,
    ) -> None:
        """Refuse this revision until the backfill `name` is complete, as the data say.

        Its triggers of `sync` end here, but for `keep_sync`: then `op.replace_columns` ends them.
        Before that the gates that follow it in the revision are asked: none ends if one refuses.

        Must be the first operation of its `upgrade()`: what precedes it in the same
        transaction is committed. With `inline=True`, or by the setting `gate = "inline"`, a
        remainder of `inline_rows` at most is done here, on the revision's own connection.
        Raises alembic's CommandError, with the command to run.
        """
        operations.invoke(cls(name, inline=inline, keep_sync=keep_sync))

    def reverse(self) -> StopBackfillSync:
        """Return what a downgrade says instead: nothing is required of it."""
        return StopBackfillSync(self.name)

    def to_diff_tuple(self) -> tuple[str, str]:
        """Return what `alembic check` shows."""
        return ("require_backfill", self.name)


@Operations.implementation_for(RequireBackfill)
def _require_backfill(operations: Operations, operation: RequireBackfill) -> None:
    context, name = operations.migration_context, operation.name
    if context.as_sql:
        _write_check(context, name)
        return
    stands = placement.of_caller()
    with told_by_alembic(context, stands):
        _pass(context, operation, stands)
        _passed[context].remove(_gate_of(stands, name))
        if not operation.keep_sync and _has_triggers(context, name):
            for gate in placement.gates_behind():
                _pass(context, RequireBackfill(gate.name, **gate.options), stands)
    if not operation.keep_sync:
        stop_sync(context, name)


def _pass(
    context: MigrationContext, operation: RequireBackfill, stands: placement.Placement | None
) -> None:
    """Pass a gate, unless that was done before its turn. Raises BackfillRequired.

    Where one ends triggers, those behind it are passed early: were they to refuse only then, what
    old code writes until the next upgrade would be followed by nobody.
    """
    passed, gate = _passed.setdefault(context, set()), _gate_of(stands, operation.name)
    if gate in passed:
        return
    _refuse_too_early(context, operation.name, stands)
    reason = _why_not(context, operation)
    if reason is not None:
        raise BackfillRequired(operation.name, reason)
    passed.add(gate)


def _gate_of(stands: placement.Placement | None, name: str) -> tuple[str, str]:
    return ("" if stands is None else stands.revision, name)


def _has_triggers(context: MigrationContext, name: str) -> bool:
    from backfill import sync  # here, since `import backfill` stands in every revision

    connection = connection_of(context)
    dialect = dialect_for(connection.engine)
    return sync.is_installed(declaration_of(context, name), dialect, connection)


def _refuse_too_early(
    context: MigrationContext, name: str, stands: placement.Placement | None
) -> None:
    """Raise UpgradeFailed where the backfill's own revision is not applied: it would count as done
    before there was anything to do, or be done once more after that revision.

    Not asked about are a revision that was squashed, and the one in which the gate stands.
    """
    (one,) = named(declared_in(context), [name])
    here = "this revision" if stands is None else f"revision {stands.revision}"
    is_own = stands is not None and one.revision == stands.revision
    if one.is_known and not is_own and one.revision not in applied_in(context):
        raise UpgradeFailed(
            f"Backfill {name!r} runs after revision {one.revision}, which is not applied, and"
            f" {here} requires it. Let that come first: `depends_on = {one.revision!r}` in {here},"
            " or the gate in a later one, such as behind a merge of both branches."
        )


def _why_not(context: MigrationContext, operation: RequireBackfill) -> str | None:
    """Say why the gate stays shut, after the remainder was done where that is wanted."""
    connection = connection_of(context)
    declaration = declaration_of(context, operation.name)
    try:
        target = bind(declaration, dialect_for(connection.engine), connection)
    except DeclarationError:
        if operation.keep_sync and _is_replaced(context, declaration):
            return None
        raise
    reason = incomplete_reason(connection, target)
    assert context.config is not None
    said = {} if operation.inline is None else {"gate": _GATES[operation.inline]}
    how = settings_of(context.config, declaration, ("The revision", said))
    if reason is not None and how.gate != _GATES[True]:
        return reason
    from backfill import inline  # here, since `import backfill` stands in every revision

    if reason is not None:
        return _complete_inline(context, target, how)
    try:
        inline.record(connection, target, how, version_table(context))
    except LeaseHeld as error:
        return str(error).rstrip(".")
    return None


def _is_replaced(context: MigrationContext, declaration: type[Backfill]) -> bool:
    """Whether `op.replace_columns` has been here before it was interrupted: the backfill was
    complete, and the columns that it filled have other names by now, which is noted."""
    connection = connection_of(context)
    run = store.current(connection, declaration.name) if store.exists(connection) else None
    if run is None or run.status is not Status.SUCCEEDED:
        return False
    inspector = inspect(connection)
    schema, table = place_of(declaration, inspector)
    columns = {one["name"] for one in inspector.get_columns(table, schema)}
    written = set(named_columns(declaration))
    if not written or not written.isdisjoint(columns):
        return False
    replaced.setdefault(context, set()).update((schema, table, column) for column in written)
    return True


replaced: WeakKeyDictionary[MigrationContext, set[tuple[str | None, str, str]]]
replaced = WeakKeyDictionary()
"""Schema, table and name of columns that have other names by now, of each database that is being
migrated."""
_passed: WeakKeyDictionary[MigrationContext, set[tuple[str, str]]] = WeakKeyDictionary()
"""Revision and name of the gates that are passed before their turn, of each database that is
being migrated."""
_GATES = {True: "inline", False: "refuse"}


def _complete_inline(context: MigrationContext, target: Target, how: Settings) -> str | None:
    from backfill import inline  # here, since `import backfill` stands in every revision

    connection, declared = connection_of(context), declared_in(context)
    for other in named(declared, target.declaration.depends_on or [target.declaration.name]):
        if other.name in target.declaration.depends_on:
            needed = bind(other.declaration, target.dialect, connection)
            if incomplete_reason(connection, needed) is not None:
                return f"it depends on {other.name!r}, which is not complete"
    try:
        inline.complete(connection, target, how, version_table(context))
    except (RunFailed, LeaseHeld) as error:
        return str(error).rstrip(".")
    return None


def _write_check(context: MigrationContext, name: str) -> None:
    """Write a check into an offline script, where the database can express one."""
    conditions = offline_conditions(
        declaration_of(context, name), context.dialect, state_schema(context.config)
    )
    problem = f"Backfill {name} is not complete: backfill run {name}, then go on from here"
    check = offline_check(context.dialect, conditions, problem) if conditions else None
    context.impl.static_output(
        f"-- requires that backfill {name!r} is complete: `backfill verify {name}`"
        f"{OFFLINE.format(name=name)}"
    )
    if check is not None:
        with context.autocommit_block():  # what precedes it is kept, as it is online
            pass
        context.impl.static_output(check)
