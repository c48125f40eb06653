"""Takes apart what autogenerate found: what may come at once, and what has to wait for a backfill.

A column that is NOT NULL from the start, or a rename, cannot be had on a filled table that is in
use. It becomes a nullable column, a backfill, and NOT NULL behind its gate. Everything else stays
in the first revision as Alembic has it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.operations import ops

from backfill.contracting import DropNotNull, ReplaceColumns
from backfill.errors import ConfigurationError
from backfill.retyping import Retyping
from backfill.steps import Contract, Fill, Rename
from backfill.sync_end import StopBackfillSync
from backfill.table_changes import NameFor, TableChanges
from backfill.type_changes import fits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alembic.operations import MigrateOperation

    from backfill.facts import Facts


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
                changes = TableChanges(group, downgrade, contract, self._facts, self._name_for)
                self._split_table(_Table(changes))
        upgrade.ops += contract.relaxed
        synced = [StopBackfillSync(fill.name) for fill in contract.fills if fill.sync]
        relaxed = [one.reverse() for one in contract.relaxed]
        downgrade.ops[:0] = [*synced, *contract.copied_back, *relaxed]
        for container in (upgrade, downgrade):
            container.ops[:] = [one for one in container.ops if not _is_empty(one)]
        return contract

    def _split_table(self, table: _Table) -> None:
        changes = table.changes
        place = (changes.table, changes.schema)
        renames = [one for one in self._renames if (one.table, one.schema) == place]
        for rename in renames:
            table.rename(rename)
            self.used.add(rename)
        changes.contract.hints += table.hints()
        known = len(changes.contract.fills)
        for operation in changes.of(ops.MigrateOperation):
            if isinstance(operation, ops.AddColumnOp):
                table.add(operation)
            elif isinstance(operation, ops.AlterColumnOp):
                table.alter(operation)
        table.replace()
        if renames or len(changes.contract.fills) > known:
            table.keep_dropped()
        changes.tidy()


class _Table:
    """What is done to one table."""

    def __init__(self, changes: TableChanges) -> None:
        self.changes = changes
        self._facts = changes.facts
        self._replaced: dict[str, Fill] = {}
        """Columns, and the backfills of those that take their places."""
        self._renamed: set[str] = set()
        """Old names and new ones."""

    # -- a rename ----------------------------------------------------------------------

    def rename(self, rename: Rename) -> None:
        """Copy the old column's values into the new one, and drop it behind the gate."""
        dropped = self.changes.one(ops.DropColumnOp, lambda one: one.column_name == rename.old)
        added = self.changes.one(ops.AddColumnOp, lambda one: one.column.name == rename.new)
        if dropped is None or added is None:
            raise ConfigurationError(_no_such_rename(rename))
        old, new = dropped.to_column(), added.column
        if new.server_default is not None:
            raise ConfigurationError(
                f"--rename {rename}: {new.name} has a server default, which would be in all rows at"
                " once, and hide those that are still to be copied. Give it in a later revision."
            )
        self._renamed |= {rename.old, rename.new}
        self.changes.put(added, _without_demands(added))
        self._fill_renamed(old, new)
        self._give_renamed_back(old, new)

    def _fill_renamed(self, old: sa.Column[Any], new: sa.Column[Any]) -> None:
        quote, does_fit = self._facts.quote, fits(old.type, new.type)
        is_certain = does_fit and (new.nullable or not old.nullable)
        value, where = quote(old.name), f"{quote(new.name)} IS NULL"
        converted = self._facts.converted(value, new.type)
        self.changes.fill(
            new.name,
            value=value if is_certain else None,
            not_null_type=None if new.nullable else new.type,
            where=f"{where} AND {value} IS NOT NULL" if is_certain else where,
            hint=f"For example coalesce({value}, …): some rows have no value there."
            if does_fit
            else f"For example {converted}, if it fits all values there are: the type is another.",
            sync=self._facts.has_sync and is_certain,
        )

    def _give_renamed_back(self, old: sa.Column[Any], new: sa.Column[Any]) -> None:
        """Let downgrades copy what new code has written: that of the contract all of it, that of
        the first revision what is not the same, where both columns are there."""
        old_sql, new_sql = map(self._facts.quote, (old.name, new.name))
        update, contract = f"UPDATE {self.changes.sql} SET {old_sql}", self.changes.contract
        contract.values_back.append(ops.ExecuteSQLOp(f"{update} = {new_sql}, {new_sql} = NULL"))
        if not fits(old.type, new.type):
            return  # a person has decided what becomes of the values
        differs = f" AND ({old_sql} IS NULL OR {old_sql} <> {new_sql})"
        is_comparable = not isinstance(old.type, sa.JSON)
        where = f"{new_sql} IS NOT NULL{differs if is_comparable else ''}"
        contract.copied_back.append(ops.ExecuteSQLOp(f"{update} = {new_sql} WHERE {where}"))

    # -- NOT NULL, or another type -----------------------------------------------------

    def add(self, operation: ops.AddColumnOp) -> None:
        """Take apart a column that old rows would have no value for."""
        column = operation.column
        if column.name in self._renamed or column.nullable or column.primary_key:
            return
        if column.computed is not None or column.identity is not None:
            return
        default = self._expression(column.server_default)
        if column.server_default is not None:
            if default is None or not self._facts.is_volatile(default):
                return
            self.changes.put(operation, operation, _default_for_new_rows(operation))
        self.changes.put(operation, _without_demands(operation))
        self.changes.fill(
            column.name, value=default, not_null_type=column.type, hint=_model_default(column)
        )

    def _expression(self, default: Any) -> str | None:
        """Return a server default that is SQL; None if it is a constant, or there is none."""
        given = getattr(default, "arg", None)
        is_sql = given is not None and not isinstance(given, str)
        return self._facts.literally(given) if is_sql else None

    def alter(self, operation: ops.AlterColumnOp) -> None:
        """Take apart a column that becomes NOT NULL, or gets another type."""
        retyping = Retyping(self.changes, operation)
        if retyping.is_needed and (fill := retyping.apply()) is not None:
            self._replaced[retyping.name] = fill
            return
        if operation.modify_nullable is not False or operation.existing_nullable is False:
            return
        if self._facts.is_key(operation.table_name, operation.schema, operation.column_name):
            return
        kind = operation.existing_type if operation.modify_type is None else operation.modify_type
        self.changes.fill(operation.column_name, value=None, not_null_type=kind)
        operation.modify_nullable = None
        for _, one in self.changes.alterations_back(operation.column_name):
            one.modify_nullable = None

    def replace(self) -> None:
        """Let all new columns take their places at once: triggers know every column."""
        if self._replaced:
            self.changes.contract.upgrade.append(
                ReplaceColumns(
                    self.changes.table,
                    {name: fill.column for name, fill in self._replaced.items()},
                    backfills=[fill.name for fill in self._replaced.values()],
                    schema=self.changes.schema,
                )
            )

    # -- what goes ---------------------------------------------------------------------

    def keep_dropped(self) -> None:
        """Drop columns behind the gate: the backfill may compute from them.

        New code does not write them any more, so they must not be demanded until then.
        """
        changes, contract = self.changes, self.changes.contract
        dropped = changes.of(ops.DropColumnOp)
        if not dropped:
            return
        again: list[MigrateOperation] = []
        for operation in dropped:
            changes.put(operation)
            added = changes.take_added_back(operation.column_name)
            column = operation.to_column()
            if not column.nullable and column.server_default is None:
                relaxed = DropNotNull(
                    changes.table, column.name, existing_type=column.type, schema=changes.schema
                )
                contract.relaxed.append(relaxed)
                added = copy.copy(added) if added is not None else operation.reverse()
                added.column = column._copy()
                added.column.nullable = True
            if added is not None:
                again.append(added)
        table, schema = changes.table, changes.schema
        contract.upgrade.append(ops.ModifyTableOps(table, dropped, schema=schema))
        if again:
            contract.columns_back.append(ops.ModifyTableOps(table, again, schema=schema))

    def hints(self) -> Iterator[str]:
        """Say what looks like a rename, before a column's values are dropped for it."""
        for old in self.changes.of(ops.DropColumnOp):
            for new in self.changes.of(ops.AddColumnOp):
                kinds = (one.to_column().type._type_affinity for one in (old, new))
                if len({*kinds}) == 1 and not self._renamed & {old.column_name, new.column.name}:
                    names = f"{self.changes.table}.{old.column_name}:{new.column.name}"
                    yield f"Is a column renamed? Then remove these files, and say --rename {names}"


def _without_demands(operation: ops.AddColumnOp) -> ops.AddColumnOp:
    """Add the column without what rows cannot have at once; the models stay as they are."""
    added = copy.copy(operation)
    added.column = operation.column._copy()
    added.column.nullable = True
    added.column.server_default = None
    return added


def _default_for_new_rows(operation: ops.AddColumnOp) -> ops.AlterColumnOp:
    """Let new rows have a default that would be computed for each row of the table."""
    column = operation.column
    return ops.AlterColumnOp(
        operation.table_name,
        column.name,
        schema=operation.schema,
        existing_type=column.type,
        existing_nullable=True,
        modify_server_default=column.server_default,
    )


def _is_empty(operation: MigrateOperation) -> bool:
    return isinstance(operation, ops.ModifyTableOps) and not operation.ops


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
