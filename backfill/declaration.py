"""Backfill: what a user writes, checked when the class is created."""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import re
import textwrap
import warnings
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

import sqlalchemy as sa

from backfill import settings
from backfill.errors import BackfillError, DeclarationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from backfill.statements import ChunkStatements

EXAMPLE = '''
class FillFullName(Backfill):
    """Give every user a full name."""
    table = "users"
    where = "full_name IS NULL"
    values = {"full_name": "first || ' ' || last"}
'''


class DeclarationWarning(UserWarning):
    """A declaration works today but will break an old migration one day."""


class Level(Enum):
    """Who does the work of a chunk."""

    SET = "set-based"
    """The database, in one statement: `values`."""
    ROWS = "Python"
    """Python, outside any transaction: `transform` or `transform_chunk`."""
    CUSTOM = "custom"
    """Statements of the user's own, in the chunk's transaction: `apply`."""


class Backfill:
    """Base of all declarations. Declare exactly one of `values`, `transform` (or
    `transform_chunk`) and `apply`.

    The class stands in a revision's own file, or in a module of `backfills/` beside
    `versions/` and then names its `revision`.
    """

    name: ClassVar[str]
    """Identity in the state tables; the class name in snake case unless given."""
    revision: ClassVar[str | None] = None
    """The Alembic revision after which this may run; inferred in a revision's own file."""
    database: ClassVar[str | None] = None
    """Which one, where env.py migrates several: the name of its section, or Flask's bind key."""
    table: ClassVar[Any] = None
    """Table name, `"schema.table"` included. A mapped class is taken for its name, with a
    warning."""
    schema: ClassVar[str | None] = None
    """The table's schema, where `table` does not say it."""
    key: ClassVar[str | Sequence[str] | None] = None
    """The unique, not-null columns to walk by; the primary key unless given."""
    where: ClassVar[Any] = None
    """The pending predicate: SQL text, an expression, or a method from table to expression.
    Without it every row up to the highest key at the start is done once."""
    values: ClassVar[Any] = None
    """Column to SQL text or expression, or a method from table to such a mapping."""
    reads: ClassVar[Sequence[str]] = ()
    """Columns that `transform` needs; it always has the key."""
    writes: ClassVar[Sequence[str]] = ()
    """Columns that `transform` returns."""
    depends_on: ClassVar[Sequence[str]] = ()
    """Names of the backfills that have to be complete before this one starts."""
    sync: ClassVar[bool] = False
    """Apply `values` to what the application writes too, by triggers that are installed before
    the walk and removed by the gate or by `backfill cancel`."""

    chunk_size: ClassVar[int | None]
    chunk_bytes: ClassVar[int | None]
    target_seconds: ClassVar[float]
    nice: ClassVar[float | None]
    rows_per_second: ClassVar[float | None]
    window: ClassVar[str | None]
    gate: ClassVar[str]
    inline_rows: ClassVar[int]
    workers: ClassVar[int]
    lock_timeout: ClassVar[float]
    statement_timeout: ClassVar[float]
    idle_timeout: ClassVar[float]
    lease_seconds: ClassVar[float]
    retry_seconds: ClassVar[float]
    max_failures: ClassVar[int]
    max_passes: ClassVar[int]
    max_blocked_seconds: ClassVar[float]
    max_replica_lag: ClassVar[float]
    replicas: ClassVar[Sequence[str]]
    max_retained_wal: ClassVar[int]
    max_archive_queue: ClassVar[int]
    max_wal_rate: ClassVar[int]
    max_active_sessions: ClassVar[int | None]
    max_dead_rows: ClassVar[float]
    max_snapshot_age: ClassVar[float]
    max_history_length: ClassVar[int]
    max_redo_fill: ClassVar[float]
    min_free_disk: ClassVar[int]
    throttle_file: ClassVar[str | None]
    throttle_url: ClassVar[str | None]
    throttle_query: ClassVar[str | None]
    max_added_latency: ClassVar[float]
    probe_query: ClassVar[str | None]

    level: ClassVar[Level]

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if abstract:
            return
        if "name" not in cls.__dict__:
            cls.name = _snake_case(cls.__name__)
        _refuse_misspelt(cls)
        cls.table = _table_name(cls)
        cls.level = _level(cls)
        _check(cls)

    def transform(self, row: Any) -> Mapping[str, Any] | None:
        """Return the columns to write for a row, or None to leave it as it is.

        `row` has the key columns and those in `reads` as attributes and as `row["name"]`.
        Runs outside any transaction, and again if the row changed meanwhile.
        """
        raise NotImplementedError

    def transform_chunk(self, rows: Sequence[Any]) -> Iterable[Mapping[str, Any] | None]:
        """Like `transform` for many rows at once: one result a row, in their order."""
        raise NotImplementedError

    def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> int | None:
        """Do a chunk's work with statements of your own, in the chunk's transaction.

        `chunk.select()`, `chunk.update()`, `chunk.delete()` and `chunk.condition` are limited
        to the chunk. Return the number of rows changed, or None for the rows that were there when
        the chunk was cut: who writes them meanwhile makes that another number.
        """
        raise NotImplementedError

    def throttle(self, connection: sa.Connection) -> float | bool | str | None:
        """Say whether to go on, each second, from a thread and a connection of its own.

        Return None, False or 0 to go on; True, or the reason as text, to wait; or a number
        between: 0 is free, at 1 nothing is written. An error means: wait.
        """
        raise NotImplementedError

    @classmethod
    def description(cls) -> str:
        """Return the first line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    @classmethod
    def tuning(cls) -> dict[str, Any]:
        """Return the settings that the class itself sets."""
        return {n: getattr(cls, n) for n in sorted(settings.NAMES) if hasattr(cls, n)}

    @classmethod
    def fingerprint(cls) -> str:
        """Return a digest of everything that the class says on what is written.

        Helpers and constants of the class count; its name, settings, layout and comments do
        not, nor does what it calls elsewhere.
        """
        said: dict[str, Any] = {}
        for base in reversed(cls.__mro__[: cls.__mro__.index(Backfill)]):
            said |= {n: v for n, v in vars(base).items() if n not in _NOT_WRITTEN}
        parts = [
            f"{name}={_canonical(value)}"
            for name, value in sorted(said.items())
            if not name.startswith("__")
        ]
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:32]


_NOT_WRITTEN = settings.NAMES | {
    *("name", "revision", "database", "level", "depends_on", "sync", "throttle")
}
_KNOWN = sorted({n for n in (*vars(Backfill), *Backfill.__annotations__) if not n.startswith("_")})


def _overrides(cls: type[Backfill], method: str) -> bool:
    return getattr(cls, method) is not getattr(Backfill, method)


def _snake_case(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return words.lower()


def _wrong(cls: type[Backfill], problem: str) -> DeclarationError:
    return DeclarationError(f"{cls.__name__}: {problem} A correct example:\n{EXAMPLE}")


def _table_name(cls: type[Backfill]) -> str:
    if isinstance(cls.table, str) and cls.table:
        return cls.table
    mapped = cls.table if isinstance(cls.table, sa.Table) else getattr(cls.table, "__table__", None)
    if isinstance(mapped, sa.Table):
        warnings.warn(
            f'{cls.__name__}: table = "{mapped.fullname}" is safer than a live model, which will'
            " have moved on when an old migration runs again.",
            DeclarationWarning,
            stacklevel=3,
        )
        return mapped.fullname
    raise _wrong(cls, "`table` must be the table's name.")


def _level(cls: type[Backfill]) -> Level:
    found = [Level.SET] if cls.values is not None else []
    found += [Level.ROWS for m in ("transform", "transform_chunk") if _overrides(cls, m)]
    found += [Level.CUSTOM] if _overrides(cls, "apply") else []
    if len(found) != 1:
        said = "none of them" if not found else "more than one"
        raise _wrong(
            cls,
            "declare exactly one of `values`, `transform`, `transform_chunk` and `apply`;"
            f" this class has {said}.",
        )
    return found[0]


def _check(cls: type[Backfill]) -> None:
    if not isinstance(cls.name, str) or not re.fullmatch(r"[\w.-]{1,200}", cls.name):
        raise _wrong(cls, "`name` must be up to 200 letters, digits, `_`, `.` or `-`.")
    for attribute in ("reads", "writes"):
        if not _are_names(getattr(cls, attribute)):
            raise _wrong(cls, f'`{attribute}` must be a list of column names, like ["first"].')
    if not _are_names(cls.depends_on):
        raise _wrong(cls, '`depends_on` must be a list of names, like ["split_names"].')
    for attribute in ("schema", "revision", "database"):
        if not isinstance(getattr(cls, attribute), (str, type(None))):
            raise _wrong(cls, f"`{attribute}` must be text.")
    is_name = isinstance(cls.key, str) and cls.key
    if cls.key is not None and not is_name and not (cls.key and _are_names(cls.key)):
        raise _wrong(cls, '`key` must be a column name, or a list like ["account", "number"].')
    if cls.level is Level.ROWS and not cls.writes:
        raise _wrong(cls, '`writes` must name the columns that it fills, like ["full_name"].')
    if cls.level is not Level.ROWS and (cls.reads or cls.writes):
        raise _wrong(cls, "`reads` and `writes` belong to `transform`; remove them here.")
    if cls.level is Level.SET:
        _check_values(cls)
    if not isinstance(cls.sync, bool):
        raise _wrong(cls, "`sync` must be True or False.")
    if cls.sync and (cls.level is not Level.SET or cls.where is None):
        raise _wrong(
            cls,
            "`sync` needs `values` and `where`: its triggers apply the one to rows that match the"
            " other. Declare both, or leave `sync` out.",
        )
    if cls.where is not None and not _is_sql(cls.where):
        raise _wrong(
            cls,
            "`where` must be SQL text (the text itself, without sa.text), an SQLAlchemy"
            " expression or a method.",
        )
    if hasattr(cls, "state_schema"):
        raise _wrong(
            cls,
            "`state_schema` is one for the whole project: it belongs into [backfill] of alembic.ini"
            " or [tool.backfill] of pyproject.toml.",
        )
    try:
        settings.resolve((cls.__name__, cls.tuning()))
    except BackfillError as error:
        raise DeclarationError(str(error)) from error


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(c, str) and c for c in value)


def _refuse_misspelt(cls: type[Backfill]) -> None:
    """A `were` that is taken for a helper of the class would overwrite every row."""
    for name, value in vars(cls).items():
        if name.startswith("_") or name in _KNOWN:
            continue
        known = ["where", "values"] if inspect.isfunction(value) else _KNOWN
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if close:
            raise _wrong(cls, f"`{name}` is not known; did you mean `{close[0]}`?")


def _check_values(cls: type[Backfill]) -> None:
    if callable(cls.values):
        return
    if not isinstance(cls.values, dict) or not cls.values:
        raise _wrong(cls, "`values` must map columns to SQL.")
    for column, sql in cls.values.items():
        if not isinstance(column, str):
            raise _wrong(cls, "the names in `values` must be column names in quotes.")
        if sql is not ... and not _is_sql(sql):  # dots: refused when the table is looked at
            raise _wrong(
                cls,
                f"the value of {column!r} must be SQL text (without sa.text; a string constant has"
                " its own quotes: \"'new'\") or an SQLAlchemy expression.",
            )


def _is_sql(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    is_expression = isinstance(value, sa.ColumnElement) or hasattr(value, "__clause_element__")
    return is_expression or inspect.isfunction(value)


def _canonical(value: Any) -> str:
    if isinstance(value, dict):
        return repr([(str(name), _canonical(item)) for name, item in value.items()])
    if isinstance(value, (list, tuple)):
        return repr([_canonical(item) for item in value])
    if isinstance(value, (set, frozenset)):
        return repr(sorted(_canonical(item) for item in value))
    if hasattr(value, "__clause_element__"):
        value = value.__clause_element__()
    if isinstance(value, sa.ClauseElement):
        compiled = value.compile()
        return f"{compiled} {sorted(compiled.params.items())!r}"
    if isinstance(value, property):
        return "" if value.fget is None else _source(value.fget)
    function = inspect.unwrap(getattr(value, "__func__", value))
    if inspect.isfunction(function):
        return _source(function)
    # Anything else may say its address in its repr, which is another one each time.
    return repr(value) if isinstance(value, _STABLE) else type(value).__name__


_STABLE = (
    str,
    bytes,
    int,
    float,
    bool,
    type(None),
    Decimal,
    date,
    time,
    timedelta,
    UUID,
    re.Pattern,
)


def _source(function: Any) -> str:
    """Return a function's syntax tree as text; its bytecode where the source is gone."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return _bytecode(function.__code__)
    body = tree.body[0]
    if isinstance(body, (ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(body):
        body.body = body.body[1:]
    return ast.unparse(tree)


def _bytecode(code: CodeType) -> str:
    constants = [_bytecode(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, code.co_names, constants))
