"""`backfill upgrade`: Alembic's upgrade, interrupted where a backfill has to run.

env.py is run for a stretch of revisions at a time. A stretch ends behind a revision whose
backfill has work to do: the schema is then the one that it was written for, whatever later
revisions drop. Where it has none, as in a new database, the stretch goes on.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep
from alembic.util import CommandError

from backfill import overview
from backfill.budget import Stopped
from backfill.dialects import ErrorKind, dialect_for, outside_of_loops
from backfill.discovery import named
from backfill.errors import (
    BackfillError,
    BackfillRequired,
    ConfigurationError,
    DeclarationError,
    UpgradeFailed,
)
from backfill.failures import describe
from backfill.project import database_name, kept_loggers, let_go
from backfill.proof import first_rows
from backfill.reporters import Event
from backfill.running import say
from backfill.runs import Outcome, Status
from backfill.targets import bind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    from backfill.context import Context
    from backfill.dialects import Dialect
    from backfill.discovery import Declared
    from backfill.project import Project
    from backfill.running import Runs
    from backfill.targets import Target

GLANCE = 1_000
"""Rows looked at to see that there is nothing to do, under whatever locks the migration holds."""

_HAS_ENDED = (Outcome.FAILED, Outcome.STOPPED, Outcome.HELD, Outcome.QUARANTINED)

Pair = tuple["Context", "Declared"]


@dataclass
class _Way:
    """One database, and the revisions that it is to go through."""

    context: Context
    revision: str
    wanted: list[str] | None = None
    """All of them, found when it first stood before them: `+2` means another one later."""
    current: str = ""
    passed: list[str] = field(default_factory=list)
    """Those of the last stretch."""
    due: list[Pair] = field(default_factory=list)
    """Backfills that ended the last stretch."""

    @property
    def script(self) -> ScriptDirectory:
        return self.context.project.script

    def left(self, heads: Sequence[str]) -> list[str]:
        """Return the revisions between these heads and the end, in Alembic's order."""
        if self.wanted is None:
            steps = self.script._upgrade_revs(self.revision, heads)  # type: ignore[arg-type]
            self.wanted = [step.revision.revision for step in steps]
        applied = {one.revision for one in self.script.iterate_revisions(tuple(heads), "base")}
        return [revision for revision in self.wanted if revision not in applied]

    def note_applied(self) -> None:
        """Let the context know how far its database has come."""
        self.context.declared = [
            replace(one, is_applied=True) if one.revision in self.passed else one
            for one in self.context.declared
        ]

    def steps(self, heads: Sequence[str], connection: sa.Connection, runs: Runs) -> Iterator[Any]:
        """Give Alembic one step after the other, and none behind a backfill with work to do."""
        self.passed, self.due = [], []
        for revision in self.left(heads):
            if _is_over(runs):
                return
            self.current = revision
            script = self.script.get_revision(revision)
            yield MigrationStep.upgrade_from_script(self.script.revision_map, script)
            self.passed.append(revision)
            self.due = [
                (self.context, one)
                for one in self.context.declared
                if one.revision == revision and _has_work(one, connection)
            ]
            if self.due:
                return


class Upgrade:
    """One call of the command, on all databases that env.py migrates."""

    def __init__(
        self, contexts: Sequence[Context], revision: str, runs: Runs, tag: str | None = None
    ) -> None:
        self._contexts = contexts
        self._revision = revision
        self._runs = runs
        self._tag = tag
        self._ways = {one.project.database: _Way(one, revision) for one in contexts}
        self._waiting: list[Pair] = []
        """Backfills that depend on others whose revisions are not applied yet."""
        self._asked: dict[str, set[str]] = defaultdict(set)
        """Why backfills were run, and which: none twice for the same reason."""

    def run(self) -> list[Outcome]:
        """Upgrade to the revision, and run the backfills on the way.

        Returns how the backfills ended; the last one tells why the upgrade has not come further.
        Raises UpgradeFailed, and what a backfill's declaration raises.
        """
        _refuse_elsewhere(self._contexts)
        due = _unfinished(self._contexts)
        outcomes = []
        while True:
            outcomes += self._run_all(due)
            if outcomes and outcomes[-1] in _HAS_ENDED:
                return outcomes
            if _is_over(self._runs):
                say(f"stopped: {self._runs.budget.reason}; the same command goes on")
                return [*outcomes, Outcome.STOPPED]
            due = self._stretch()
            if not due and not _is_over(self._runs):
                return [*outcomes, *map(self._left_waiting, self._waiting)]

    def _run_all(self, due: Sequence[Pair]) -> list[Outcome]:
        """Run backfills until one does not get through. Those whose `depends_on` is not complete
        wait for a later revision's."""
        outcomes: list[Outcome] = []
        names = {one.name for _, one in due}
        left = [*due, *(pair for pair in self._waiting if pair[1].name not in names)]
        while left:
            ready = [pair for pair in left if pair[0].unmet(pair[1]) is None][:1]
            if not ready:
                break
            left.remove(ready[0])
            outcomes.append(self._runs.one(*ready[0]))
            if outcomes[-1] in _HAS_ENDED:
                break
        self._waiting = left
        return outcomes

    def _left_waiting(self, pair: Pair) -> Outcome:
        context, one = pair
        say(f"{one.name}: waits for {context.unmet(one)}")
        return Outcome.FAILED

    def _stretch(self) -> list[Pair]:
        """Migrate as far as the data allow; the backfills that have to run before the rest."""
        try:
            self._migrate()
            due = [pair for way in self._ways.values() for pair in way.due]
            why = "its revision is not there afterwards; does env.py commit its transaction?"
        except BackfillRequired as refused:
            due = _by_name(self._contexts, refused.name)
            why = str(refused)
            _refuse_cancelled(due, refused)
        for pair in due:
            self._ask(pair, why)
        self._tell_passed()
        return _with_followers(self._contexts, due)

    def _ask(self, pair: Pair, why: str) -> None:
        """Note why a backfill is to run. Raises UpgradeFailed where it did for the same reason."""
        context, one = pair
        if one.name not in self._asked[why]:
            self._asked[why].add(one.name)
            return
        unmet = context.unmet(one)
        if unmet is None:
            raise UpgradeFailed(f"{one.name} was run, and the upgrade comes no further: {why}")
        raise UpgradeFailed(
            f"{one.name} waits for {unmet}. Take that branch first, by `backfill upgrade` and its"
            " revision, and then this one again"
        )

    def _migrate(self) -> None:
        """Run env.py once."""
        project = self._contexts[0].project
        now: list[_Way] = []
        engines: list[sa.Engine] = []

        def steps(heads: Any, context: MigrationContext) -> Iterator[Any]:
            assert context.connection is not None
            engines.append(context.connection.engine)
            now.append(self._ways[database_name(context)])
            return now[-1].steps(heads, context.connection, self._runs)

        environment = EnvironmentContext(
            project.config,
            project.script,
            fn=steps,
            starting_rev=None,
            destination_rev=self._revision,
            tag=self._tag,
        )
        try:
            with kept_loggers(), environment:
                outside_of_loops(project.script.run_env)
        except BackfillError:
            raise
        except CommandError as error:
            if isinstance(error.__cause__, BackfillRequired):
                raise error.__cause__ from error
            raise UpgradeFailed(str(error)) from error
        except Exception as error:
            raise UpgradeFailed(_described(error, now, project)) from error
        finally:
            for engine in engines:
                let_go(engine)

    def _tell_passed(self) -> None:
        for way in self._ways.values():
            way.note_applied()
            for revision in way.passed:
                numbers = {"revision": revision, "database": way.context.project.database}
                self._runs.report(Event("upgraded", "", numbers=numbers))


def forecast(contexts: Sequence[Context], revision: str) -> list[dict[str, Any]]:
    """Return the revisions that an upgrade would apply, each with its backfills; reads only.

    What is to be run before the first of them comes with the revision null.
    """
    _refuse_elsewhere(contexts)
    document, unfinished = [], _unfinished(contexts)
    for context in contexts:
        database, project = context.project.database, context.project
        first = [one.name for where, one in unfinished if where is context]
        rows: list[tuple[str | None, list[str]]] = [(None, first)] if first else []
        try:
            left = _Way(context, revision).left(project.heads)
        except CommandError as error:
            raise UpgradeFailed(str(error)) from error
        rows += [(r, [o.name for o in context.declared if o.revision == r]) for r in left]
        document += [{"database": database, "revision": r, "backfills": b} for r, b in rows]
    return document


# -- which backfills have to run -----------------------------------------------------------


def _unfinished(contexts: Sequence[Context]) -> list[Pair]:
    """Return the backfills of revisions that are applied already and were not run to their end,
    with those that follow them."""
    due = []
    for context in contexts:
        found = context.dialect.call(_unfinished_in, context)
        due += [(context, one) for one in found]
    return _with_followers(contexts, due)


def _unfinished_in(context: Context) -> list[Declared]:
    return [one for one in context.declared if _is_unfinished(context, one)]


def _is_unfinished(context: Context, one: Declared) -> bool:
    if not one.is_applied:
        return False
    run = context.store.current(one.name) if context.store.exists() else None
    if run is None or run.status is Status.STALE:
        return _was_left_out(context, one)
    if run.status is Status.CANCELLED:
        say(f"{one.name}: was cancelled, and is passed over")
    return not run.is_over


def _with_followers(contexts: Sequence[Context], due: Sequence[Pair]) -> list[Pair]:
    """Return what is due and what may find work once that has run, in the order of the runs."""
    names = {one.name for _, one in due}
    more = names
    while more:
        more = {name for here in contexts for name in here.dialect.call(_followers, here, names)}
        names = names | more
    return [(here, one) for here in contexts for one in here.declared if one.name in names]


def _followers(context: Context, names: Collection[str]) -> list[str]:
    """Return a database's backfills that follow those of these names: they depend on them, or come
    later, on the same revision or never run. Cancelled ones do not, as always.

    That they have nothing pending now says nothing: what they wait for is not written yet.
    """
    latest = {run.name: run.status for run in context.store.latest()}
    revisions: set[str] = set()
    found = []
    for one in context.declared:
        last = latest.get(one.name, Status.STALE)
        if one.name in names:
            revisions.add(one.revision)
        elif one.is_applied and last is not Status.CANCELLED:
            is_later = one.revision in revisions or (bool(revisions) and last is Status.STALE)
            depends = any(name in names for name in one.depends_on)
            if (is_later or depends) and _fits(context, one):
                found.append(one.name)
    return found


def _fits(context: Context, one: Declared) -> bool:
    """Whether no later revision has dropped what a backfill is about."""
    try:
        context.target(one)
    except DeclarationError:
        return False
    return True


def _was_left_out(context: Context, one: Declared) -> bool:
    """Whether a backfill that was never run, or was downgraded since, has something to do.

    Below the database's heads later revisions may have dropped what it was about.
    """
    try:
        looking = overview.looking_at(one.declaration, context.dialect)
        with looking as (connection, target, reading), reading():
            return not _is_done(connection, target)
    except DeclarationError as error:
        if one.revision in context.project.heads:
            raise
        say(f"{one.name}: was never run, and is passed over: {error}")
        return False


def _has_work(one: Declared, connection: sa.Connection) -> bool:
    """Look on the migration's own connection, and leave it as it was."""
    was_in_transaction = connection.in_transaction()
    target = bind(one.declaration, dialect_for(connection.engine), connection)
    done = _is_done(connection, target)
    if not was_in_transaction:
        connection.rollback()
    return not done


def _is_done(connection: sa.Connection, target: Target) -> bool:
    """Whether a glance shows that all is done. Without a `where` only a run's record tells."""
    if target.pending is None:
        return False
    rows, pending = first_rows(connection, target, GLANCE + 1)
    return pending == 0 and rows <= GLANCE


def _by_name(contexts: Sequence[Context], name: str) -> list[Pair]:
    pairs = [(context, one) for context in contexts for one in context.declared]
    wanted = named([one for _, one in pairs], [name])
    return [pair for pair in pairs if pair[1] in wanted]


# -- what goes wrong -----------------------------------------------------------------------


def _is_over(runs: Runs) -> bool:
    try:
        runs.budget.raise_if_over()
    except Stopped:
        return True
    return False


def _refuse_cancelled(due: Sequence[Pair], refused: BackfillRequired) -> None:
    """Whoever has cancelled it decides how the gate is passed."""
    for context, one in due:
        if context.dialect.call(context.was_cancelled, one):
            raise UpgradeFailed(f"{refused} It was cancelled, so this command leaves that to you.")


def _refuse_elsewhere(contexts: Sequence[Context]) -> None:
    for context in contexts:
        if context.project.is_elsewhere:
            raise ConfigurationError(
                f"{context.project.script.env_py_location} does not follow `--url`, and an upgrade"
                " would change the database that it leads to. Let env.py read sqlalchemy.url from"
                " its configuration, or leave `--url` out."
            )


def _described(error: Exception, now: Sequence[_Way], project: Project) -> str:
    """Say which revision failed, without the row's values that a server's text may carry."""
    if not now or not now[-1].current:
        where = Path(project.script.env_py_location).name
        return (
            f"{where} failed: {describe(error, dialect_for(project.engine))}. `alembic current`"
            " shows all of it, unless another upgrade was in the way: then call this one again."
        )
    way = now[-1]
    text = _text(error, way.context.dialect)
    path = way.script.get_revision(way.current).path
    return (
        f"Revision {way.current} ({path}) failed: {text}."
        f" `alembic upgrade {way.current}` shows all of it."
    )


def _text(error: Exception, dialect: Dialect) -> str:
    """Return what a revision met. Where its SQL does not fit the schema the database's own words
    name tables and columns, and no row's values."""
    if isinstance(error, sa.exc.DBAPIError) and dialect.error_kind(error) is ErrorKind.SCHEMA:
        return f"{type(error.orig).__name__}: {str(error.orig).strip().splitlines()[0]}"
    return describe(error, dialect)
