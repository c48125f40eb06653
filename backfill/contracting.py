"""What Alembic learns for the last revision of three: NOT NULL, and one column for another.

`op.set_not_null`, `op.drop_not_null` and `op.replace_columns` are written by `backfill revision
--autogenerate`. Each does on every database what is in nobody's way there, and can be repeated
after it was killed.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.autogenerate import renderers
from alembic.operations import MigrateOperation, Operations
from alembic.util import CommandError

from backfill.dialects import ErrorKind, Place, columns_of, dialect_for
from backfill.dialects.triggers import Place as TriggerPlace
from backfill.gate import replaced
from backfill.migrating import commit
from backfill.operations import IMPORT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.migration import MigrationContext

    from backfill.dialects import Columns, Step

PATIENCE_SECONDS = 60.0
"""How long the table's lock is asked for, a short wait each time, before a person has to look."""
_REST_SECONDS = 0.3
_WAITS = (0.05, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5)
"""Seconds that a try waits, with everybody queued behind it. The last is above PostgreSQL's
`deadlock_timeout`, after which an autovacuum gives way."""
_BUSY = (ErrorKind.LOCKED, ErrorKind.TOO_SLOW, ErrorKind.CONFLICT)


class _OnColumn(MigrateOperation):
    """An operation on one column of a table."""

    verb: str

    def __init__(
        self, table_name: str, column_name: str, *, existing_type: Any, schema: str | None = None
    ) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.existing_type = existing_type
        self.schema = schema

    def alter(self, operations: Operations, **changes: Any) -> None:
        """Do a plain ALTER TABLE, which on SQLite copies the table. Raises CommandError."""
        context = operations.migration_context
        connection, lost = None if context.as_sql else context.connection, list[str]()
        if connection is not None:
            columns, place = columns_of(context.dialect), self.place(context)
            reason = columns.refusal(connection, place)
            if reason is not None:
                raise CommandError(f"{self} was not changed: {reason}.")
            lost = columns.lost(connection, place)
            if lost:
                _lock(context, columns, self)
            for statement in columns.leftovers(connection, place):
                operations.execute(_literally(statement))
        with operations.batch_alter_table(self.table_name, schema=self.schema) as batch:
            batch.alter_column(self.column_name, existing_type=self.existing_type, **changes)
        for statement in lost:
            operations.execute(_literally(statement))

    def place(self, context: MigrationContext) -> Place:
        """Return the column as the database's SQL has it."""
        quoting = context.dialect.identifier_preparer
        return Place(self.table_name, self.column_name, self.schema, quoting)

    def __str__(self) -> str:
        return f"{self.table_name}.{self.column_name}"


@Operations.register_operation("set_not_null")
class SetNotNull(_OnColumn):
    """`op.set_not_null("users", "email", existing_type=sa.Text())`."""

    verb = "set_not_null"

    @classmethod
    def set_not_null(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        existing_type: Any,
        schema: str | None = None,
    ) -> None:
        """Make a column of a live table NOT NULL, behind the gate of the backfill that fills it.

        PostgreSQL: a CHECK is validated beside readers and writers, proves it to SET NOT NULL,
        and goes again; what precedes this in the same transaction is committed. MariaDB: the
        table is rebuilt in place, beside them. SQLite: it is copied (batch_alter_table).
        Raises alembic's CommandError if a row has no value, or the table's lock is not to be had.
        """
        operations.invoke(cls(table_name, column_name, existing_type=existing_type, schema=schema))

    def reverse(self) -> DropNotNull:
        """Return what a downgrade does."""
        names = self.table_name, self.column_name
        return DropNotNull(*names, existing_type=self.existing_type, schema=self.schema)


@Operations.register_operation("drop_not_null")
class DropNotNull(_OnColumn):
    """`op.drop_not_null("users", "email", existing_type=sa.Text())`."""

    verb = "drop_not_null"

    @classmethod
    def drop_not_null(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        existing_type: Any,
        schema: str | None = None,
    ) -> None:
        """Let a column have no value: `set_not_null` taken back."""
        operations.invoke(cls(table_name, column_name, existing_type=existing_type, schema=schema))

    def reverse(self) -> SetNotNull:
        """Return what a downgrade does."""
        names = self.table_name, self.column_name
        return SetNotNull(*names, existing_type=self.existing_type, schema=self.schema)


@Operations.register_operation("replace_columns")
class ReplaceColumns(MigrateOperation):
    """`op.replace_columns("users", {"age": "age_new"}, backfills=["fill_users_age_new"])`."""

    def __init__(
        self,
        table_name: str,
        replacements: Mapping[str, str],
        *,
        backfills: Sequence[str],
        schema: str | None = None,
    ) -> None:
        self.table_name = table_name
        self.replacements = dict(replacements)
        self.backfills = list(backfills)
        self.schema = schema

    @classmethod
    def replace_columns(
        cls,
        operations: Operations,
        table_name: str,
        replacements: Mapping[str, str],
        *,
        backfills: Sequence[str],
        schema: str | None = None,
    ) -> None:
        """Drop columns, and give their names to those that backfills have filled from them.

        `replacements` leads from the old columns to the new ones. The triggers of the backfills'
        `sync` go in the same moment, while nobody else is at the table, so that no write to an
        old column is lost; PostgreSQL commits that, and what precedes it. MariaDB from 10.5, MySQL
        from 8.0.
        Raises alembic's CommandError if the table's lock is not to be had.
        """
        operations.invoke(cls(table_name, replacements, backfills=backfills, schema=schema))

    def place(self, context: MigrationContext) -> Place:
        """Return the table, as that of its first column."""
        quoting = context.dialect.identifier_preparer
        return Place(self.table_name, next(iter(self.replacements)), self.schema, quoting)

    def __str__(self) -> str:
        return f"{self.table_name}.{', '.join(self.replacements)}"


_Changed = _OnColumn | ReplaceColumns


@Operations.implementation_for(ReplaceColumns)
def _replace_columns(operations: Operations, operation: ReplaceColumns) -> None:
    context = operations.migration_context
    columns = columns_of(context.dialect)
    if context.as_sql:
        for statement in columns.replace(operation.place(context), operation.replacements):
            context.impl.static_output(f"{statement};")
        return
    connection = context.connection
    assert connection is not None
    left = _left_to_replace(operation, connection)
    if not left:
        return
    _lock(context, columns, operation)
    try:
        _end_sync(operation, connection)
        for statement in columns.replace(operation.place(context), left):
            connection.execute(_literally(statement))
    finally:
        for statement in columns.unlock():
            connection.execute(_literally(statement))
    commit(context)


def _left_to_replace(operation: ReplaceColumns, connection: sa.Connection) -> dict[str, str]:
    """Return what a run that was killed behind it has not done already."""
    found = sa.inspect(connection).get_columns(operation.table_name, operation.schema)
    known = {one["name"] for one in found}
    return {
        column: other
        for column, other in operation.replacements.items()
        if other in known or column not in known
    }


def _end_sync(operation: ReplaceColumns, connection: sa.Connection) -> None:
    from backfill.sync import trigger_name  # here, since `import backfill` stands in every revision

    triggers = dialect_for(connection.engine).triggers
    if triggers is None:
        return
    for name in operation.backfills:
        names = operation.schema, operation.table_name, trigger_name(name)
        triggers.remove(connection, TriggerPlace(*names, name))


@Operations.implementation_for(DropNotNull)
def _drop_not_null(operations: Operations, operation: DropNotNull) -> None:
    context = operations.migration_context
    columns = columns_of(context.dialect)
    connection = None if context.as_sql else context.connection
    steps = columns.nullable(connection, operation.place(context))
    if steps is None:
        operation.alter(operations, nullable=True)
        return
    for step in steps:
        _patiently(context, columns, step, operation)


@Operations.implementation_for(SetNotNull)
def _set_not_null(operations: Operations, operation: SetNotNull) -> None:
    context = operations.migration_context
    connection = None if context.as_sql else context.connection
    if connection is not None and _is_done(context, operation):
        return
    columns, place = columns_of(context.dialect), operation.place(context)
    steps = columns.not_null(connection, place)
    if steps is None or context._in_external_transaction:
        _refuse_nulls_of(operation, connection, lambda: operation.alter(operations, nullable=False))
        return
    with context.autocommit_block():
        if context.as_sql:
            for statement in (one for step in steps for one in step.statements):
                context.impl.static_output(f"{statement};")
            return
        try:
            for step in steps:
                _patiently(context, columns, step, operation)
        except BaseException:
            undo = columns.undo(place)
            if undo is not None:
                _patiently(context, columns, undo, operation)
            raise


def _is_done(context: MigrationContext, operation: _OnColumn) -> bool:
    """Whether a run that was killed behind it has done it already."""
    place = (operation.schema, operation.table_name, operation.column_name)
    if place in replaced.get(context, ()):
        return True
    connection = context.connection
    assert connection is not None
    found = sa.inspect(connection).get_columns(operation.table_name, operation.schema)
    return any(one["name"] == operation.column_name and not one["nullable"] for one in found)


def _patiently(
    context: MigrationContext,
    columns: Columns,
    step: Step,
    operation: _Changed,
    *,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Do a step; wait for its lock a short time at once, so that nobody waits longer behind us."""
    connection = context.connection
    assert connection is not None

    def once(seconds: float) -> None:
        with within():
            for sql in columns.briefly(step, seconds) if step.is_brief else step.statements:
                connection.execute(_literally(sql))

    deadline, waits = time.monotonic() + PATIENCE_SECONDS, iter(_WAITS)
    while True:
        try:
            _refuse_nulls_of(operation, connection, lambda: once(next(waits, _WAITS[-1])))
            return
        except sa.exc.DBAPIError as error:
            is_busy = dialect_for(connection.engine).error_kind(error) in _BUSY
            if not is_busy or time.monotonic() > deadline:
                raise _told(error, operation, is_busy=is_busy) from error
        time.sleep(_REST_SECONDS)


def _lock(context: MigrationContext, columns: Columns, operation: _Changed) -> None:
    """Keep everybody off the table, where that can be had and is needed."""
    assert context.connection is not None
    lock = columns.lock(context.connection, operation.place(context))
    if lock is not None:
        within = context.connection.begin_nested if columns.needs_savepoints else nullcontext
        _patiently(context, columns, lock, operation, within=within)


def _literally(statement: str) -> sa.TextClause:
    return sa.text(statement.replace(":", r"\:"))


def _refuse_nulls_of(
    operation: _Changed, connection: sa.Connection | None, function: Callable[[], None]
) -> None:
    try:
        function()
    except sa.exc.DBAPIError as error:
        if connection is None:
            raise
        if dialect_for(connection.engine).error_kind(error) is ErrorKind.DATA:
            raise CommandError(
                f"{operation} cannot be made NOT NULL: a row has no value there, or got none while"
                " this ran. Deploy the code that writes it, `backfill run`, then upgrade again."
            ) from error
        raise


def _told(error: sa.exc.DBAPIError, operation: _Changed, *, is_busy: bool) -> Exception:
    if not is_busy:
        return error
    return CommandError(
        f"Table {operation.table_name!r} is in use by a transaction that does not end, and to"
        f" change {operation} needs a lock on all of it. End that transaction, or upgrade again"
        " later."
    )


@renderers.dispatch_for(ReplaceColumns)
def _render_replacement(autogen_context: AutogenContext, operation: ReplaceColumns) -> str:
    autogen_context.imports.add(IMPORT)
    schema = f", schema={operation.schema!r}" if operation.schema is not None else ""
    return (
        f"op.replace_columns({operation.table_name!r}, {operation.replacements!r},"
        f" backfills={operation.backfills!r}{schema})"
    )


@renderers.dispatch_for(SetNotNull)
@renderers.dispatch_for(DropNotNull)
def _render(autogen_context: AutogenContext, operation: _OnColumn) -> str:
    from alembic.autogenerate.render import _repr_type

    autogen_context.imports.add(IMPORT)
    parts = [
        f"{operation.table_name!r}",
        f"{operation.column_name!r}",
        f"existing_type={_repr_type(operation.existing_type, autogen_context)}",
    ]
    if operation.schema is not None:
        parts.append(f"schema={operation.schema!r}")
    return f"op.{operation.verb}({', '.join(parts)})"
