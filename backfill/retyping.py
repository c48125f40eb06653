"""A column that gets another type: a new column is filled, and takes the old one's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.operations import ops

from backfill.contracting import SetNotNull
from backfill.type_changes import keeps_values

if TYPE_CHECKING:
    from backfill.steps import Fill
    from backfill.table_changes import TableChanges


@dataclass(frozen=True, slots=True)
class Retyping:
    """What autogenerate found of one column."""

    changes: TableChanges
    operation: ops.AlterColumnOp

    @property
    def is_needed(self) -> bool:
        """Whether the type changes, and one ALTER TABLE would touch the rows."""
        old, new = self.operation.existing_type, self.operation.modify_type
        if old is None or new is None:
            return False
        return not self.changes.facts.is_instant(old, new)

    @property
    def name(self) -> str:
        """The column's."""
        return self.operation.column_name

    @property
    def other(self) -> str:
        """The name of the new column, until it takes the old one's place."""
        return f"{self.name}_new"

    def apply(self) -> Fill | None:
        """Return the new column's backfill; None, and say so, where it cannot be replaced."""
        changes = self.changes
        if not self._can_be_replaced():
            changes.contract.hints.append(
                f"{changes.table}.{self.name}: the change of its type is left to one ALTER TABLE,"
                " which may rewrite the table under a lock: keys, indexes, constraints or defaults"
                f" use it, or there is a column {self.other} already."
            )
            return None
        self._add()
        fill = self._fill()
        self._give_back()
        return fill

    def _can_be_replaced(self) -> bool:
        operation = self.operation
        kinds = (operation.existing_type, operation.modify_type)
        has_default = operation.existing_server_default or operation.modify_server_default
        return (
            not has_default
            and not any(isinstance(kind, sa.types.SchemaType) for kind in kinds)
            and not self.changes.facts.has_column(
                self.changes.table, self.changes.schema, self.other
            )
            and self.changes.facts.is_plain(self.changes.table, self.changes.schema, self.name)
        )

    def _add(self) -> None:
        """Add the new column; the first revision's downgrade drops it, and leaves the old alone."""
        operation = self.operation
        comment = operation.modify_comment or operation.existing_comment
        column: sa.Column[Any] = sa.Column(
            self.other, operation.modify_type, nullable=True, comment=comment
        )
        added = ops.AddColumnOp(self.changes.table, column, schema=self.changes.schema)
        self.changes.put(operation, added)
        for group, one in self.changes.alterations_back(self.name):
            group.ops[group.ops.index(one)] = added.reverse()

    def _fill(self) -> Fill:
        operation, facts = self.operation, self.changes.facts
        old, new = operation.existing_type, operation.modify_type
        is_required = operation.modify_nullable is False or (
            operation.modify_nullable is None and operation.existing_nullable is False
        )
        is_certain = not (is_required and operation.existing_nullable is not False)
        name, other = facts.quote(self.name), facts.quote(self.other)
        value = facts.converted(name, new)
        where = f"{other} IS NULL"
        return self.changes.fill(
            self.other,
            value=value if is_certain and keeps_values(old, new) else None,
            not_null_type=new if is_required else None,
            hint=f"For example {value}, if it fits all values there are.",
            where=f"{where} AND {name} IS NOT NULL" if is_certain else where,
            sync=facts.has_sync,
            is_kept_in_sync=True,
        )

    def _give_back(self) -> None:
        """Let the last revision's downgrade make the old column again, and fill it at once.

        The new one is emptied: the next upgrade has to fill it from what was written meanwhile.
        """
        changes, operation = self.changes, self.operation
        table, schema, kind = changes.table, changes.schema, operation.existing_type
        contract = changes.contract
        old: sa.Column[Any] = sa.Column(
            self.name, kind, nullable=True, comment=operation.existing_comment
        )
        name, other = changes.facts.quote(self.name), changes.facts.quote(self.other)
        # As SQL, since an older Alembic does not write a new name into a file.
        rename = f"ALTER TABLE {changes.sql} RENAME COLUMN {name} TO {other}"
        added = ops.AddColumnOp(table, old, schema=schema)
        contract.columns_back += [
            ops.ExecuteSQLOp(rename),
            ops.ModifyTableOps(table, [added], schema=schema),
        ]
        assert kind is not None
        value = changes.facts.converted(other, kind)
        contract.values_back.append(
            ops.ExecuteSQLOp(f"UPDATE {changes.sql} SET {name} = {value}, {other} = NULL")
        )
        if operation.existing_nullable is False:
            contract.demands_on.append(
                SetNotNull(table, self.name, existing_type=kind, schema=schema)
            )
