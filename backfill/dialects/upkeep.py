"""What a database tells of a table's dead rows, and lets one do about them and its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import sqlalchemy as sa

from backfill.dialects.triggers import without_percents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.dialects.base import Dialect
    from backfill.dialects.limits import Limits


@dataclass(frozen=True, slots=True)
class Updates:
    """Rows that were updated, and how many of them stayed on their page without any index being
    touched: HOT, heap-only tuples."""

    rows: int
    hot: int

    @property
    def hot_share(self) -> float:
        """Of one or more updates."""
        return self.hot / self.rows

    def since(self, before: Updates) -> Updates:
        """Return what was counted after an earlier count."""
        return Updates(self.rows - before.rows, self.hot - before.hot)


@dataclass(frozen=True, slots=True)
class Churn:
    """What a table's counters say; a partitioned table's are the sums of its partitions'."""

    updates: Updates
    dead_rows: int
    removal: str
    """Who removes them, and when; a clause that begins with "which"."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """An index that holds a column."""

    column: str
    index: str
    how: str = ""
    """How to do that without blocking anybody; a clause that begins with a colon."""


class Upkeep:
    """The portable base: asks for nothing, and does nothing."""

    vacuums: ClassVar[bool] = False
    """Dead rows stay until somebody runs VACUUM."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def quoted(self, name: str, schema: str | None = None) -> str:
        """Return a name as SQL that takes no parameters, for which percent signs are doubled."""
        preparer = self._dialect.engine.dialect.identifier_preparer
        return ".".join(preparer.quote(part) for part in (schema, name) if part).replace("%%", "%")

    def churn(self, connection: sa.Connection, table: sa.Table) -> Churn | None:
        """Return what the table's counters say; None: there are none."""
        return None

    def updates_so_far(self, connection: sa.Connection, table: sa.Table) -> Updates | None:
        """Return what this transaction has updated; None: it is not counted."""
        return None

    def indexes_on(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str]
    ) -> list[Indexed]:
        """Return the indexes that have to be written where these columns are."""
        indexes = sa.inspect(connection).get_indexes(table.name, table.schema)
        return [
            Indexed(column, str(index["name"]))
            for column in columns
            for index in indexes
            if column in index["column_names"]
        ]

    def fired(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str]
    ) -> list[str]:
        """Return the triggers, but those of `sync`, that fire where these columns are written."""
        return []

    def stamped(self, connection: sa.Connection, table: sa.Table) -> list[str]:
        """Return the columns that get the time of each update, unless they are written too."""
        return []

    def advice(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str], updates: Updates
    ) -> list[str]:
        """Say what would make updates like these cheaper, with the statement to send."""
        return []

    def pending_index(
        self, table: sa.Table, key: Sequence[str], pending: sa.ColumnElement[bool]
    ) -> str:
        """Say which index would spare a walk the rows that are not pending."""
        return (
            "there are no partial indexes here, and one on the columns of `where` has to be written"
            " by each chunk; so let the walk read past the other rows, or name a `key` that begins"
            " with a column which tells pending rows apart"
        )

    def _partial_index(
        self, place: str, table: str, key: Sequence[str], pending: sa.ColumnElement[bool]
    ) -> str:
        dialect = without_percents(self._dialect.engine.dialect)
        where = pending.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
        return f"{place} ON {table} ({', '.join(map(self.quoted, key))}) WHERE {where}"

    def idle_vacuum(self, connection: sa.Connection, table: sa.Table) -> list[str]:
        """Return the statements that would let dead rows be removed again, where nobody does."""
        return []

    def refusal(self, connection: sa.Connection, table: sa.Table) -> str | None:
        """Say why this user may not VACUUM or ANALYZE the table, and what to do; None: it may."""
        return None

    def vacuum(self, limits: Limits, table: sa.Table, mark: str, fewest: int) -> list[str]:
        """Remove dead rows at the pace of the database's own helpers, and never wait for a lock.

        `mark` tells this call's statements from all others. Of partitions, those with `fewest` dead
        rows or more are taken. Returns the tables that were passed over: somebody had them locked.
        """
        return []

    def cancel(self, limits: Limits, mark: str) -> None:
        """End the statements that were given this mark."""

    def is_in_the_way(self, limits: Limits, mark: str) -> bool:
        """Whether somebody waits for a statement that was given this mark."""
        return False

    def refresh_statistics(
        self, limits: Limits, table: sa.Table, columns: Sequence[str], share: float, mark: str
    ) -> list[str]:
        """Mend the planner's statistics where they are wrong now that a share of all rows has other
        values in these columns. `mark` tells this call's statements from all others. Returns what
        is to be told.
        """
        return []
