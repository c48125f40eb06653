"""The rows of all the user's tables: read, compared, and put back as they were."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

Row = dict[str, Any]
Contents = dict[str, list[Row]]
"""Table name to rows, in the order of the primary key."""

_MISSING: Row = {}


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that is not the same in two contents; None: it is not there at all."""

    table: str
    key: Row
    before: Row | None
    after: Row | None

    def __str__(self) -> str:
        where = ", ".join([self.table, *(f"{name}={value!r}" for name, value in self.key.items())])
        if self.before is None:
            return f"{where}: there is a row {row_text(self.after)}, and there was none"
        if self.after is None:
            return f"{where}: there is no row, and there was {row_text(self.before)}"
        changes = (
            f"{name} is {value!r} and was {self.before[name]!r}"
            for name, value in self.after.items()
            if not _are_same(value, self.before[name])
        )
        return f"{where}: {', '.join(changes)}"


class Tables:
    """The user's tables in a database, reflected when this is made."""

    def __init__(
        self, connection: sa.Connection, schemas: Collection[str | None], without: Collection[str]
    ) -> None:
        metadata = sa.MetaData()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sa.exc.SAWarning)  # types that SQLAlchemy does not know
            for schema in schemas:
                metadata.reflect(connection, schema=schema, only=lambda n, _: n not in without)
            self.in_order = metadata.sorted_tables
            """Referenced tables before those that refer to them, as far as that can be."""
        self._by_name = {table.fullname: table for table in self.in_order}

    def named(self, name: str) -> sa.Table:
        """Return a table. Raises LookupError, with the names that there are."""
        if name not in self._by_name:
            known = ", ".join(sorted(self._by_name)) or "none"
            raise LookupError(f"There is no table {name!r} at this revision. There are: {known}.")
        return self._by_name[name]

    def refuse_unknown(self, columns: Collection[str]) -> None:
        """Raise LookupError if one of these (`"users.updated_at"`) is not there."""
        for name in columns:
            table, _, column = name.rpartition(".")
            if column not in self.named(table).c:
                raise LookupError(f"There is no column {name!r} at this revision.")

    def read(self, connection: sa.Connection) -> Contents:
        """Return all rows of all tables."""
        return {table.fullname: _rows(connection, table) for table in self.in_order}

    def differences(
        self, before: Contents, after: Contents, ignore: Collection[str] = ()
    ) -> Iterator[Difference]:
        """Give the rows that differ; `ignore` names columns (`"users.updated_at"`) that may."""
        for name, table in self._by_name.items():
            ignored = {c.name for c in table.c if f"{name}.{c.name}" in ignore}
            yield from _differences(
                table, *(_without(rows, ignored) for rows in (before[name], after[name]))
            )

    def put_back(self, connection: sa.Connection, wanted: Contents) -> None:
        """Make the rows what they were; what has not changed is not touched."""
        now = self.read(connection)
        for table in reversed(self.in_order):
            _take_away(connection, table, wanted[table.fullname], now[table.fullname])
        for table in self.in_order:
            _give_back(connection, table, wanted[table.fullname], now[table.fullname])


def told(differences: Iterator[Difference], most: int = 5) -> list[str]:
    """Return the first differences as lines, and whether there are more."""
    lines = [f"  {difference}" for difference in islice(differences, most + 1)]
    return [*lines[:most], "  and others"] if len(lines) > most else lines


# -- reading and comparing -------------------------------------------------------------


def _rows(connection: sa.Connection, table: sa.Table) -> list[Row]:
    statement = sa.select(table).order_by(*table.primary_key.columns)
    return [dict(row._mapping) for row in connection.execute(statement)]


def _key_names(table: sa.Table) -> list[str]:
    return [column.name for column in table.primary_key.columns]


def _without(rows: Sequence[Row], names: Collection[str]) -> list[Row]:
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


def _differences(
    table: sa.Table, before: Sequence[Row], after: Sequence[Row]
) -> Iterator[Difference]:
    names, one = _key_names(table), next(iter([*before, *after]), _MISSING)
    if not names or not one.keys() >= set(names):
        yield from _differences_without_key(table, before, after)
        return
    old, new = ({_key(row, names): row for row in rows} for rows in (before, after))
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if was is None or now is None or not _are_same(was, now):
            yield Difference(table.fullname, dict(zip(names, key, strict=True)), was, now)


def _differences_without_key(
    table: sa.Table, before: Sequence[Row], after: Sequence[Row]
) -> Iterator[Difference]:
    old, new = (Counter(map(row_text, rows)) for rows in (before, after))
    for row in before:
        if old[row_text(row)] > new[row_text(row)]:
            old[row_text(row)] -= 1
            yield Difference(table.fullname, {}, row, None)
    for row in after:
        if new[row_text(row)] > old[row_text(row)]:
            new[row_text(row)] -= 1
            yield Difference(table.fullname, {}, None, row)


def _key(row: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def _are_same(one: Any, other: Any) -> bool:
    return bool(one == other) or repr(one) == repr(other)  # not a number is not itself


def row_text(row: Mapping[str, Any] | None) -> str:
    """Return a row as text, values included."""
    return "(" + ", ".join(f"{name}={value!r}" for name, value in (row or {}).items()) + ")"


# -- putting back ----------------------------------------------------------------------


def _take_away(
    connection: sa.Connection, table: sa.Table, wanted: Sequence[Row], now: Sequence[Row]
) -> None:
    """Delete the rows that were not there. Rows without a key are deleted all or none."""
    names = _key_names(table)
    if not names:
        if any(_differences_without_key(table, wanted, now)):
            connection.execute(table.delete())
        return
    there = {_key(row, names) for row in wanted}
    for row in now:
        if _key(row, names) not in there:
            connection.execute(table.delete().where(_is_row(table, row, names)))


def _give_back(
    connection: sa.Connection, table: sa.Table, wanted: Sequence[Row], now: Sequence[Row]
) -> None:
    names = _key_names(table)
    if not names:
        if any(_differences_without_key(table, wanted, now)):
            for row in wanted:
                connection.execute(table.insert().values(_written(table, row)))
        return
    there = {_key(row, names): row for row in now}
    for row in wanted:
        found = there.get(_key(row, names))
        if found is None:
            connection.execute(table.insert().values(_written(table, row)))
        elif changed := {k: v for k, v in row.items() if not _are_same(v, found[k])}:
            statement = table.update().where(_is_row(table, row, names))
            if values := _written(table, changed):
                connection.execute(statement.values(values))


def _is_row(table: sa.Table, row: Row, names: Sequence[str]) -> sa.ColumnElement[bool]:
    return sa.and_(*(table.c[name] == row[name] for name in names))


def _written(table: sa.Table, row: Row) -> dict[str, Any]:
    """Leave out what the database computes."""
    return with_nulls({k: v for k, v in row.items() if table.c[k].computed is None})


def with_nulls(row: Mapping[str, Any]) -> Row:
    """Return a row in which None is NULL, in documents too: SQLAlchemy would write JSON's null."""
    return {name: sa.null() if value is None else value for name, value in row.items()}
