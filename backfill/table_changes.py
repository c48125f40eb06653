"""What autogenerate found of one table: the operations that stay, and those that have to wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from alembic.operations import ops

from backfill.contracting import SetNotNull
from backfill.steps import Contract, Fill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill.facts import Facts

NameFor = Callable[[str, str], str]
"""Gives the name of the backfill of a table's column."""


class TableChanges:
    """The operations of the first revision's upgrade on one table, their counterparts in its
    downgrade, and the contract, which takes what has to wait."""

    def __init__(
        self,
        group: ops.ModifyTableOps,
        downgrade: ops.DowngradeOps,
        contract: Contract,
        facts: Facts,
        name_for: NameFor,
    ) -> None:
        self.table, self.schema = group.table_name, group.schema
        self.contract = contract
        self.facts = facts
        self._name_for = name_for
        self._group = group
        self._downgrade = [
            one
            for one in downgrade.ops
            if isinstance(one, ops.ModifyTableOps)
            and (one.table_name, one.schema) == (self.table, self.schema)
        ]

    @property
    def sql(self) -> str:
        """The table's name."""
        quote = self.facts.quote
        return f"{quote(self.schema)}.{quote(self.table)}" if self.schema else quote(self.table)

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the operations of a kind that are left."""
        return [one for one in self._group.ops if isinstance(one, kind)]

    def one(self, kind: type[Any], is_it: Callable[[Any], bool]) -> Any:
        """Return the first of them that is it, or None."""
        return next(filter(is_it, self.of(kind)), None)

    def put(self, operation: ops.MigrateOperation, *others: ops.MigrateOperation) -> None:
        """Put others in the place of an operation; none: take it away."""
        place = self._group.ops.index(operation)
        self._group.ops[place : place + 1] = others

    def alterations_back(self, column: str) -> Iterator[tuple[ops.ModifyTableOps, Any]]:
        """Give the downgrade's changes of a column, each with where it stands."""
        for group in self._downgrade:
            for one in list(group.ops):
                if isinstance(one, ops.AlterColumnOp) and one.column_name == column:
                    yield group, one

    def take_added_back(self, column: str) -> ops.AddColumnOp | None:
        """Take the downgrade's operation that adds a column again out of it."""
        for group in self._downgrade:
            for one in group.ops:
                if isinstance(one, ops.AddColumnOp) and one.column.name == column:
                    group.ops.remove(one)
                    return one
        return None

    def tidy(self) -> None:
        """Remove what does nothing any more."""
        for group in (self._group, *self._downgrade):
            group.ops[:] = [one for one in group.ops if _does_something(one)]

    def fill(
        self,
        column: str,
        *,
        value: str | None,
        not_null_type: Any = None,
        hint: str = "",
        where: str | None = None,
        sync: bool = False,
        is_kept_in_sync: bool = False,
    ) -> Fill:
        """Add a backfill to the contract; with a type the column becomes NOT NULL behind it."""
        fill = Fill(
            self._name_for(self.table, column),
            self.table,
            self.schema,
            column,
            where or f"{self.facts.quote(column)} IS NULL",
            value,
            hint,
            sync,
            is_kept_in_sync,
            self.facts.database,
        )
        self.contract.fills.append(fill)
        if not_null_type is not None:
            operation = SetNotNull(
                self.table, column, existing_type=not_null_type, schema=self.schema
            )
            self.contract.upgrade.append(operation)
            self.contract.demands_off.append(operation.reverse())
        return fill


def _does_something(operation: ops.MigrateOperation) -> bool:
    return not isinstance(operation, ops.AlterColumnOp) or operation.has_changes()
