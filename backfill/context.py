"""What the commands of one call share: the project, its databases, its backfills, the settings."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from backfill import overview, settings
from backfill.dialects import dialect_for
from backfill.discovery import Declared, discover, in_database, named
from backfill.project import load_all
from backfill.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backfill.configuration import Origin
    from backfill.dialects import Dialect
    from backfill.project import Project
    from backfill.settings import Settings
    from backfill.targets import Target

T = TypeVar("T")


@dataclass
class Context:
    """One database of the project, and its backfills."""

    origin: Origin
    project: Project
    declared: Sequence[Declared]

    @cached_property
    def dialect(self) -> Dialect:
        return dialect_for(self.project.engine)

    @cached_property
    def store(self) -> Store:
        return Store(self.dialect)

    def target(self, one: Declared) -> Target:
        with overview.looking_at(one.declaration, self.dialect) as (_, target, _):
            return target

    def settings(self, one: Declared, options: dict[str, Any]) -> Settings:
        return settings.resolve(
            ("The configuration", self.project.settings_layer),
            ("The environment", settings.from_environment()),
            (one.declaration.__name__, one.declaration.tuning()),
            ("The command line", {k: v for k, v in options.items() if v is not None}),
        )


@dataclass
class Call:
    """What the options before the command say, and the databases they lead to, mostly one."""

    origin: Origin
    stack: ExitStack = field(default_factory=ExitStack)
    """Closed after the command, with what the project needs as long as it is used."""

    @cached_property
    def contexts(self) -> list[Context]:
        projects = load_all(self.origin, self.stack)
        databases = [project.database for project in projects]
        found = []
        for project in projects:
            declared = discover(project.script, project.applied)
            its_own = in_database(declared, project.database, databases)
            origin = replace(self.origin, database=project.database)
            found.append(Context(origin, project, its_own))
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
        """Call a function for each database that has some of these backfills; join what it says."""
        chosen = self.each(names)
        said = []
        for context in self.contexts:
            its_own = [one for where, one in chosen if where is context]
            if its_own:
                said += context.dialect.call(function, context, its_own)
        return said
