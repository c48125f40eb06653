"""Looks at the databases: what a run would meet, and what earlier runs left. Reads only."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from backfill import store, sync
from backfill.dialects import Limits
from backfill.doctor.findings import ERROR, WARNING, Finding
from backfill.errors import BackfillError, StateError
from backfill.failures import describe
from backfill.kinds import masked
from backfill.planner import survey
from backfill.runs import Status
from backfill.speed.collector import Collector
from backfill.speed.throttles import Activity, Throttle
from backfill.targets import bind, named_columns, place_of

if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine.interfaces import ReflectedIndex

    from backfill.context import Context
    from backfill.dialects import Dialect
    from backfill.discovery import Declared
    from backfill.doctor.sources import Source
    from backfill.runs import Run
    from backfill.targets import Target

    Place = Callable[[Declared], tuple[Source, ast.stmt] | None]

_LIMITS = Limits(lock_timeout=5, statement_timeout=30, idle_timeout=30, label="backfill: doctor")
_OLD = timedelta(hours=1)
"""A run that nobody has worked on for so long is forgotten, rather than between two commands."""
_UNFINISHED = (Status.PENDING, Status.RUNNING)


@dataclass
class Examination:
    """Of one database of the project."""

    context: Context
    place: Place
    """Where a backfill's class stands."""
    everything: bool
    """What is complete is looked at, too."""

    @property
    def dialect(self) -> Dialect:
        return self.context.dialect

    @property
    def name(self) -> str:
        """What findings on the database itself call it."""
        url = self.context.project.engine.url
        return self.context.project.database or masked(url.render_as_string(hide_password=True))

    def findings(self) -> list[Finding]:
        """Return what is wrong here."""
        found: list[Finding] = []
        with self._told(found, self.name), self.reading() as connection:
            found += self._orphans(connection)
        runs: dict[str, Run | None] = {}
        with self._told(found, self.name):
            refused = list(self._state_rights())
            found += refused
            runs = {} if refused else self._runs()
        for one in self.context.declared:
            run = runs.get(one.name)
            found += self._left_by(one, run) if run is not None else ()
            is_over = run is not None and run.status is Status.SUCCEEDED
            if one.is_applied and (self.everything or not is_over):
                with self._told(found, str(one.path)):
                    found += self._awaiting(one)
        return list(dict.fromkeys(found))

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a short transaction that only reads."""
        with (
            self.dialect.open(_LIMITS) as connection,
            self.dialect.transaction(connection, _LIMITS, write=False),
        ):
            yield connection

    @contextmanager
    def _told(self, found: list[Finding], where: str) -> Iterator[None]:
        """Make a finding of what keeps us from looking."""
        try:
            yield
        except StateError as error:
            found.append(
                Finding("state-tables", ERROR, where, None, str(error), "Then look again.")
            )
        except BackfillError as error:
            found.append(Finding("declaration", ERROR, where, None, str(error), "Mend the class."))
        except SQLAlchemyError as error:
            what = f"It could not be looked at: {describe(error, self.dialect)}."
            advice = "See that this user may read the tables and the catalog, and look again."
            found.append(Finding("not-examined", WARNING, where, None, what, advice))

    def _about(
        self, one: Declared, code: str, severity: str, message: str, advice: str
    ) -> Iterator[Finding]:
        """Give a finding on a backfill, unless its class says `# backfill: ok`."""
        text = f"{one.name}: {message}"
        found = self.place(one)
        if found is None:
            yield Finding(code, severity, str(one.path), None, text, advice)
        else:
            source, node = found
            yield from source.tell(node, code, severity, text, advice)

    # -- the database itself -----------------------------------------------------------------

    def _orphans(self, connection: sa.Connection) -> Iterator[Finding]:
        """Find triggers of `sync` that no class stands for any more."""
        names = [one.name for one in self.context.declared]
        for table, trigger in sync.left_behind(names, self.dialect, connection):
            yield Finding(
                "orphaned-trigger",
                WARNING,
                self.name,
                None,
                f"Trigger {trigger} on {table} keeps up with a backfill whose class is gone.",
                "`backfill cancel NAME`, with the name that it had, removes its triggers.",
            )

    def _state_rights(self) -> Iterator[Finding]:
        """Find what this user may not do with the state tables."""
        with self.reading() as connection:
            place = store.schema_of(connection)
            missing = self.dialect.rights.on_state(connection, store.NAMES, place)
        for one in missing:
            yield Finding(
                "missing-privilege", ERROR, self.name, None, f"{one.what}.", f"{one.remedy};"
            )

    # -- earlier runs ------------------------------------------------------------------------

    def _runs(self) -> dict[str, Run | None]:
        here = self.context.store
        if not here.exists():
            return {}
        return {one.name: here.current(one.name) for one in self.context.declared}

    def _left_by(self, one: Declared, run: Run) -> Iterator[Finding]:
        """Find a run that waits for a person, and rows that it could not write."""
        name, error = one.name, f" ({run.error})" if run.error else ""
        if run.status is Status.PAUSED:
            yield from self._about(
                one,
                "run-paused",
                WARNING,
                f"its run is paused{error}.",
                f"`backfill resume {name}` and `backfill run`, or `backfill cancel {name}`.",
            )
        elif run.status is Status.FAILED:
            yield from self._about(
                one,
                "run-failed",
                ERROR,
                f"its run has failed{error}.",
                f"Mend the cause, then `backfill run {name}` goes on.",
            )
        elif run.status in _UNFINISHED and self._is_forgotten(run):
            yield from self._about(
                one,
                "run-unfinished",
                WARNING,
                "its run is not finished, and nobody works on it.",
                f"`backfill run {name}` goes on where it stopped.",
            )
        quarantined = self.context.store.totals(run)[1]
        if quarantined:
            yield from self._about(
                one,
                "rows-quarantined",
                ERROR,
                f"{quarantined:,} rows are in quarantine.",
                f"`backfill failures {name}` says why; mend them, then add --retry.",
            )

    def _is_forgotten(self, run: Run) -> bool:
        ranges = self.context.store.ranges(run)
        leases = [found.lease_expires for found in ranges if found.lease_expires is not None]
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        return now - max([run.updated_at, *leases]) > _OLD and not any(
            found.lease_is_live for found in ranges
        )

    # -- runs to come ------------------------------------------------------------------------

    def _awaiting(self, one: Declared) -> Iterator[Finding]:
        """Find what a run of this backfill would meet."""
        with self.reading() as connection:
            refused = list(self._table_rights(one, connection))
        yield from refused
        if refused:
            return  # whatever else is looked at would only say so again
        with self.reading() as connection:
            target = bind(one.declaration, self.dialect, connection)
            yield from self._unindexed_key(one, target, connection)
            yield from self._idle_vacuum(one, target, connection)
            has_index = _has_partial_index(target, connection)
        if target.pending is not None and not has_index:
            yield from self._sparse(one, target)
        yield from self._unwatched(one, target)

    def _table_rights(self, one: Declared, connection: sa.Connection) -> Iterator[Finding]:
        """Find what this user may not do with the table."""
        declaration = one.declaration
        schema, table = place_of(declaration, sa.inspect(connection))
        writes = named_columns(declaration)
        for missing in self.dialect.rights.on_table(connection, table, schema, writes):
            yield from self._about(
                one, "missing-privilege", ERROR, f"{missing.what}.", f"{missing.remedy};"
            )

    def _unindexed_key(
        self, one: Declared, target: Target, connection: sa.Connection
    ) -> Iterator[Finding]:
        """Find a key whose order no index has: each chunk would sort the rest of the table."""
        names = list(target.key.names)
        if any(columns[: len(names)] == names for columns in _indexed(target, connection)):
            return
        yield from self._about(
            one,
            "key-not-indexed",
            ERROR,
            f"no index of {target.table.fullname} begins with {', '.join(names)}, its key.",
            "Name the key's columns in the order of the unique index, or create an index on them.",
        )

    def _idle_vacuum(
        self, one: Declared, target: Target, connection: sa.Connection
    ) -> Iterator[Finding]:
        """Find that nobody will remove the dead rows which a run leaves."""
        statements = self.dialect.upkeep.idle_vacuum(connection, target.table)
        if statements:
            yield from self._about(
                one,
                "autovacuum-off",
                WARNING,
                f"autovacuum is off for {target.table.fullname}: the table grows by each row that"
                " is changed, and stays so.",
                f"{'; '.join(statements)};",
            )

    def _sparse(self, one: Declared, target: Target) -> Iterator[Finding]:
        """Find so few pending rows among so many that an index of them pays."""
        found = survey(target, self.context.settings(one, {}))
        if not found.is_sparse or target.pending is None:
            return
        key, upkeep = target.key.names, self.dialect.upkeep
        how = upkeep.pending_index(target.table, key, target.pending)
        yield from self._about(
            one,
            "pending-not-indexed",
            WARNING,
            f"about {found.pending_share:.1%} of the rows sampled are pending, so the walk reads"
            f" all of about {found.rows:,} rows for them.",
            f"If it is run often: {how};",
        )

    def _unwatched(self, one: Declared, target: Target) -> Iterator[Finding]:
        """Find signals of the database's health that this user may not see."""
        signals = self.dialect.health(target.table, self.context.settings(one, {}))
        said: list[str] = []
        Collector(self.dialect, signals, Throttle(signals, Activity()), said.append).look()
        for text in said:
            what, _, how = text.partition("; to have it watched: ")
            if how:
                yield Finding("not-watched", WARNING, self.name, None, f"{what}.", f"{how};")


def _indexed(target: Target, connection: sa.Connection) -> Iterator[Sequence[str | None]]:
    """Give the columns of each index that holds all rows."""
    inspector, table = sa.inspect(connection), target.table
    given = (table.name, table.schema)
    yield inspector.get_pk_constraint(*given)["constrained_columns"]
    yield from (one["column_names"] for one in inspector.get_unique_constraints(*given))
    for index in inspector.get_indexes(*given):
        if not _is_partial(index):
            yield index["column_names"]


def _has_partial_index(target: Target, connection: sa.Connection) -> bool:
    """Whether somebody has made an index of some rows on the key."""
    names = list(target.key.names)
    indexes = sa.inspect(connection).get_indexes(target.table.name, target.table.schema)
    return any(_is_partial(one) and one["column_names"][: len(names)] == names for one in indexes)


def _is_partial(index: ReflectedIndex) -> bool:
    return any(name.endswith("_where") for name in index.get("dialect_options", {}))
