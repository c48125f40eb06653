"""Takes apart what autogenerate found: what may come at once, and what has to wait for a backfill.

A column that is NOT NULL from the start, or a rename, cannot be had on a filled table that is in
use. It becomes a nullable column, a backfill, and NOT NULL behind its gate. Everything else stays
in the first revision as Alembic has it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.operations import ops

from backfill.contracting import DropNotNull, ReplaceColumns, SetNotNull
from backfill.errors import ConfigurationError
from backfill.operations import StopBackfillSync
from backfill.steps import Contract, Facts, Fill, Rename, is_instant, keeps_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alembic.operations import MigrateOperation

NameFor = Callable[[str, str], str]


class Splitter:
    """Takes the operations of one database apart, in their place."""

    def __init__(self, facts: Facts, renames: Sequence[Rename], name_for: NameFor) -> None:
        self._facts = facts
        self._renames = list(renames)
        self._name_for = name_for
        self.used: set[Rename] = set()

    def split(self, upgrade: ops.UpgradeOps, downgrade: ops.DowngradeOps) -> Contract:
        """Leave in these what may come at once; return the rest."""
        contract = Contract()
        for group in upgrade.ops:
            if isinstance(group, ops.ModifyTableOps):
                self._split_table(group, downgrade, contract)
        upgrade.ops += contract.relaxed
        synced = [StopBackfillSync(fill.name) for fill in contract.fills if fill.sync]
        downgrade.ops[:0] = [*synced, *(one.reverse() for one in contract.relaxed)]
        for container in (upgrade, downgrade):
            container.ops[:] = [one for one in container.ops if not _is_empty(one)]
        return contract

    def _split_table(
        self, group: ops.ModifyTableOps, downgrade: ops.DowngradeOps, contract: Contract
    ) -> None:
        table = _Table(self, group, downgrade, contract)
        renames = [
            one
            for one in self._renames
            if (one.table, one.schema) == (group.table_name, group.schema)
        ]
        for rename in renames:
            table.rename(rename)
            self.used.add(rename)
        contract.hints += table.hints()
        known = len(contract.fills)
        for operation in list(group.ops):
            if isinstance(operation, ops.AddColumnOp):
                table.add(operation)
            elif isinstance(operation, ops.AlterColumnOp):
                table.alter(operation)
        table.replace()
        if renames or len(contract.fills) > known:
            table.keep_dropped()
        group.ops[:] = [one for one in group.ops if _does_something(one)]


class _Table:
    """The operations on one table."""

    def __init__(
        self,
        splitter: Splitter,
        group: ops.ModifyTableOps,
        downgrade: ops.DowngradeOps,
        contract: Contract,
    ) -> None:
        self._facts = splitter._facts
        self._name_for = splitter._name_for
        self._group = group
        self._contract = contract
        self._downgrade = [
            one
            for one in downgrade.ops
            if isinstance(one, ops.ModifyTableOps)
            and (one.table_name, one.schema) == (group.table_name, group.schema)
        ]
        self._replaced: dict[str, Fill] = {}
        """Columns, and the backfills of those that take their places."""
        self._renamed: set[str] = set()
        """Old names and new ones."""

    # -- a rename ----------------------------------------------------------------------

    def rename(self, rename: Rename) -> None:
        """Copy the old column's values into the new one, and drop it behind the gate."""
        quote = self._facts.quote
        dropped = self._one(ops.DropColumnOp, lambda one: one.column_name == rename.old)
        added = self._one(ops.AddColumnOp, lambda one: one.column.name == rename.new)
        if dropped is None or added is None:
            raise ConfigurationError(_no_such_rename(rename))
        old, new = dropped.to_column(), added.column
        if new.server_default is not None:
            raise ConfigurationError(
                f"--rename {rename}: {new.name} has a server default, which would be in all rows at"
                " once, and hide those that are still to be copied. Give it in a later revision."
            )
        is_certain = new.nullable or not old.nullable
        where = f"{quote(rename.new)} IS NULL"
        self._renamed |= {rename.old, rename.new}
        self._replace(added, new)
        self._fill(
            new,
            where=f"{where} AND {quote(rename.old)} IS NOT NULL" if is_certain else where,
            value=quote(rename.old) if is_certain else None,
            hint=f"For example coalesce({quote(rename.old)}, …): some rows have no value there.",
            sync=self._facts.has_sync and is_certain,
        )
        table = self._table_sql()
        new_sql, old_sql = quote(rename.new), quote(rename.old)
        self._contract.downgrade.append(
            ops.ExecuteSQLOp(f"UPDATE {table} SET {old_sql} = {new_sql}, {new_sql} = NULL")
        )

    # -- NOT NULL ----------------------------------------------------------------------

    def add(self, operation: ops.AddColumnOp) -> None:
        """Take apart a column that old rows would have no value for."""
        column = operation.column
        if column.name in self._renamed or column.nullable or column.primary_key:
            return
        if column.computed is not None or column.identity is not None:
            return
        default = _expression(column.server_default)
        if column.server_default is not None:
            if default is None or not self._facts.is_volatile(default):
                return
            self._set_default(operation)
        self._replace(operation, column)
        self._fill(column, value=default, hint=_model_default(column))

    def _set_default(self, operation: ops.AddColumnOp) -> None:
        """Let new rows have a default that would be computed for each row of the table."""
        column = operation.column
        place = self._group.ops.index(operation) + 1
        self._group.ops.insert(
            place,
            ops.AlterColumnOp(
                operation.table_name,
                column.name,
                schema=operation.schema,
                existing_type=column.type,
                existing_nullable=True,
                modify_server_default=column.server_default,
            ),
        )

    def _replace(self, operation: ops.AddColumnOp, column: sa.Column[Any]) -> None:
        """Add the column without what rows cannot have at once; the models stay as they are."""
        added = copy.copy(operation)
        added.column = column._copy()
        added.column.nullable = True
        added.column.server_default = None
        self._group.ops[self._group.ops.index(operation)] = added

    # -- another type ------------------------------------------------------------------

    def retype(self, operation: ops.AlterColumnOp) -> bool:
        """Fill a new column of the other type, and let it take the old one's place.

        Whether that is what has to be done, and can be.
        """
        old, new = operation.existing_type, operation.modify_type
        table, schema, name = operation.table_name, operation.schema, operation.column_name
        if new is None or old is None or is_instant(old, new):
            return False
        if not self._can_be_replaced(operation):
            self._contract.hints.append(
                f"{table}.{name}: the change of its type is left to one ALTER TABLE, which may"
                " rewrite the table under a lock: keys, indexes, constraints or defaults use it."
            )
            return False
        quote, other = self._facts.quote, f"{name}_new"
        is_required = operation.modify_nullable is False or (
            operation.modify_nullable is None and operation.existing_nullable is False
        )
        is_certain = not (is_required and operation.existing_nullable is not False)
        comment = operation.modify_comment or operation.existing_comment
        column: sa.Column[Any] = sa.Column(other, new, nullable=True, comment=comment)
        added = ops.AddColumnOp(table, column, schema=schema)
        self._group.ops[self._group.ops.index(operation)] = added
        self._take_back(operation, added)
        value = self._facts.converted(quote(name), new)
        where = f"{quote(other)} IS NULL"
        fill = self._fill_named(
            other,
            new if is_required else None,
            value if is_certain and keeps_values(old, new) else None,
            hint=f"For example {value}, if it fits all values there are.",
            where=f"{where} AND {quote(name)} IS NOT NULL" if is_certain else where,
            sync=self._facts.has_sync,
            is_kept_in_sync=True,
        )
        self._replaced[name] = fill
        self._give_back(operation, other)
        return True

    def _can_be_replaced(self, operation: ops.AlterColumnOp) -> bool:
        kinds = (operation.existing_type, operation.modify_type)
        has_default = operation.existing_server_default or operation.modify_server_default
        return (
            not has_default
            and not any(isinstance(kind, sa.types.SchemaType) for kind in kinds)
            and self._facts.is_plain(operation.table_name, operation.schema, operation.column_name)
        )

    def _take_back(self, operation: ops.AlterColumnOp, added: ops.AddColumnOp) -> None:
        """Let the first revision's downgrade drop the new column, rather than alter the old."""
        for group in self._downgrade:
            group.ops[:] = [
                added.reverse()
                if isinstance(one, ops.AlterColumnOp) and one.column_name == operation.column_name
                else one
                for one in group.ops
            ]

    def _give_back(self, operation: ops.AlterColumnOp, other: str) -> None:
        """Let the last revision's downgrade make the old column again, and fill it at once.

        The new one is emptied: the next upgrade has to fill it from what was written meanwhile.
        """
        table, schema, name = operation.table_name, operation.schema, operation.column_name
        old: sa.Column[Any] = sa.Column(
            name, operation.existing_type, nullable=True, comment=operation.existing_comment
        )
        quote = self._facts.quote
        # As SQL, since an older Alembic does not write a new name into a file.
        rename = f"ALTER TABLE {self._table_sql()} RENAME COLUMN {quote(name)} TO {quote(other)}"
        added = ops.AddColumnOp(table, old, schema=schema)
        self._contract.downgrade[:0] = [
            ops.ExecuteSQLOp(rename),
            ops.ModifyTableOps(table, [added], schema=schema),
        ]
        value = self._facts.converted(quote(other), operation.existing_type)
        copied = f"{quote(name)} = {value}, {quote(other)} = NULL"
        self._contract.downgrade.append(
            ops.ExecuteSQLOp(f"UPDATE {self._table_sql()} SET {copied}")
        )
        if operation.existing_nullable is False:
            kind = operation.existing_type
            self._contract.downgrade.append(
                SetNotNull(table, name, existing_type=kind, schema=schema)
            )

    def alter(self, operation: ops.AlterColumnOp) -> None:
        """Take apart a column that becomes NOT NULL, or gets another type."""
        if self.retype(operation):
            return
        if operation.modify_nullable is not False or operation.existing_nullable is False:
            return
        if self._facts.is_key(operation.table_name, operation.schema, operation.column_name):
            return
        kind = operation.existing_type if operation.modify_type is None else operation.modify_type
        self._fill_named(operation.column_name, kind, None)
        operation.modify_nullable = None
        for group in self._downgrade:
            for one in group.ops:
                if isinstance(one, ops.AlterColumnOp) and one.column_name == operation.column_name:
                    one.modify_nullable = None
            group.ops[:] = [one for one in group.ops if _does_something(one)]

    def _fill(
        self,
        column: sa.Column[Any],
        *,
        value: str | None,
        hint: str = "",
        where: str | None = None,
        sync: bool = False,
    ) -> None:
        self._fill_named(
            column.name,
            None if column.nullable else column.type,
            value,
            hint=hint,
            where=where,
            sync=sync,
        )

    def _fill_named(
        self,
        column: str,
        not_null_type: Any,
        value: str | None,
        *,
        hint: str = "",
        where: str | None = None,
        sync: bool = False,
        is_kept_in_sync: bool = False,
    ) -> Fill:
        table, schema = self._group.table_name, self._group.schema
        fill = Fill(
            self._name_for(table, column),
            table,
            schema,
            column,
            where or f"{self._facts.quote(column)} IS NULL",
            value,
            hint,
            sync,
            is_kept_in_sync,
            self._facts.database,
        )
        self._contract.fills.append(fill)
        if not_null_type is not None:
            operation = SetNotNull(table, column, existing_type=not_null_type, schema=schema)
            self._contract.upgrade.append(operation)
            self._contract.downgrade.insert(0, operation.reverse())
        return fill

    # -- what goes ---------------------------------------------------------------------

    def keep_dropped(self) -> None:
        """Drop columns behind the gate: the backfill may compute from them.

        New code does not write them any more, so they must not be demanded until then.
        """
        table, schema = self._group.table_name, self._group.schema
        dropped = self._of(ops.DropColumnOp)
        if not dropped:
            return
        again: list[MigrateOperation] = []
        for operation in dropped:
            self._group.ops.remove(operation)
            added = self._take_from_downgrade(operation.column_name)
            column = operation.to_column()
            if not column.nullable and column.server_default is None:
                relaxed = DropNotNull(table, column.name, existing_type=column.type, schema=schema)
                self._contract.relaxed.append(relaxed)
                added = copy.copy(added) if added is not None else operation.reverse()
                added.column = column._copy()
                added.column.nullable = True
            if added is not None:
                again.append(added)
        self._contract.upgrade.append(ops.ModifyTableOps(table, dropped, schema=schema))
        if again:
            self._contract.downgrade.insert(0, ops.ModifyTableOps(table, again, schema=schema))

    def _take_from_downgrade(self, column: str) -> ops.AddColumnOp | None:
        for group in self._downgrade:
            for one in group.ops:
                if isinstance(one, ops.AddColumnOp) and one.column.name == column:
                    group.ops.remove(one)
                    return one
        return None

    def replace(self) -> None:
        """Let all new columns take their places at once: triggers know every column."""
        if self._replaced:
            self._contract.upgrade.append(
                ReplaceColumns(
                    self._group.table_name,
                    {name: fill.column for name, fill in self._replaced.items()},
                    backfills=[fill.name for fill in self._replaced.values()],
                    schema=self._group.schema,
                )
            )

    def hints(self) -> Iterator[str]:
        """Say what looks like a rename, before a column's values are dropped for it."""
        for old in self._of(ops.DropColumnOp):
            for new in self._of(ops.AddColumnOp):
                kinds = (one.to_column().type._type_affinity for one in (old, new))
                if len({*kinds}) == 1 and not self._renamed & {old.column_name, new.column.name}:
                    names = f"{self._group.table_name}.{old.column_name}:{new.column.name}"
                    yield f"Is a column renamed? Then remove these files, and say --rename {names}"

    def _of(self, kind: type[Any]) -> list[Any]:
        return [one for one in self._group.ops if isinstance(one, kind)]

    def _one(self, kind: type[Any], is_it: Callable[[Any], bool]) -> Any:
        return next(filter(is_it, self._of(kind)), None)

    def _table_sql(self) -> str:
        table, schema = self._group.table_name, self._group.schema
        quote = self._facts.quote
        return f"{quote(schema)}.{quote(table)}" if schema else quote(table)


def _is_empty(operation: MigrateOperation) -> bool:
    return isinstance(operation, ops.ModifyTableOps) and not operation.ops


def _does_something(operation: MigrateOperation) -> bool:
    return not isinstance(operation, ops.AlterColumnOp) or operation.has_changes()


def _expression(default: Any) -> str | None:
    """Return a server default that is SQL; None if it is a constant, or there is none."""
    given = getattr(default, "arg", None)
    return None if given is None or isinstance(given, str) else str(given)


def _model_default(column: sa.Column[Any]) -> str:
    default = column.default
    if not isinstance(default, sa.ColumnDefault) or not default.is_scalar:
        return ""
    return f"New rows get {default.arg!r} from the model."


def _no_such_rename(rename: Rename) -> str:
    return (
        f"--rename {rename}: the models and the table do not differ so. Alembic has to find the"
        f" column {rename.old!r} dropped and {rename.new!r} added."
    )
