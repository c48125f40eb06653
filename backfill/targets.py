"""A declaration bound to the table as the database has it now: everything checked by reading."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.sql import visitors

from backfill.declaration import Level
from backfill.dialects import PASSING, ErrorKind
from backfill.dialects.base import OWN_SCHEMA
from backfill.dialects.triggers import mentions, without_percents
from backfill.errors import DeclarationError, KeyChanged
from backfill.keys import Key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill.declaration import Backfill
    from backfill.dialects import Dialect
    from backfill.runs import Run


_IS_OVER = " If a later revision has dropped it, the backfill is over: delete the class."


@dataclass(frozen=True, slots=True)
class Target:
    """The table, its key, and what is to be done, as SQLAlchemy constructs."""

    declaration: type[Backfill]
    dialect: Dialect
    table: sa.Table
    key: Key
    pending: sa.ColumnElement[bool] | None
    """Rows that are still to do; None: every row."""
    assignments: Mapping[str, sa.ColumnElement[Any]] = field(default_factory=dict)
    """Column to expression, for a set-based backfill."""

    @property
    def reads(self) -> list[sa.Column[Any]]:
        """The columns that a row given to Python has."""
        wanted = dict.fromkeys((*self.key.names, *self.declaration.reads))
        return [self.table.c[name] for name in wanted]

    @property
    def travelling(self) -> list[sa.Column[Any]]:
        """The columns whose values a bulk write sends: the key's, and those written."""
        return [*self.key.columns, *(self.table.c[name] for name in self.declaration.writes)]

    @property
    def is_custom(self) -> bool:
        """Whether statements of the user's own do the work."""
        return self.declaration.level is Level.CUSTOM

    @property
    def computes(self) -> bool:
        """Whether Python works out what is written, so that rows are read."""
        return self.declaration.level is Level.ROWS

    @property
    def written(self) -> list[str]:
        return [*self.assignments, *self.declaration.writes]


def bind(declaration: type[Backfill], dialect: Dialect, connection: sa.Connection) -> Target:
    """Reflect the table and fit the declaration to it; reads only.

    Raises DeclarationError, with what to do, for anything that does not fit.
    """
    with warnings.catch_warnings():
        # Types and indexes that SQLAlchemy does not know are none of this backfill's business.
        warnings.simplefilter("ignore", sa.exc.SAWarning)
        table = _reflect(declaration, dialect, connection)
        if problem := dialect.unfit_table(connection, table):
            raise DeclarationError(f"{declaration.name}: table {table.fullname!r} {problem}")
        key = _key(declaration, dialect, connection, table)
    where = declaration.where
    pending = None if where is None else condition_of(where, declaration, table)
    assignments = _assignments(declaration, table) if declaration.level is Level.SET else {}
    target = Target(declaration, dialect, table, key, pending, assignments)
    _check_columns(target)
    if problem := dialect.unfit_writes(connection, target):
        raise DeclarationError(f"{declaration.name}: {problem}")
    if dialect.assigns_in_order:
        _check_order(target)
    _check_sql(target, connection)
    return target


def place_of(declaration: type[Backfill], inspector: sa.Inspector) -> tuple[str | None, str]:
    """Return schema and name of the table: `a.b` is a name, or one in a schema."""
    name, schema = declaration.table, declaration.schema
    if schema is None and "." in name and not inspector.has_table(name):
        schema, name = name.rsplit(".", 1)
    return schema, name


def named_columns(declaration: type[Backfill]) -> list[str]:
    """Return the columns that a class says it writes."""
    values = declaration.values if isinstance(declaration.values, Mapping) else {}
    return [*values, *declaration.writes]


def _reflect(declaration: type[Backfill], dialect: Dialect, connection: sa.Connection) -> sa.Table:
    inspector = sa.inspect(connection)
    schema, name = place_of(declaration, inspector)
    if not _exists(inspector, dialect, name, schema):
        raise DeclarationError(
            f"{declaration.name}: there is no table {declaration.table!r}"
            f"{_close(name, inspector.get_table_names(schema) if _has(inspector, schema) else [])}"
            f" If a revision creates it, name that revision or a later one in the class.{_IS_OVER}"
        )
    table = sa.Table(
        name, sa.MetaData(), schema=schema, autoload_with=connection, resolve_fks=False
    )
    for column in table.c:
        if isinstance(column.type, sa.JSON):
            column.type.none_as_null = True  # None is NULL, as for every other type
    table.info[OWN_SCHEMA] = inspector.default_schema_name
    dialect.complete_reflection(connection, table)
    return table


def _exists(inspector: sa.Inspector, dialect: Dialect, name: str, schema: str | None) -> bool:
    """Whether there is such a table, as far as this user may see."""
    try:
        return inspector.has_table(name, schema)
    except sa.exc.DBAPIError as error:
        if dialect.error_kind(error) in (ErrorKind.RIGHTS, ErrorKind.SCHEMA):
            return False
        raise


def _has(inspector: sa.Inspector, schema: str | None) -> bool:
    return schema is None or schema in inspector.get_schema_names()


def _close(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else "."


def hidden_rows(target: Target, connection: sa.Connection) -> str | None:
    """Return what is to be said where this user is not shown all rows; None: it is, as far as one
    knows."""
    if not target.dialect.hides_rows(connection, target.table):
        return None
    return (
        f"policies of {target.table.fullname!r} decide which rows this user sees, and the others"
        " are neither written nor proved: run as a user for whom they do not hold (BYPASSRLS)"
    )


def check_key(target: Target, run: Run) -> None:
    """Raise KeyChanged where a run's cursors and failures are keys of another kind."""
    before, now = run.key, target.key.shape
    if before and before != now:
        shown = [", ".join(f"{name} ({kind})" for name, kind in one) for one in (before, now)]
        raise KeyChanged(run.name, target.table.fullname, *shown)


# -- the key ---------------------------------------------------------------------------


def _key(
    declaration: type[Backfill],
    dialect: Dialect,
    connection: sa.Connection,
    table: sa.Table,
) -> Key:
    names = _key_names(declaration, table)
    for name in names:
        _column(declaration, table, name, "the key")
    columns = tuple(table.c[name] for name in names)
    where = f"{declaration.name}: the key of {table.fullname!r}"
    for column in columns:
        if column.nullable and not dialect.is_never_null(connection, table, column):
            _refuse_view(declaration, connection, table)
            raise DeclarationError(
                f"{where} has the nullable column {column.name!r}, and a row without a key would"
                " never be visited. Make it NOT NULL, or name other columns in `key`."
            )
    if not _is_unique(connection, table, set(names)):
        _refuse_view(declaration, connection, table)
        raise DeclarationError(
            f"{where}, {', '.join(names)}, is not unique by a constraint or index of just these"
            " columns. Name the columns of a primary key or of a unique constraint in `key`, or"
            " add such a constraint."
        )
    computes = declaration.level is Level.ROWS
    if doubts := dialect.key_doubts(connection, table, names, computes=computes):
        raise DeclarationError(f"{where}, {', '.join(names)}, {doubts}.")
    types = [dialect.key_type(column) for column in columns]
    for column, kind in zip(columns, types, strict=True):
        if kind is None:
            raise DeclarationError(
                f"{where} has the column {column.name!r} of {_type(column, dialect)}, whose values"
                " do not keep an exact order here. Name other unique columns in `key`."
            )
    return Key(columns, tuple(kind for kind in types if kind is not None), dialect)


def _type(column: sa.Column[Any], dialect: Dialect) -> str:
    if isinstance(column.type, sa.types.NullType):
        return "a type that SQLAlchemy does not know"
    return f"type {column.type.compile(dialect.engine.dialect)}"


def _refuse_view(declaration: type[Backfill], connection: sa.Connection, table: sa.Table) -> None:
    """A view has no constraints, whatever is done about its key."""
    inspector = sa.inspect(connection)
    names = inspector.get_view_names(table.schema)
    with suppress(NotImplementedError):  # SQLAlchemy knows databases that have none
        names += inspector.get_materialized_view_names(table.schema)
    if table.name in names:
        raise DeclarationError(
            f"{declaration.name}: {table.fullname!r} is a view, and nothing says that its rows have"
            " a key. Name the table behind it."
        )


def _key_names(declaration: type[Backfill], table: sa.Table) -> list[str]:
    if declaration.key is None:
        names = [column.name for column in table.primary_key.columns]
        if not names:
            raise DeclarationError(
                f"{declaration.name}: table {table.fullname!r} has no primary key to walk by. Name"
                ' unique, not-null columns: `key = ["account", "number"]`.'
            )
        return names
    names = [declaration.key] if isinstance(declaration.key, str) else list(declaration.key)
    if len(set(names)) < len(names):
        raise DeclarationError(f"{declaration.name}: `key` names a column twice.")
    return names


def _is_unique(connection: sa.Connection, table: sa.Table, names: set[str]) -> bool:
    if names == {column.name for column in table.primary_key.columns}:
        return True
    inspector = sa.inspect(connection)
    constraints = inspector.get_unique_constraints(table.name, table.schema)
    if any(set(constraint["column_names"]) == names for constraint in constraints):
        return True
    return any(
        index["unique"] and set(index["column_names"]) == names and not _is_partial(index)
        for index in inspector.get_indexes(table.name, table.schema)
    )


def _is_partial(index: Any) -> bool:
    return any(name.endswith("_where") for name in index.get("dialect_options", {}))


# -- SQL -------------------------------------------------------------------------------


def _sql(text: str, kind: Any = None) -> sa.ColumnElement[Any]:
    """Take SQL text as it stands: `%` and `:` mean nothing, a comment at its end ends there."""
    comment = "\n" if "--" in text or "#" in text else ""
    return sa.literal_column(f"({text}{comment})", kind)


def _expression(given: Any, table: sa.Table) -> sa.ColumnElement[Any]:
    """Rebase an expression on the reflected table, by the names of its columns.

    In a SELECT of its own a bare name is whatever SQL takes it for.
    """

    def named(element: Any, **_: Any) -> Any:
        if not _is_name(element) or not _is_same_table(element.table, table):
            return None
        return table.c.get(element.name)

    def rebased(element: Any, **_: Any) -> Any:
        if isinstance(element, sa.SelectBase | sa.Exists | sa.ScalarSelect):
            return visitors.replacement_traverse(element, {}, named)
        if _is_name(element) and element.table is None:
            return table.c.get(element.name)
        return named(element)

    replaced = visitors.replacement_traverse(_clause(given), {}, rebased)
    assert isinstance(replaced, sa.ColumnElement)
    return replaced


def _is_name(element: Any) -> bool:
    return isinstance(element, sa.ColumnClause) and not getattr(element, "is_literal", False)


def _is_same_table(source: Any, table: sa.Table) -> bool:
    """Whether a table of the declaration's is the reflected one: its schema need not be told."""
    if not isinstance(source, sa.TableClause) or source.name != table.name:
        return False
    return source.schema in (None, table.schema or table.info.get(OWN_SCHEMA))


def _clause(given: Any) -> Any:
    """Return the column that an attribute of a mapped class stands for, else what was given."""
    return given.__clause_element__() if hasattr(given, "__clause_element__") else given


def condition_of(
    where: Any, declaration: type[Backfill], table: sa.Table
) -> sa.ColumnElement[bool]:
    """Return a declaration's `where` on a table. Raises DeclarationError."""
    if callable(where):
        where = declaration().where(table)
    if isinstance(where, str):
        return _sql(where)
    if not isinstance(_clause(where), sa.ColumnElement):
        raise DeclarationError(f"{declaration.name}: `where` must be SQL text or an expression.")
    return _expression(where, table)


def _assignments(declaration: type[Backfill], table: sa.Table) -> dict[str, sa.ColumnElement[Any]]:
    values = declaration.values
    if callable(values):
        values = declaration().values(table)
        if not isinstance(values, Mapping) or not values:
            raise DeclarationError(
                f"{declaration.name}: `values` must return a mapping of columns to SQL; it returned"
                f" {'an empty one' if values == {} else type(values).__name__}."
            )
    found = {}
    for name, given in values.items():
        if given is ...:
            raise DeclarationError(
                f"{declaration.name}: the value of {name!r} is not decided yet. Write SQL in place"
                f" of the dots in `values` of the class {declaration.__name__}."
            )
        if isinstance(given, str):
            found[name] = _sql(given)
        elif isinstance(_clause(given), sa.ColumnElement):
            found[name] = _expression(given, table)
        else:
            raise DeclarationError(
                f"{declaration.name}: the value of {name!r} must be SQL text or an expression; for"
                " a constant write sa.literal(…)."
            )
    return found


# -- checks ----------------------------------------------------------------------------


def _column(declaration: type[Backfill], table: sa.Table, name: str, use: str) -> sa.Column[Any]:
    if name not in table.c:
        raise DeclarationError(
            f"{declaration.name}: table {table.fullname!r} has no column {name!r} for"
            f" {use}{_close(name, list(table.c.keys()))}"
            f" If a revision adds it, name that revision or a later one in the class.{_IS_OVER}"
        )
    return table.c[name]


def _check_columns(target: Target) -> None:
    declaration, table = target.declaration, target.table
    for name in declaration.reads:
        _column(declaration, table, name, "`reads`")
    _check_computed_key(target)
    for name in target.written:
        column = _column(declaration, table, name, "writing")
        if name in target.key.names:
            raise DeclarationError(
                f"{declaration.name}: {name!r} belongs to the key, and a row whose key changes is"
                " missed or done twice. Name other columns in `key`, or use `apply`."
            )
        if column.identity is not None and column.identity.always:
            raise DeclarationError(
                f"{declaration.name}: {name!r} is GENERATED ALWAYS and cannot be written."
            )
        if column.computed is not None:
            raise DeclarationError(
                f"{declaration.name}: {name!r} is computed by the database and cannot be written."
            )


def _check_computed_key(target: Target) -> None:
    for column in target.key.columns:
        made_of = "" if column.computed is None else str(column.computed.sqltext)
        for name in target.written:
            if mentions(made_of, name):
                raise DeclarationError(
                    f"{target.declaration.name}: {column.name!r} belongs to the key, and the"
                    f" database computes it from {name!r}, which is written: a row whose key"
                    " changes is missed or done twice. Name other columns in `key`."
                )


def _check_order(target: Target) -> None:
    """Refuse values that would see each other's results on this database and no other."""
    written: list[str] = []
    for name, value in target.assignments.items():
        text = str(value.compile(dialect=target.dialect.engine.dialect))
        for earlier in written:
            if mentions(text, earlier):
                raise DeclarationError(
                    f"{target.declaration.name}: this database would compute {name!r} from the new"
                    f" value of {earlier!r}, which is assigned before it. Assign {name!r} first, or"
                    " use `transform`."
                )
        written.append(name)


_NO_ROW: sa.ColumnElement[bool] = sa.literal_column("1 = 0")
"""SQLAlchemy would shorten sa.false() AND anything to false, and nothing would be checked."""


def _check_sql(target: Target, connection: sa.Connection) -> None:
    """Let the database parse the SQL, on no rows."""
    everything = [*target.assignments.values(), *_unclosed(target), sa.literal(1)]
    statement = sa.select(*everything).select_from(target.table).where(_NO_ROW)
    if target.pending is not None:
        statement = statement.where(target.pending)
    try:
        connection.execute(statement).all()
    except sa.exc.DBAPIError as error:
        kind = target.dialect.error_kind(error)
        if kind in PASSING:
            raise
        raise DeclarationError(
            f"{target.declaration.name}: the database refuses the SQL of `where` or `values`:"
            f" {str(error.orig).strip()} (statement: {_shown(statement, target.dialect)})"
            f"{f'.{_IS_OVER}' if kind is ErrorKind.SCHEMA else ''}"
        ) from error
    except UnicodeError as error:
        raise DeclarationError(
            f"{target.declaration.name}: the SQL of `where` or `values` holds a character that"
            " cannot be sent to a database (half of a surrogate pair)."
        ) from error
    except sa.exc.SQLAlchemyError as error:
        raise DeclarationError(
            f"{target.declaration.name}: SQLAlchemy makes no SQL of `where` or `values`:"
            f" {str(getattr(error, 'orig', None) or error).strip()}."
        ) from error


def _unclosed(target: Target) -> Iterator[sa.ColumnElement[Any]]:
    """Give each text without the parentheses that we put around it: one that closes them, as in
    `a = 1) OR (a = 2`, would reach beyond its chunk, and is no SQL in here."""
    for value in target.assignments.values():
        if isinstance(value, sa.ColumnClause) and value.is_literal:
            yield sa.literal_column(f"CASE WHEN 1 = 0 THEN {value.name[1:-1]} END")
    if isinstance(target.pending, sa.ColumnClause) and target.pending.is_literal:
        yield sa.literal_column(f"CASE WHEN {target.pending.name[1:-1]} THEN 1 END")


def _shown(statement: sa.Select[Any], dialect: Dialect) -> str:
    plain = without_percents(dialect.engine.dialect)
    return " ".join(str(statement.compile(dialect=plain)).split())
