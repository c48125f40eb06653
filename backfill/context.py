"""What the commands of one call share: the project, its database, its backfills, the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from backfill import overview, settings
from backfill.dialects import dialect_for
from backfill.discovery import Declared, discover, named
from backfill.project import Origin, Project, load
from backfill.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backfill.dialects import Dialect
    from backfill.settings import Settings
    from backfill.targets import Target


@dataclass
class Context:
    """What the options before the command say, and the project they lead to."""

    config_file: str | None = None
    url: str | None = None
    section: str = "alembic"
    x: Sequence[str] = field(default=())

    @property
    def origin(self) -> Origin:
        return Origin(self.config_file, self.url, self.section, self.x)

    @cached_property
    def project(self) -> Project:
        return load(self.config_file, url=self.url, x=self.x, section=self.section)

    @cached_property
    def dialect(self) -> Dialect:
        return dialect_for(self.project.engine)

    @cached_property
    def store(self) -> Store:
        return Store(self.dialect)

    @cached_property
    def declared(self) -> list[Declared]:
        return discover(self.project.script, self.project.applied)

    def named(self, names: Sequence[str]) -> list[Declared]:
        return named(self.declared, names)

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
