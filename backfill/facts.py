"""What is asked of the database whose models were compared."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects import Place, columns_of, dialect_for
from backfill.dialects.triggers import mentions
from backfill.errors import BackfillError
from backfill.project import database_name
from backfill.type_changes import is_instant

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext


class Facts:
    """Answers for the connection of one migration context; reads only."""

    def __init__(self, context: MigrationContext) -> None:
        assert context.connection is not None
        self._connection = context.connection
        self._dialect = context.dialect
        self._columns = columns_of(context.dialect)
        self.quote = context.dialect.identifier_preparer.quote
        self.database = database_name(context)
        """What env.py calls it, where it migrates several."""

    @cached_property
    def has_sync(self) -> bool:
        """Whether triggers can keep up with the application's writes."""
        try:
            return dialect_for(self._connection.engine).triggers is not None
        except BackfillError:
            return False

    # -- SQL ---------------------------------------------------------------------------

    def literally(self, clause: Any) -> str:
        """Return an expression as SQL, with its values inside."""
        plain = type(self._dialect)(paramstyle="named")  # type: ignore[call-arg]  # doubles no %
        return str(clause.compile(dialect=plain, compile_kwargs={"literal_binds": True}))

    def converted(self, value: str, kind: Any) -> str:
        """Return SQL that makes a value one of another type."""
        return self._columns.converted(value, kind.compile(dialect=self._dialect))

    # -- columns -----------------------------------------------------------------------

    def is_volatile(self, default: str) -> bool:
        """Whether adding a column with this server default would compute it for each row."""
        return self._columns.is_volatile(self._connection, default)

    def is_instant(self, old: Any, new: Any) -> bool:
        """Whether a change of type does not touch the rows there."""
        return is_instant(old, new) and self._columns.widens_in_place(old, new)

    def has_column(self, table: str, schema: str | None, column: str) -> bool:
        """Whether a table has such a column."""
        found = self._inspector.get_columns(table, schema)
        return column in {one["name"] for one in found}

    def is_key(self, table: str, schema: str | None, column: str) -> bool:
        """Whether a column belongs to a table's primary key, which no row is without."""
        key = self._inspector.get_pk_constraint(table, schema)
        return column in key["constrained_columns"]

    def is_plain(self, table: str, schema: str | None, column: str) -> bool:
        """Whether no key, index, constraint or other object knows a table's column."""
        place = Place(table, column, schema, self._dialect.identifier_preparer)
        if self._columns.has_dependents(self._connection, place):
            return False
        inspector = self._inspector
        known: list[str | None] = [column] if self.is_key(table, schema, column) else []
        for index in inspector.get_indexes(table, schema):
            known += [*index["column_names"], *index.get("expressions", [])]
        for unique in inspector.get_unique_constraints(table, schema):
            known += unique["column_names"]
        for key in inspector.get_foreign_keys(table, schema):
            known += key["constrained_columns"]
        checks = [one["sqltext"] for one in inspector.get_check_constraints(table, schema)]
        return column not in known and not any(mentions(text, column) for text in checks)

    @property
    def _inspector(self) -> sa.Inspector:
        return sa.inspect(self._connection)  # anew: it remembers what it has seen
