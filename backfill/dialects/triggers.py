"""Triggers that apply a backfill's expressions to the rows that the application writes.

Expressions are often SQL text with bare column names, so they are never rewritten: a trigger
computes them over something that has the table's name and columns (a derived table of one row, or
variables). So they mean there what they mean in the walk's own UPDATE, and all of them see the row
as it was written.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.sql import visitors

from backfill.errors import DeclarationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from backfill.dialects.base import Dialect
    from backfill.targets import Target

WAIT_SECONDS = 0.05
"""How long a trigger's DDL waits for its lock, and so the longest that others queue behind it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backfill's triggers are, and what they are called."""

    schema: str | None
    table: str
    name: str
    """Begins the name of each of them; 48 bytes at most."""
    backfill: str


def label_of(name: str) -> str:
    """Return how the transactions of a backfill's walk are labelled.

    Its own triggers leave them alone: the walk computes the same, and a row that stays pending
    would be written twice in one statement.
    """
    return f"backfill: {name}"


class Triggers:
    """What a database needs to install, find and remove the triggers of one backfill."""

    privileges: ClassVar[str] = ""
    """What to grant where the database refuses the triggers."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.preparer = without_percents(dialect.engine.dialect).identifier_preparer

    def unfit(self, connection: sa.Connection, target: Target) -> str | None:
        """Say why triggers would not do, or do harm, for this target; None if they will do."""
        return None

    def is_unknown(self, column: sa.Column[Any]) -> bool:
        """Whether a column gets its value only after the triggers."""
        return False

    def acted_on(self, connection: sa.Connection, table: sa.Table) -> dict[str, str]:
        """Return the columns that a foreign key changes by itself in a way that fires triggers,
        each with what it says, like ON DELETE SET NULL."""
        return {}

    def unseen(self, connection: sa.Connection, table: sa.Table) -> dict[str, str]:
        """Return the columns that a foreign key changes without firing triggers, likewise."""
        return {}

    def refusing(self, connection: sa.Connection, target: Target) -> set[str]:
        """Return the columns that an index may refuse a value of."""
        return unique_columns(connection, target.table)

    def advice(self, connection: sa.Connection, target: Target) -> list[str]:
        """Return what somebody should know of such triggers on this database."""
        return []

    def ddl(self, connection: sa.Connection, target: Target, place: Place) -> list[str]:
        """Return the statements that make or replace the triggers."""
        raise NotImplementedError

    def find(self, connection: sa.Connection, place: Place) -> Place | None:
        """Return the place with its schema if a trigger is there; None if there is none."""
        raise NotImplementedError

    def installed(self, connection: sa.Connection) -> list[tuple[str, str]]:
        """Return table and name of all triggers that are called as ours are."""
        raise NotImplementedError

    def named(self, connection: sa.Connection, name: str, backfill: str) -> list[Place]:
        """Return where triggers are that begin with a name, in the schemas that are looked at
        where none is given, and in others where they are certainly ours."""
        raise NotImplementedError

    def install(self, connection: sa.Connection, target: Target, place: Place) -> bool:
        """Make or replace what is missing or differs; whether anything did.

        Belongs into a short transaction. Raises the database's errors: one that says LOCKED or
        TOO_SLOW after WAIT_SECONDS is to be tried again.
        """
        raise NotImplementedError

    def remove(self, connection: sa.Connection, place: Place) -> None:
        """Remove what is there, in the caller's transaction if there is one; likewise.

        Raises TableBusy where the attempt failed without harm to that transaction.
        """
        raise NotImplementedError

    def table(self, place: Place) -> str:
        """Return the table's name as SQL."""
        return self.preparer.format_table(sa.table(place.table, schema=place.schema))

    def quoted(self, name: str, schema: str | None = None) -> str:
        """Return a name as SQL."""
        quoted = self.preparer.quote(name)
        return f"{self.preparer.quote_schema(schema)}.{quoted}" if schema else quoted


class Script:
    """A backfill's expressions as SQL text, for the body of a trigger."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._dialect = without_percents(target.dialect.engine.dialect)
        self.quote: Callable[[str], str] = self._dialect.identifier_preparer.quote

    @property
    def columns(self) -> list[str]:
        """The columns that are written."""
        return list(self.target.assignments)

    def mentions(self, name: str) -> bool:
        """Whether `where` or a value may use a name."""
        return any(mentions(text, name) for text in self._texts())

    def uses(self, name: str) -> bool:
        """Whether a value may use a name."""
        return any(mentions(self.text(one), name) for one in self.target.assignments.values())

    def calls(self, function: str) -> bool:
        """Whether `where` or a value may call a function, as `f(…)` or by its operator."""
        called = rf"(?i)(?<!\w){re.escape(function)}\s*\("
        if function.upper() in ("REGEXP", "MATCH"):
            return self.mentions(function)
        return any(re.search(called, text) for text in self._texts())

    def contains(self, operator: str) -> bool:
        """Whether `where` or a value may use an operator."""
        return any(operator in text for text in self._texts())

    def _texts(self) -> Iterator[str]:
        for value in (*self.target.assignments.values(), self.target.pending):
            if value is not None:
                yield self.text(value)

    @cached_property
    def following(self) -> list[str]:
        """The columns whose values follow their sources.

        Not those that are computed from what is written: `total + bonus` again would add twice.
        """
        written = self.columns
        return [
            column
            for column, value in self.target.assignments.items()
            if not any(mentions(self.text(value), name) for name in written)
        ]

    @cached_property
    def revocable(self) -> list[str]:
        """The columns that become NULL where they cannot follow their sources any further.

        None where a value is computed from what is written: pending again, it would be applied
        twice.
        """
        if self.following != self.columns:
            return []
        return [name for name in self.columns if self.target.table.c[name].nullable]

    @property
    def stale(self) -> list[str]:
        """The columns that keep an old value there, and which nothing would find."""
        columns = self.target.table.c.keys()
        return [
            name
            for name in self.following
            if name not in self.revocable
            and any(mentions(self.text(self.target.assignments[name]), other) for other in columns)
        ]

    def required(self, columns: Iterable[str]) -> list[str]:
        """Return those of the columns that take no NULL: such a value leaves the row pending."""
        return [name for name in columns if not self.target.table.c[name].nullable]

    def row_of(self, name: str) -> str:
        """Return a SELECT of OLD's or NEW's columns, each by name."""
        names = [self.quote(column.name) for column in self.target.table.c]
        return "SELECT " + ", ".join(f"{name}.{column} AS {column}" for column in names)

    def over(self, row: str, columns: Sequence[str], *, pending: bool) -> str:
        """Return a SELECT of the expressions of columns over one row, given as a SELECT of it.

        They are called `c0`, `c1`, …; with `pending`, there is a result only if the row is that.
        """
        table = self.target.table
        given = sa.text(row.replace(":", "\\:")).columns(*(sa.column(c.name) for c in table.c))
        alias = given.subquery(table.name)
        values = [self.target.assignments[name] for name in columns]
        labelled = [self.on(alias, value).label(f"c{i}") for i, value in enumerate(values)]
        statement = sa.select(*labelled).select_from(alias)
        if pending:
            assert self.target.pending is not None
            statement = statement.where(self.on(alias, self.target.pending))
        return self.text(statement)

    def on(self, source: sa.FromClause, value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return an expression over the table as one over something with the same columns."""
        table = self.target.table

        def moved(element: Any, **_: Any) -> Any:
            is_ours = isinstance(element, sa.Column) and element.table is table
            return source.c[element.name] if is_ours else None

        found: sa.ColumnElement[Any] = visitors.replacement_traverse(value, {}, moved)
        return found

    def bare(self, value: sa.ColumnElement[Any]) -> str:
        """Return an expression with bare column names, where they are not text."""
        columns = (sa.column(column.name, column.type) for column in self.target.table.c)
        names = {column.name: column for column in columns}

        def bared(element: Any, **_: Any) -> Any:
            is_ours = isinstance(element, sa.Column) and element.table is self.target.table
            return names[element.name] if is_ours else None

        return self.text(visitors.replacement_traverse(value, {}, bared))

    def text(self, statement: sa.ClauseElement) -> str:
        """Return a statement with its values written out. Raises DeclarationError."""
        try:
            compiled = statement.compile(
                dialect=self._dialect, compile_kwargs={"literal_binds": True}
            )
            return str(compiled)
        except (sa.exc.CompileError, NotImplementedError) as error:
            raise DeclarationError(
                f"{self.target.declaration.name}: `sync` needs `where` and `values` as SQL that can"
                " stand in a trigger, and a value in them has no literal form. Write it as SQL"
                " text, or go without `sync`."
            ) from error


def mentions(sql: str, name: str) -> bool:
    """Whether SQL text has a word that is this name; it may stand in a string too."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql, re.IGNORECASE) is not None


def unique_columns(connection: sa.Connection, table: sa.Table) -> set[str]:
    """Return the columns of which a value, or a part of one, may stand in a table only once."""
    inspector = sa.inspect(connection)
    constraints = inspector.get_unique_constraints(table.name, table.schema)
    indexes = inspector.get_indexes(table.name, table.schema)
    names = {name for constraint in constraints for name in constraint["column_names"]}
    for index in indexes:
        if index["unique"]:
            names.update(name for name in index["column_names"] if name is not None)
    return names


def changing_action(*, on_delete: str | None, on_update: str | None) -> str | None:
    """Return what a foreign key says that changes its own columns; None if it leaves them."""
    if on_delete is not None and on_delete.upper().startswith("SET "):
        return f"ON DELETE {on_delete.upper()}"
    if on_update is not None and on_update.upper().startswith(("SET ", "CASCADE")):
        return f"ON UPDATE {on_update.upper()}"
    return None


def literal(text: str) -> str:
    """Return a plain name as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def without_percents(dialect: sa.Dialect) -> sa.Dialect:
    """Return an SQLAlchemy dialect that does not double percent signs: DDL has no parameters."""
    plain = copy.copy(dialect)
    plain.paramstyle = "named"
    plain.positional = False
    plain.identifier_preparer = copy.copy(dialect.identifier_preparer)
    plain.identifier_preparer.dialect = plain
    plain.identifier_preparer._double_percents = False
    plain.identifier_preparer._strings = {}  # names that it has quoted already
    return plain


def execute(connection: sa.Connection, ddl: str) -> None:
    """Send a statement as it stands."""
    connection.exec_driver_sql(ddl, execution_options={"no_parameters": True})
