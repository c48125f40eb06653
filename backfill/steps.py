"""What autogenerate's operations are taken apart into, as values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backfill.errors import ConfigurationError
from backfill.gate import RequireBackfill

if TYPE_CHECKING:
    from alembic.operations import MigrateOperation

    from backfill.contracting import DropNotNull


@dataclass(frozen=True, slots=True)
class Rename:
    """What `--rename users.old:new` says, and no comparison can know."""

    table: str
    schema: str | None
    old: str
    new: str

    @classmethod
    def parse(cls, text: str) -> Rename:
        """Raises ConfigurationError."""
        found = re.fullmatch(r"(?:([^.:]+)\.)?([^.:]+)\.([^.:]+):([^.:]+)", text)
        if found is None:
            raise ConfigurationError(
                f"--rename {text!r} is not TABLE.OLD:NEW, as in --rename users.name:login."
            )
        return cls(found[2], found[1], found[3], found[4])

    def __str__(self) -> str:
        schema = f"{self.schema}." if self.schema else ""
        return f"{schema}{self.table}.{self.old}:{self.new}"


@dataclass(slots=True)
class Fill:
    """A backfill that is to be written."""

    name: str
    table: str
    schema: str | None
    column: str
    where: str
    value: str | None
    """SQL; None: a person has to say it."""
    hint: str = ""
    """What that person should know."""
    sync: bool = False
    is_kept_in_sync: bool = False
    """Until its column takes the other's place: behind the gate, old code goes on writing."""
    database: str = ""


@dataclass(slots=True)
class Contract:
    """What has to wait."""

    fills: list[Fill] = field(default_factory=list)
    upgrade: list[MigrateOperation] = field(default_factory=list)
    columns_back: list[MigrateOperation] = field(default_factory=list)
    """The downgrade begins with columns that are there again, or have their old names,"""
    demands_off: list[MigrateOperation] = field(default_factory=list)
    """then nothing is NOT NULL any more,"""
    values_back: list[MigrateOperation] = field(default_factory=list)
    """so that values can go back to where they were,"""
    demands_on: list[MigrateOperation] = field(default_factory=list)
    """and what was NOT NULL before is so again."""
    relaxed: list[DropNotNull] = field(default_factory=list)
    """Part of the first revision: columns that go, and are not written any more until then."""
    copied_back: list[MigrateOperation] = field(default_factory=list)
    """Part of the first revision's downgrade: what new code has written into renamed columns."""
    hints: list[str] = field(default_factory=list)

    @property
    def downgrade(self) -> list[MigrateOperation]:
        """What takes `upgrade` back, in the only order in which it can be done."""
        return [*self.columns_back, *self.demands_off, *self.values_back, *self.demands_on]

    @property
    def gates(self) -> list[MigrateOperation]:
        """Come first in the revision."""
        return [
            RequireBackfill(fill.name, keep_sync=fill.sync and fill.is_kept_in_sync)
            for fill in self.fills
        ]
