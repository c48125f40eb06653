"""The end of `sync`: `op.stop_backfill_sync` removes a backfill's triggers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from alembic.operations import MigrateOperation, Operations

from backfill import placement
from backfill.dialects import dialect_for
from backfill.errors import UnknownBackfill
from backfill.migrating import OFFLINE, commit, connection_of, declaration_of, told_by_alembic

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext

    from backfill import sync


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
        context.impl.static_output(f"--{OFFLINE.format(name=operation.name)[1:]}")
        return
    stop_sync(context, operation.name)


def stop_sync(context: MigrationContext, name: str) -> None:
    """Remove the triggers of a backfill, as the operation does."""
    from backfill import sync  # here, since `import backfill` stands in every revision

    connection, stands = connection_of(context), placement.of_caller()
    by = "" if stands is None else stands.revision
    with told_by_alembic(context):
        sought: sync.Sought = name
        with suppress(UnknownBackfill):  # the class may be gone already
            sought = declaration_of(context, name)
        is_removed = sync.remove(sought, dialect_for(connection.engine), connection, by=by)
    if is_removed and stands is not None and stands.is_first:  # keep no half revision
        commit(context)
