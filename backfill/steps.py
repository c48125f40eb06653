"""What autogenerate's operations are taken apart into, as values, and which may stay whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from backfill.errors import ConfigurationError
from backfill.operations import RequireBackfill

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import MigrateOperation

    from backfill.contracting import DropNotNull


_HEX_DIGITS = 32


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
class Facts:
    """What is asked of the database whose models were compared."""

    quote: Callable[[str], str]
    literally: Callable[[Any], str]
    """An expression as SQL, with its values inside."""
    is_volatile: Callable[[str], bool]
    """Whether adding a column with this server default would compute it for each row."""
    converted: Callable[[str, Any], str]
    """SQL that makes a value one of another type."""
    is_key: Callable[[str, str | None, str], bool]
    """Whether a column belongs to a table's primary key, which no row is without."""
    is_plain: Callable[[str, str | None, str], bool]
    """Whether no key, index or constraint knows a table's column."""
    has_column: Callable[[str, str | None, str], bool]
    is_instant: Callable[[Any, Any], bool]
    """Whether a change of type does not touch the rows there."""
    has_sync: bool
    database: str
    """What env.py calls it, where it migrates several."""


@dataclass(slots=True)
class Contract:
    """What has to wait."""

    fills: list[Fill] = field(default_factory=list)
    upgrade: list[MigrateOperation] = field(default_factory=list)
    downgrade: list[MigrateOperation] = field(default_factory=list)
    relaxed: list[DropNotNull] = field(default_factory=list)
    """Part of the first revision: columns that go, and are not written any more until then."""
    copied_back: list[MigrateOperation] = field(default_factory=list)
    """Part of the first revision's downgrade: what new code has written into renamed columns."""
    hints: list[str] = field(default_factory=list)

    @property
    def gates(self) -> list[MigrateOperation]:
        """Come first in the revision."""
        return [
            RequireBackfill(fill.name, keep_sync=fill.sync and fill.is_kept_in_sync)
            for fill in self.fills
        ]


def is_instant(old: Any, new: Any) -> bool:
    """Whether a change of type does not touch the rows: text that may be longer, and decimals
    with more digits before the point."""
    if isinstance(old, sa.types.SchemaType) or isinstance(new, sa.types.SchemaType):
        return False
    if isinstance(old, sa.CHAR) or isinstance(new, sa.CHAR):
        return False  # it is padded
    if isinstance(old, sa.String) and isinstance(new, sa.String):
        return new.length is None or (old.length is not None and new.length >= old.length)
    if type(old) is type(new) and isinstance(old, sa.Numeric) and isinstance(new, sa.Numeric):
        digits = (old.precision or 0, new.precision or 0)
        return old.scale == new.scale and (new.precision is None or 0 < digits[0] <= digits[1])
    return False


def fits(old: Any, new: Any) -> bool:
    """Whether any value of one type is one of the other as it is: `old` as the database has it,
    `new` as the models do."""
    new = new.impl if isinstance(new, sa.types.TypeDecorator) else new
    if is_instant(old, new) or keeps_values(old, new) or _is_kept_as(old, new):
        return True
    if isinstance(old, sa.Enum) and isinstance(new, sa.Enum):
        return set(old.enums) <= set(new.enums)
    if old._type_affinity is not new._type_affinity:
        return False
    if isinstance(old, sa.Integer):
        return _width(old) <= _width(new)
    if isinstance(old, sa.Numeric) and not isinstance(old, sa.Float):
        return (old.precision, old.scale) == (new.precision, new.scale)
    return not isinstance(old, sa.String) or (old.length, type(old)) == (new.length, type(new))


def _is_kept_as(old: Any, new: Any) -> bool:
    """Whether it is what SQLAlchemy makes of the other where the database has no such type."""
    if isinstance(new, sa.Boolean):
        return getattr(old, "display_width", None) == 1
    if isinstance(new, sa.Uuid):
        return isinstance(old, sa.CHAR) and old.length == _HEX_DIGITS
    return isinstance(new, sa.JSON) and isinstance(old, mysql.LONGTEXT)


def _width(kind: sa.Integer) -> int:
    if isinstance(kind, sa.SmallInteger):
        return 1
    return 3 if isinstance(kind, sa.BigInteger) else 2


def keeps_values(old: Any, new: Any) -> bool:
    """Whether a cast can neither fail nor lose anything."""
    if isinstance(old, sa.Integer) and isinstance(new, sa.Integer):
        is_wider = isinstance(old, sa.SmallInteger) and type(new) in (sa.Integer, sa.INTEGER)
        return isinstance(new, sa.BigInteger) or is_wider
    if isinstance(new, sa.String):
        return new.length is None and isinstance(old, (sa.Integer, sa.String, sa.Uuid))
    return isinstance(old, sa.Integer) and isinstance(new, sa.Numeric) and new.precision is None
