"""Plan: what a run would do, found out by reading, and by a first chunk that is rolled back."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill import aftercare, store, sync
from backfill.dialects import Limits, Overtaken
from backfill.errors import BackfillError
from backfill.failures import describe
from backfill.keys import START, KeyValues, alike
from backfill.runs import Status
from backfill.scans import Scans, last_key, pending_condition
from backfill.targets import hidden_rows
from backfill.walk import Walk
from backfill.writers import Written, writer_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill.chunks import Chunk
    from backfill.settings import Settings
    from backfill.targets import Target
    from backfill.writers.base import Writer

_SAMPLES = 8
_SAMPLE_ROWS = 500
_SPARSE = 0.05
_SMALL_TABLE = 10_000
"""Below this many rows a planner rightly prefers to read the whole table."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A read-only forecast of a run."""

    name: str
    revision: str
    table: str
    key: list[str]
    level: str
    rows_estimated: int | None
    pending_share: float | None
    """Share of rows that are pending, of a sample; None without a `where` or without rows."""
    statements: list[str]
    walk_plan: list[str]
    walk_is_index_range: bool
    chunk_rows: int = 0
    chunk_seconds: float = 0.0
    seconds_estimated: float | None = None
    sync: list[str] = field(default_factory=list)
    """The DDL that installs the triggers of `sync`."""
    warnings: list[str] = field(default_factory=list)
    complete: bool = False
    """A run has succeeded, and of the rows sampled none is pending: there is nothing to warn of."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What reading tells of a backfill's table."""

    rows: int | None
    """About; None: not known."""
    pending_share: float | None
    walk_plan: list[str]
    walk_is_index_range: bool

    @property
    def is_small(self) -> bool:
        return self.rows is not None and self.rows <= _SMALL_TABLE

    @property
    def is_sparse(self) -> bool:
        """Whether so few rows are pending that an index of them is worth its while."""
        share = self.pending_share
        return share is not None and share < _SPARSE and self.rows is not None and not self.is_small


class _RollBack(Exception):
    """Ends the first chunk's transaction without its writes."""


def make_plan(target: Target, settings: Settings) -> Plan:
    """Return the plan of a backfill; nothing that it writes is committed."""
    by_index = not target.key.is_single
    limits = Limits.of(settings, f"backfill: plan {target.declaration.name}", by_index=by_index)
    return _Planner(target, settings, limits).plan()


def survey(target: Target, settings: Settings) -> Survey:
    """Return what a plan says of the table, in one short transaction that only reads."""
    by_index = not target.key.is_single
    limits = Limits.of(settings, f"backfill: look {target.declaration.name}", by_index=by_index)
    planner, dialect = _Planner(target, settings, limits), target.dialect
    with (
        dialect.open(limits) as connection,
        dialect.transaction(connection, limits, write=False),
    ):
        return planner.survey(connection)


class _Planner:
    def __init__(self, target: Target, settings: Settings, limits: Limits) -> None:
        self.target = target
        self.dialect = target.dialect
        self.settings = settings
        self.limits = limits
        self.warnings: list[str] = []
        self.shown: list[str] = []

    def plan(self) -> Plan:
        target = self.target
        with self.dialect.open(self.limits) as connection:
            with self.dialect.transaction(connection, self.limits, write=False):
                found = self.survey(connection)
                is_complete = self._is_complete(connection, found.pending_share)
                if not is_complete:
                    self._warn(connection, found)
                triggers = [] if is_complete else self._triggers(connection)
            chunk_rows, seconds = (0, 0.0) if is_complete else self._first_chunk(connection)
        return Plan(
            name=target.declaration.name,
            revision=target.declaration.revision or "",
            table=target.table.fullname,
            key=list(target.key.names),
            level=target.declaration.level.value,
            rows_estimated=found.rows,
            pending_share=found.pending_share,
            statements=self.shown,
            walk_plan=found.walk_plan,
            walk_is_index_range=found.walk_is_index_range,
            chunk_rows=chunk_rows,
            chunk_seconds=round(seconds, 6),
            seconds_estimated=_forecast(found, chunk_rows, seconds),
            sync=triggers,
            warnings=self.warnings,
            complete=is_complete,
        )

    def survey(self, connection: sa.Connection) -> Survey:
        """Look at the table, in the caller's transaction."""
        rows = self.dialect.row_estimate(connection, self.target.table)
        points = [START, *self._sample_points(connection, rows)]
        share = self._pending_share(connection, points)
        return Survey(rows, share, *self._walk_plan(connection, points))

    def _is_complete(self, connection: sa.Connection, share: float | None) -> bool:
        run = None
        if store.exists(connection):
            run = store.current(connection, self.target.declaration.name)
        return run is not None and run.status is Status.SUCCEEDED and not share

    def _sample_points(self, connection: sa.Connection, rows: int | None) -> list[KeyValues]:
        if not rows or rows < _SAMPLES * _SAMPLE_ROWS:
            return []
        return self.dialect.split_points(connection, self.target.key, rows, _SAMPLES)

    def _pending_share(self, connection: sa.Connection, points: list[KeyValues]) -> float | None:
        """Look at a few hundred rows in several places."""
        pending = pending_condition(self.target, ())
        upper = last_key(connection, self.target.key)
        if pending is None or upper == START:
            return None
        scans = Scans(self.target)
        found = scanned = 0
        for point in points:
            end, passed, _ = scans.bounded(connection, point, upper, _SAMPLE_ROWS)
            found += len(scans.page(connection, point, end, _SAMPLE_ROWS))
            scanned += passed
        return found / scanned if scanned else None

    def _walk_plan(
        self, connection: sa.Connection, points: list[KeyValues]
    ) -> tuple[list[str], bool]:
        """Explain the statement that cuts a chunk out of the middle of the table."""
        upper = last_key(connection, self.target.key)
        if upper == START:
            return ["the table is empty"], True
        key = self.target.key
        low = points[len(points) // 2] or upper
        statement = (
            sa.select(*key.selected)
            .where(key.between(key.constants(low), key.constants(upper), alike=alike(low, upper)))
            .order_by(*key.columns)
            .limit(self._size())
        )
        explanation = self.dialect.explain(connection, statement)
        return list(explanation.lines), explanation.is_index_range

    def _warn(self, connection: sa.Connection, found: Survey) -> None:
        target = self.target
        if not found.walk_is_index_range and not found.is_small:
            self.warnings.append(
                f"the walk over {', '.join(target.key.names)} is not an index range (see its plan):"
                " each chunk would read far. Add an index on the key, or name another `key`."
            )
        self.warnings += aftercare.index_advice(target, connection)
        self.warnings += self._side_effects(connection)
        slow = self.dialect.slow_columns(target) if target.computes else []
        for name in slow:
            self.warnings.append(
                f"{name!r} is of a type that the bulk write cannot take, so rows are written one by"
                " one, which is slow."
            )
        if target.pending is None:
            self.warnings.append(
                "there is no `where`: every row up to the highest key at the start is done once."
                " Rows inserted later are up to the application, and no sweep can look for them; a"
                " row whose key changes meanwhile may be passed over, or done twice."
            )
        elif found.is_sparse:
            self.warnings.append(
                f"about {found.pending_share:.1%} of the rows sampled are pending, so the walk"
                f" scans far to find them (all of about {found.rows:,} rows). A partial index on"
                " the key for this `where`"
                " would spare that, if it is run often."
            )

    def _side_effects(self, connection: sa.Connection) -> Iterator[str]:
        """Say what a database does besides where a row is written."""
        table, written, upkeep = self.target.table, self.target.written, self.dialect.upkeep
        if told := hidden_rows(self.target, connection):
            yield f"{told}."
        for name in upkeep.fired(connection, table, written):
            yield (
                f"trigger {name!r} of {table.fullname!r} fires for each row that is written, as for"
                " an update of the application's. See that this does no harm."
            )
        for name in upkeep.stamped(connection, table):
            if name not in written:
                yield (
                    f"{name!r} gets the time of the run in each row that is written (ON UPDATE)."
                    " To keep it, let the backfill write it too, with the value that it has."
                )

    def _triggers(self, connection: sa.Connection) -> list[str]:
        if not self.target.declaration.sync:
            return []
        self.warnings += sync.advice(self.target, connection)
        return sync.ddl(self.target, connection)

    def _size(self) -> int:
        return self.settings.chunk_size or self.dialect.first_rows

    def _first_chunk(self, connection: sa.Connection) -> tuple[int, float]:
        """Do the first chunk as a run would, and roll it back: its rows and seconds."""
        target = self.target
        walk = Walk(target)
        writer = writer_for(target, walk.scans)
        try:
            with self.dialect.transaction(connection, self.limits, write=False):
                upper = last_key(connection, target.key)
                if upper == START:
                    return 0, 0.0
                chunk = walk.next(connection, START, upper, self._size(), seconds=0.2)
            started = time.perf_counter()
            writer.compute(chunk, lambda: None)
            try:
                return self._rolled_back(connection, chunk, writer, started)
            except Overtaken:  # as a worker would: with locks
                writer.be_careful()
                return self._rolled_back(connection, chunk, writer, started)
        except BackfillError:
            raise
        except Exception as error:
            self.warnings.append(f"the first chunk failed: {describe(error, self.dialect)}.")
            return 0, 0.0

    def _rolled_back(
        self, connection: sa.Connection, chunk: Chunk, writer: Writer, started: float
    ) -> tuple[int, float]:
        """Write a chunk, and take it back: its rows, and the seconds since it was begun."""
        done = 0, 0.0
        with suppress(_RollBack), self.dialect.transaction(connection, self.limits):
            with _collecting(connection, self.shown):
                written = writer.write(connection, chunk)
            done = self._rows(chunk, written), time.perf_counter() - started
            self._warn_of(written)
            self.warnings += aftercare.advice(self.target, connection)
            raise _RollBack
        return done

    def _rows(self, chunk: Chunk, written: Written) -> int:
        return written.changed or len(chunk.page or ()) or chunk.scanned

    def _warn_of(self, written: Written) -> None:
        if written.failures:
            self.warnings.append(
                f"{len(written.failures)} rows of the first chunk cannot be written, for example:"
                f" {written.failures[0].error}."
            )


@contextmanager
def _collecting(connection: sa.Connection, texts: list[str]) -> Iterator[None]:
    """Collect the SQL that the connection sends, each text once, without values."""
    has_escapes = connection.dialect.paramstyle in ("format", "pyformat")

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        plain = statement.replace("%%", "%") if has_escapes else statement
        ends_lines = "--" in plain or "#" in plain  # a comment ends with its line
        text = ("\n" if ends_lines else " ").join(
            " ".join(line.split()) for line in plain.splitlines()
        )
        if text not in texts:
            texts.append(text)

    sa.event.listen(connection.engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        sa.event.remove(connection.engine, "before_cursor_execute", note)


def _forecast(found: Survey, chunk_rows: int, seconds: float) -> float | None:
    if found.rows is None or not chunk_rows:
        return None
    share = 1.0 if found.pending_share is None else found.pending_share
    return round(found.rows * share * seconds / chunk_rows, 1)
