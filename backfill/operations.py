"""What Alembic learns from `import backfill`: our operations, and to leave our tables alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic import util
from alembic.autogenerate import comparators, renderers
from alembic.operations.ops import DropIndexOp, DropTableOp, ModifyTableOps, UpgradeOps

from backfill import downgrades, tables
from backfill.gate import RequireBackfill
from backfill.sync_end import StopBackfillSync

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

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
