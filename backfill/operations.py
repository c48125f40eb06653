"""What Alembic learns from `import backfill`: the gate, and to leave our tables alone."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from alembic import util
from alembic.autogenerate import comparators, renderers
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import (
    DropIndexOp,
    DropTableOp,
    ModifyTableOps,
    UpgradeOps,
)
from alembic.util import CommandError
from sqlalchemy import inspect

from backfill import downgrades, placement, store, tables
from backfill.configuration import settings_of, state_schema
from backfill.dialects import dialect_for, offline_check
from backfill.discovery import discover, named
from backfill.errors import (
    BackfillError,
    BackfillRequired,
    DeclarationError,
    LeaseHeld,
    RunFailed,
    UnknownBackfill,
)
from backfill.project import version_table
from backfill.proof import incomplete_reason, offline_conditions
from backfill.runs import Status
from backfill.targets import bind, named_columns, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection

    from backfill.declaration import Backfill
    from backfill.discovery import Declared
    from backfill.settings import Settings
    from backfill.targets import Target

# -- the gate ----------------------------------------------------------------------------


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
    with _told_by_alembic(context, stands):
        reason = _why_not(context, operation)
        if reason is not None:
            raise BackfillRequired(name, reason)
    if not operation.keep_sync:
        _stop_sync(context, name)


def _why_not(context: MigrationContext, operation: RequireBackfill) -> str | None:
    """Say why the gate stays shut, after the remainder was done where that is wanted."""
    connection = _connection(context)
    declaration = _declaration(context, operation.name)
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

    if reason is None:
        inline.record(connection, target, how, version_table(context))
        return None
    return _complete_inline(context, target, how)


def _is_replaced(context: MigrationContext, declaration: type[Backfill]) -> bool:
    """Whether `op.replace_columns` has been here before it was interrupted: the backfill was
    complete, and the columns that it filled have other names by now, which is noted."""
    connection = _connection(context)
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
_GATES = {True: "inline", False: "refuse"}


def _complete_inline(context: MigrationContext, target: Target, how: Settings) -> str | None:
    from backfill import inline  # here, since `import backfill` stands in every revision

    connection, declared = _connection(context), _declared(context)
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
        _declaration(context, name), context.dialect, state_schema(context.config)
    )
    problem = f"Backfill {name} is not complete: backfill run {name}, then go on from here"
    check = offline_check(context.dialect, conditions, problem) if conditions else None
    context.impl.static_output(
        f"-- requires that backfill {name!r} is complete: `backfill verify {name}`"
        f"{_OFFLINE.format(name=name)}"
    )
    if check is not None:
        with context.autocommit_block():  # what precedes it is kept, as it is online
            pass
        context.impl.static_output(check)


def _declaration(context: MigrationContext, name: str) -> type[Backfill]:
    (declared,) = named(_declared(context), [name])
    return declared.declaration


def _declared(context: MigrationContext) -> Sequence[Declared]:
    environment = context.environment_context
    assert environment is not None
    return discover(environment.script, frozenset())


def _connection(context: MigrationContext) -> Connection:
    """Return the migration's own connection, which finds our tables from now on."""
    assert context.connection is not None
    return store.keep_in(context.connection, state_schema(context.config))


@contextmanager
def _told_by_alembic(
    context: MigrationContext, stands: placement.Placement | None = None
) -> Iterator[None]:
    """Turn our errors into Alembic's, which it shows in one line; keep what was done before."""
    try:
        yield
    except BackfillError as error:
        trouble = _keep_earlier_revisions(context, stands)
        raise CommandError(f"{error}{trouble}") from error


def _keep_earlier_revisions(context: MigrationContext, stands: placement.Placement | None) -> str:
    """Commit the revisions before this one, with their stamps; what is to be said if not.

    An upgrade in one transaction would roll back the column that the backfill is to fill, so
    that it could never start. Leaving an empty autocommit block commits what precedes it.
    """
    if stands is not None and stands.preceding is not None:
        return _move_to_top(stands, is_undone=context.impl.transactional_ddl)
    if context._in_external_transaction:
        is_undone = context.impl.transactional_ddl
        return _upgrade_first(stands, is_undone=is_undone) if stands is not None else ""
    if context._transaction is not None:
        with context.autocommit_block():
            pass
    return ""


def _move_to_top(stands: placement.Placement, *, is_undone: bool) -> str:
    """Something comes before the gate in its own revision."""
    return (
        f" Besides, the gate has to be the first operation of revision {stands.revision}: line"
        f" {stands.preceding} of its file comes before it, and"
        + (
            " is rolled back now, with all that this upgrade did. Move the gate to the top."
            if is_undone
            else " is done already. Undo that by hand, and move the gate to the top."
        )
    )


def _upgrade_first(stands: placement.Placement, *, is_undone: bool) -> str:
    """Only env.py could commit the revisions before."""
    if stands.down_revision is None:
        return ""
    begun = " Besides, env.py has begun the transaction itself, so"
    if is_undone:
        return (
            f"{begun} the revisions before {stands.revision} are rolled back with it, if this"
            f" upgrade applied any: `alembic upgrade {stands.down_revision}` first."
        )
    return (
        f"{begun} that the revisions before {stands.revision} are applied may not be recorded,"
        " though this database keeps their tables: where `alembic current` says so, see what is"
        f" there, then `alembic stamp {stands.down_revision}`."
    )


# -- the end of `sync` ---------------------------------------------------------------------


@Operations.register_operation("stop_backfill_sync")
class StopBackfillSync(MigrateOperation):
    """`op.stop_backfill_sync("name")`, first in a downgrade that drops the columns."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def stop_backfill_sync(cls, operations: Operations, name: str) -> None:
        """Remove the triggers of the backfill `name`, if there are any.

        SQLite drops no column that they write before that; elsewhere they would be left, and do
        nothing. As the first operation of a revision it is committed at once on PostgreSQL, with
        the revisions before; else nobody gets at the table until the transaction ends. Raises
        alembic's CommandError where the table's lock is not to be had.
        """
        operations.invoke(cls(name))


@Operations.implementation_for(StopBackfillSync)
def _stop_backfill_sync(operations: Operations, operation: StopBackfillSync) -> None:
    context = operations.migration_context
    if context.as_sql:
        context.impl.static_output(f"--{_OFFLINE.format(name=operation.name)[1:]}")
        return
    _stop_sync(context, operation.name)


def _stop_sync(context: MigrationContext, name: str) -> None:
    from backfill import sync  # here, since `import backfill` stands in every revision

    connection = _connection(context)
    with _told_by_alembic(context):
        sought: sync.Sought = name
        with suppress(UnknownBackfill):  # the class may be gone already
            sought = _declaration(context, name)
        is_removed = sync.remove(sought, dialect_for(connection.engine), connection)
    stands = placement.of_caller()
    if is_removed and (stands is None or stands.preceding is None):  # keep no half revision
        commit(context)


def commit(context: MigrationContext) -> None:
    """Let go of a table's lock before anything else is waited for, where the transaction is
    Alembic's own: an empty autocommit block commits what precedes it."""
    is_own = context._transaction is not None and not context._in_external_transaction
    if is_own and context.impl.transactional_ddl:
        with context.autocommit_block():
            pass


_OFFLINE = "; triggers of `sync` are not removed by this script: `backfill cancel {name}`"


IMPORT = "import backfill  # noqa: F401  (registers op.require_backfill)"


@renderers.dispatch_for(RequireBackfill)
def _render(autogen_context: AutogenContext, operation: RequireBackfill) -> str:
    autogen_context.imports.add(IMPORT)
    inline = "" if operation.inline is None else f", inline={operation.inline}"
    keep_sync = ", keep_sync=True" if operation.keep_sync else ""
    return f"op.require_backfill({operation.name!r}{inline}{keep_sync})"


@renderers.dispatch_for(StopBackfillSync)
def _render_stop(autogen_context: AutogenContext, operation: StopBackfillSync) -> str:
    autogen_context.imports.add(IMPORT)
    return f"op.stop_backfill_sync({operation.name!r})"


# -- autogenerate ------------------------------------------------------------------------


def _is_ours(operation: Any) -> bool:
    kinds = (DropTableOp, DropIndexOp, ModifyTableOps)
    return isinstance(operation, kinds) and operation.table_name in tables.NAMES


def _leave_our_tables(
    autogen_context: AutogenContext, upgrade_ops: UpgradeOps, schemas: Any
) -> Any:
    """Take back what the comparison says of tables that no model has: ours."""
    upgrade_ops.ops[:] = [op for op in upgrade_ops.ops if not _is_ours(op)]
    return _GO_ON


if hasattr(util, "PriorityDispatchResult"):  # Alembic 1.18 and later
    _GO_ON: Any = util.PriorityDispatchResult.CONTINUE
    comparators.dispatch_for("schema", priority=util.DispatchPriority.LAST)(_leave_our_tables)
else:
    _GO_ON = None
    comparators.dispatch_for("schema")(_leave_our_tables)

# -- downgrades --------------------------------------------------------------------------

downgrades.watch()
