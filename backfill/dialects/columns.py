"""How a column of a live table becomes NOT NULL, or takes another one's place, in short locks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy.sql.compiler import IdentifierPreparer


@dataclass(frozen=True, slots=True)
class Place:
    """A column, and how this database quotes names."""

    table: str
    column: str
    schema: str | None
    preparer: IdentifierPreparer

    def sql(self) -> tuple[str, str]:
        """Return table and column as SQL."""
        table = self.preparer.format_table(sa.table(self.table, schema=self.schema))
        return table, self.preparer.quote(self.column)


class Step(NamedTuple):
    """Statements of one short transaction."""

    statements: Sequence[str]
    is_brief: bool = True
    """It needs a lock on the whole table for a moment; else it takes long, and is in nobody's
    way."""


class Columns:
    """What a database can do better than a plain ALTER TABLE; this one cannot."""

    needs_savepoints = False
    """A statement that fails ends the transaction."""

    def not_null(self, connection: sa.Connection | None, place: Place) -> list[Step] | None:
        """Return the steps to NOT NULL, each to be committed; None: there is no better way.

        Without a connection it is for a script.
        """
        return None

    def is_volatile(self, connection: sa.Connection, default: str) -> bool:
        """Whether a server default is another one for each row, so that adding a column with it
        rewrites the table under a lock."""
        return False

    def widens_in_place(self, old: Any, new: Any) -> bool:
        """Whether text or decimals that may be longer need no other form than they have."""
        return True

    def has_dependents(self, connection: sa.Connection, place: Place) -> bool:
        """Whether something that no inspection tells of depends on the column."""
        return False

    def refusal(self, connection: sa.Connection, place: Place) -> str | None:
        """Say why a plain ALTER TABLE would do harm; None if it would not."""
        return None

    def nullable(self, connection: sa.Connection | None, place: Place) -> list[Step] | None:
        """Return the steps back from NOT NULL; likewise."""
        return None

    def replace(self, place: Place, replacements: Mapping[str, str]) -> list[str]:
        """Return what drops columns and gives their names to others."""
        return [f"ALTER TABLE {place.sql()[0]} {one}" for one in exchange(place, replacements)]

    def lock(self, connection: sa.Connection, place: Place) -> Step | None:
        """Return what keeps everybody off the table; None if nothing does, or is needed."""
        return None

    def unlock(self) -> list[str]:
        """Return what ends that before the transaction does."""
        return []

    def converted(self, value: str, kind: str) -> str:
        """Return SQL that makes a value one of another type; most databases do when it is
        written."""
        return value

    def leftovers(self, connection: sa.Connection, place: Place) -> list[str]:
        """Return the statements that remove what a plain ALTER TABLE left when it was killed."""
        return []

    def lost(self, connection: sa.Connection, place: Place) -> list[str]:
        """Return the statements that make again what a plain ALTER TABLE loses."""
        return []

    def undo(self, place: Place) -> Step | None:
        """Return what takes the steps back, after one of them was refused."""
        return None

    def briefly(self, step: Step, seconds: float) -> list[str]:
        """Return a step's SQL, which gives up when a lock is not to be had in so many seconds."""
        return list(step.statements)


def exchange(place: Place, replacements: Mapping[str, str]) -> Iterator[str]:
    """Give the parts of an ALTER TABLE that drop columns and rename others."""
    quote = place.preparer.quote
    for column, other in replacements.items():
        yield f"DROP COLUMN {quote(column)}"
        yield f"RENAME COLUMN {quote(other)} TO {quote(column)}"
