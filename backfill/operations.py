"""What Alembic learns from `import backfill`: the gate, and to leave our tables alone."""

from __future__ import annotations

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
from backfill.errors import BackfillError
from backfill.proof import incomplete_reason
from backfill.targets import bind

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.migration import MigrationContext

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
    context = operations.migration_context
    if context.as_sql:
        context.impl.static_output(
            f"-- requires that backfill {operation.name!r} is complete: `backfill verify"
            f" {operation.name}`"
        )
        return
    reason = _why_not(context, operation.name)
    if reason is not None:
        _keep_earlier_revisions(context)
        raise CommandError(
            f"Backfill {operation.name!r} is not complete: {reason}."
            f" Run `backfill run {operation.name}`, then upgrade again."
        )


def _why_not(context: MigrationContext, name: str) -> str | None:
    environment = context.environment_context
    connection = context.connection
    assert environment is not None and connection is not None
    try:
        (declared,) = named(discover(environment.script, frozenset()), [name])
        target = bind(declared.declaration, dialect_for(connection.engine), connection)
        return incomplete_reason(connection, target)
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
