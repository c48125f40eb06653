"""Makes a table, binds a backfill to it and runs it to its end, inside the test's process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import sqlalchemy as sa

from backfill import overview, settings, workers
from backfill.budget import Budget
from backfill.dialects import Limits, dialect_for
from backfill.discovery import Declared
from backfill.runner import Runner
from backfill.runs import Outcome, Result
from backfill.store import Store
from backfill.targets import bind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from backfill import Backfill
    from backfill.dialects import Dialect
    from backfill.keys import Key, KeyValues
    from backfill.reporters import Event
    from backfill.targets import Target

Row = dict[str, Any]

LIMITS = Limits(lock_timeout=5, statement_timeout=30, idle_timeout=30, label="test")


@dataclass
class Recorder:
    """A reporter that shows nothing and remembers everything."""

    events: list[Event] = field(default_factory=list)
    on: Callable[[Event], object] = lambda event: None

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.on(event)

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Ran:
    """What came of one call of `run`."""

    result: Result
    events: Sequence[Event]

    @property
    def outcome(self) -> Outcome:
        return self.result.outcome

    def numbers(self, what: str, number: str) -> list[Any]:
        """One number of every event of a kind, in their order."""
        return [event.numbers[number] for event in self.events if event.what == what]

    def texts(self, what: str) -> list[str]:
        return [event.text for event in self.events if event.what == what]


def make(
    engine: sa.Engine,
    name: str,
    *columns: sa.schema.SchemaItem,
    rows: Iterable[Row] = (),
    schema: str | None = None,
    **options: Any,
) -> sa.Table:
    """Create a table and fill it."""
    table = sa.Table(name, sa.MetaData(), *columns, schema=schema, **options)
    table.create(engine)
    fill(engine, table, rows)
    return table


def fill(engine: sa.Engine, table: sa.Table, rows: Iterable[Row]) -> None:
    if given := list(rows):
        with engine.begin() as connection:
            connection.execute(table.insert(), given)


def read(engine: sa.Engine, table: sa.Table, *names: str) -> list[Any]:
    """Every row's value of a column, or tuple of several, in the order of the primary key."""
    columns = [table.c[name] for name in names]
    statement = sa.select(*columns).order_by(*table.primary_key.columns)
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(statement)]
    return rows if len(names) > 1 else [value for (value,) in rows]


def count(engine: sa.Engine, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
    statement = sa.select(sa.func.count()).select_from(table).where(*conditions)
    with engine.connect() as connection:
        return connection.execute(statement).scalar_one()


def bound(engine: sa.Engine, declaration: type[Backfill], dialect: Dialect | None = None) -> Target:
    """Fit a declaration to the table as it is now; reads only."""
    dialect = dialect or dialect_for(engine)
    with (
        dialect.open(LIMITS) as connection,
        dialect.transaction(connection, LIMITS, write=False),
    ):
        return bind(declaration, dialect, connection)


def run(
    engine: sa.Engine,
    declaration: type[Backfill],
    *,
    budget: Budget | None = None,
    until: str | None = None,
    accept_change: bool = False,
    dialect: Dialect | None = None,
    **options: Any,
) -> Ran:
    """Run a backfill as `backfill run` does, with these settings as its options; until an event
    of some kind asks it to stop."""
    budget = budget or Budget()

    def look(event: Event) -> None:
        if event.what == until:
            budget.ask_to_stop("by the test")

    target = bound(engine, declaration, dialect)
    how = settings.resolve((declaration.name, declaration.tuning()), ("the test", options))
    recorder = Recorder(on=look)
    runner = Runner(target, Store(target.dialect), how, budget, recorder)
    return Ran(runner.run(accept_change=accept_change), recorder.events)


def complete(engine: sa.Engine, declaration: type[Backfill], **options: Any) -> Ran:
    """Run a backfill that has to end well."""
    ran = run(engine, declaration, **options)
    assert ran.outcome is Outcome.COMPLETE, ran.result.text
    return ran


def complete_by_limits(
    engine: sa.Engine, declaration: type[Backfill], rows: int, **options: Any
) -> int:
    """Run it again and again for so many rows, as after a kill; returns how often."""
    for turn in range(1, 1000):
        ran = run(engine, declaration, budget=Budget(rows=rows), **options)
        if ran.outcome is Outcome.COMPLETE:
            return turn
        assert ran.outcome is Outcome.STOPPED, ran.result.text
    raise AssertionError(f"{declaration.name} does not end")


def complete_in_parallel(
    engine: sa.Engine, declaration: type[Backfill], threads: int, ranges: int, **options: Any
) -> Ran:
    """Run it with workers on key ranges that a big table would be cut into."""
    dialect = dialect_for(engine)
    dialect.row_estimate = lambda connection, table: 1_000_000  # type: ignore[method-assign]
    dialect.split_points = (  # type: ignore[method-assign]
        lambda connection, key, rows, parts: every_nth_key(connection, key, ranges)
    )
    with patch.object(workers, "_WATCH_SECONDS", 0.01):  # how often one without a range looks
        ran = complete(engine, declaration, dialect=dialect, workers=threads, **options)
    assert ran.numbers("started", "ranges") == [ranges]
    return ran


def every_nth_key(connection: sa.Connection, key: Key, parts: int) -> list[KeyValues]:
    """Keys that cut the table into so many equal parts."""
    found = connection.execute(sa.select(*key.selected).order_by(*key.columns))
    keys = [tuple(row) for row in found]
    return [keys[len(keys) * part // parts] for part in range(1, parts)]


def status(engine: sa.Engine, declaration: type[Backfill]) -> Mapping[str, Any]:
    """The document of `backfill status`."""
    return overview.status([declared(declaration)], Store(dialect_for(engine)))[0]


def failures(engine: sa.Engine, declaration: type[Backfill]) -> list[dict[str, Any]]:
    """The document of `backfill failures`."""
    return overview.failures([declared(declaration)], Store(dialect_for(engine)))


def declared(declaration: type[Backfill]) -> Declared:
    """A declaration as if it was found in a revision that is applied."""
    return Declared(declaration, declaration.revision or "a1", Path(__file__), is_applied=True)


def state_tables(engine: sa.Engine) -> list[str]:
    names = sa.inspect(engine).get_table_names()
    return [name for name in names if name.startswith("backfill_")]
