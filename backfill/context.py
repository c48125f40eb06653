"""What the commands of one call share: the project, its databases, its backfills, the settings."""

from __future__ import annotations

import sys
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from backfill import overview, sync
from backfill.configuration import settings_of
from backfill.dialects import Limits, dialect_for
from backfill.discovery import (
    Declared,
    discover,
    in_database,
    named,
    revisions_of,
    unknown_revision,
)
from backfill.errors import BackfillError, DeclarationError, InvalidTransition
from backfill.project import load_all
from backfill.runs import TRANSITIONS, Status, taken_back
from backfill.settings import COMMAND_LINE
from backfill.store import Store, end_of_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from backfill.configuration import Origin
    from backfill.dialects import Dialect
    from backfill.project import Project
    from backfill.runs import Run
    from backfill.settings import Settings
    from backfill.targets import Target

T = TypeVar("T")

_BINDING = Limits(lock_timeout=1, statement_timeout=10, idle_timeout=30, label="backfill: look")


@dataclass
class Context:
    """One database of the project, and its backfills."""

    origin: Origin
    project: Project
    declared: Sequence[Declared]
    databases: Sequence[Context] = field(default=(), repr=False)
    """Those of all databases of the project, this one included."""

    @cached_property
    def dialect(self) -> Dialect:
        return dialect_for(self.project.engine)

    @cached_property
    def store(self) -> Store:
        return Store(self.dialect, self.project.version_table)

    def target(self, one: Declared) -> Target:
        with overview.looking_at(one.declaration, self.dialect, _BINDING) as (_, target, _):
            return target

    def unmet(self, one: Declared) -> str | None:
        """Say which backfill has to be complete before this one may start, and why it is not;
        None: it may start. The data are asked, in short reads."""
        for here in self.databases:
            for other in here.declared:
                if other.name in one.depends_on:
                    reason = here.dialect.call(overview.why_incomplete, other, here.dialect)
                    if reason is not None:
                        return f"`depends_on` {other.name!r}, which is not complete: {reason}"
        return None

    def was_cancelled(self, one: Declared) -> bool:
        """Whether a person has given its latest run up."""
        run = self.store.current(one.name) if self.store.exists() else None
        return run is not None and run.status is Status.CANCELLED

    def early_end(self, one: Declared) -> tuple[str, datetime] | None:
        """Return which revision has ended the triggers of a backfill that has succeeded, and when,
        if they are gone and it is not applied: it failed behind its gate, or was taken back."""
        run = self.store.current(one.name) if one.declaration.sync and self.store.exists() else None
        if run is None or run.status is not Status.SUCCEEDED:
            return None
        with self.store.transaction(write=False) as connection:
            end = end_of_sync(connection, one.name)
            is_early = end is not None and end[0] and self.project.has_taken_back(end[0])
            if not is_early or sync.is_installed(one.declaration, self.dialect, connection):
                return None
        return end

    def follow_again(self, one: Declared) -> bool:
        """Make its triggers anew; not where half a revision has changed what they are about."""
        with suppress(DeclarationError):
            return sync.reinstate(self.target(one))
        return False

    def gone(self) -> list[Run]:
        """Return the latest runs of backfills that no class declares any more."""
        declared = {one.name for one in self.declared}
        found = self.dialect.call(self.store.latest)
        return [run for run in found if run.name not in declared]

    def notice_downgrades(self) -> None:
        """Make runs stale whose revision was taken back by an Alembic that did not load us."""
        for run in self.store.latest():
            is_open = Status.STALE in TRANSITIONS[run.status]
            if is_open and self.has_taken_back(run):
                with suppress(InvalidTransition):
                    self.store.move(run.name, Status.STALE, error=taken_back(run.revision))

    def has_taken_back(self, run: Run) -> bool:
        """Whether a run is the project's, and its revision not applied any more."""
        is_ours = run.belongs_to(self.project.version_table)
        return is_ours and self.project.has_taken_back(run.revision)

    def settings(self, one: Declared, options: dict[str, Any]) -> Settings:
        given = {k: v for k, v in options.items() if v is not None}
        return settings_of(self.project.config, one.declaration, (COMMAND_LINE, given))


@dataclass
class Call:
    """What the options before the command say, and the databases they lead to, mostly one."""

    origin: Origin
    stack: ExitStack = field(default_factory=ExitStack)
    """Closed after the command, with what the project needs as long as it is used."""

    @cached_property
    def contexts(self) -> list[Context]:
        found: list[Context] = []
        with redirect_stdout(sys.stderr):  # the application's own prints are not what was asked
            projects = load_all(self.origin, self.stack)
            databases = [project.database for project in projects]
            for project in projects:
                revisions_of(project.script)  # first, since it says best what is wrong in a file
                declared = discover(project.script, project.applied)
                its_own = in_database(declared, project.database, databases)
                origin = replace(self.origin, database=project.database)
                found.append(Context(origin, project, its_own, found))
        return found

    @property
    def project(self) -> Project:
        return self.contexts[0].project

    def each(self, names: Sequence[str]) -> list[tuple[Context, Declared]]:
        """Return the backfills of these names, each with its database; all if there is no name.

        Raises UnknownBackfill, with names that are close.
        """
        pairs = [(context, one) for context in self.contexts for one in context.declared]
        wanted = named([one for _, one in pairs], names)
        return [pair for pair in pairs if pair[1] in wanted]

    def due(self, names: Sequence[str]) -> list[tuple[Context, Declared]]:
        """Return what `backfill run` has to do, in its order: the backfills of these names, or
        all, whose revision is applied.

        Raises BackfillError for one that is named and has to wait for its revision, and
        DeclarationError for one whose revision is unknown, unless the data say that it is done.
        """
        found = []
        for context, one in self.each(names):
            if one.is_applied:
                found.append((context, one))
            elif not one.is_known and (
                names or context.dialect.call(overview.why_incomplete, one, context.dialect)
            ):
                raise DeclarationError(unknown_revision(one, context.project.script))
            elif one.is_known and names:
                raise BackfillError(
                    f"Backfill {one.name!r} waits for revision {one.revision}, which is not"
                    f" applied. Upgrade first: `alembic upgrade {one.revision}`."
                )
        return found

    def notice_downgrades(self) -> None:
        """Make runs stale whose revision was taken back by an Alembic that did not load us."""
        for context in self.contexts:
            context.dialect.call(context.notice_downgrades)

    def gone(self, names: Sequence[str]) -> list[tuple[Context, Run]]:
        """Return the latest runs, with these names or all, whose class is gone."""
        declared = {one.name for here in self.contexts for one in here.declared}
        if names and declared.issuperset(names):
            return []
        found = [(here, run) for here in self.contexts for run in here.gone()]
        return [(here, run) for here, run in found if not names or run.name in names]

    def on(self, name: str, function: Callable[..., T], *args: Any) -> T:
        """Call a function with the backfill of this name, and its database before it."""
        ((context, one),) = self.each([name])
        return context.dialect.call(function, context, one, *args)

    def everywhere(self, function: Callable[[Context], list[T]]) -> list[T]:
        """Call a function for each database; join what it says."""
        return [said for here in self.contexts for said in here.dialect.call(function, here)]

    def collect(
        self, names: Sequence[str], function: Callable[[Context, list[Declared]], list[T]]
    ) -> list[T]:
        """Call a function for each database that has some of these backfills, without a name for
        each; join what it says."""
        chosen = self.each(names)
        said = []
        for context in self.contexts:
            its_own = [one for where, one in chosen if where is context]
            if its_own or not names:
                said += context.dialect.call(function, context, its_own)
        return said
