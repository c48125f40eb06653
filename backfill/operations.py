"""What Alembic learns from `import backfill`: the gate, and to leave our tables alone."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

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

from backfill import tables
from backfill.dialects import dialect_for
from backfill.discovery import discover, named
from backfill.errors import BackfillError, UnknownBackfill
from backfill.proof import incomplete_reason
from backfill.targets import bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection

    from backfill.declaration import Backfill

# -- the gate ----------------------------------------------------------------------------


@Operations.register_operation("require_backfill")
class RequireBackfill(MigrateOperation):
    """`op.require_backfill("name")`, first in a revision: refuse until it is complete."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def require_backfill(cls, operations: Operations, name: str) -> None:
        """Refuse this revision until the backfill `name` is complete, as the data say.

        Must be the first operation of its `upgrade()`: what precedes it in the same
        transaction is committed. Raises alembic's CommandError, with the command to run.
        """
        operations.invoke(cls(name))


@Operations.implementation_for(RequireBackfill)
def _require_backfill(operations: Operations, operation: RequireBackfill) -> None:
    context, name = operations.migration_context, operation.name
    if context.as_sql:
        context.impl.static_output(
            f"-- requires that backfill {name!r} is complete: `backfill verify {name}`"
            f"{_OFFLINE.format(name=name)}"
        )
        return
    with _told_by_alembic(context):
        reason = _why_not(context, name)
    if reason is not None:
        _keep_earlier_revisions(context)
        raise CommandError(
            f"Backfill {name!r} is not complete: {reason}."
            f" Run `backfill run {name}`, then upgrade again."
        )
    _stop_sync(context, name)


def _why_not(context: MigrationContext, name: str) -> str | None:
    connection = _connection(context)
    target = bind(_declaration(context, name), dialect_for(connection.engine), connection)
    return incomplete_reason(connection, target)


def _declaration(context: MigrationContext, name: str) -> type[Backfill]:
    environment = context.environment_context
    assert environment is not None
    (declared,) = named(discover(environment.script, frozenset()), [name])
    return declared.declaration


def _connection(context: MigrationContext) -> Connection:
    assert context.connection is not None
    return context.connection


@contextmanager
def _told_by_alembic(context: MigrationContext) -> Iterator[None]:
    """Turn our errors into Alembic's, which it shows in one line."""
    try:
        yield
    except BackfillError as error:
        _keep_earlier_revisions(context)
        raise CommandError(str(error)) from error


def _keep_earlier_revisions(context: MigrationContext) -> None:
    """Commit the revisions before this one, with their stamps.

    An upgrade in one transaction would roll back the column that the backfill is to fill, so
    that it could never start. Leaving an empty autocommit block commits what precedes it.
    """
    if context._transaction is not None and not context._in_external_transaction:
        with context.autocommit_block():
            pass


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
        nothing. Raises alembic's CommandError where the table's lock is not to be had.
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
        sync.remove(sought, dialect_for(connection.engine), connection)


_OFFLINE = "; triggers of `sync` are not removed by this script: `backfill cancel {name}`"


@renderers.dispatch_for(RequireBackfill)
def _render(autogen_context: AutogenContext, operation: RequireBackfill) -> str:
    autogen_context.imports.add("import backfill  # noqa: F401  (registers op.require_backfill)")
    return f"op.require_backfill({operation.name!r})"


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
