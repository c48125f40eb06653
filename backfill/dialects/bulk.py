"""How computed rows are written, many at a time; and row by row, where nothing faster is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.errors import UnsendableValue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backfill.pages import Page
    from backfill.targets import Target


class Overtaken(Exception):
    """The application changed rows of the chunk meanwhile: roll back, and write once more."""


class BulkUpdate:
    """Writes computed values of many rows in as few round trips as the database allows."""

    def write(
        self,
        connection: sa.Connection,
        page: Page,
        outputs: Sequence[Mapping[str, Any]],
        parameters: Mapping[str, Any],
    ) -> int:
        """Write what came out of each row; `parameters` bind the chunk's condition.

        Returns the rows that matched.
        """
        raise NotImplementedError  # pragma: no cover - abstract


SENT = "_backfill"
"""How the names of what is sent begin: a `where` stands beside them, and names columns plainly."""

UNSENDABLE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What Python, or a driver without saying that it is its own, raises for a value to be sent."""


class ExecutemanyUpdate(BulkUpdate):
    """One prepared statement, bound for each row: right for every type, everywhere."""

    def __init__(self, target: Target, writes: Sequence[str]) -> None:
        self._dialect = target.dialect
        self._key = target.key
        self._names = {column: f"_write_{i}" for i, column in enumerate(writes)}
        operands = self._key.operands("key")
        self._statement = (
            sa.update(target.table)
            .where(*(c == p for c, p in zip(self._key.columns, operands, strict=True)))
            .values(
                {
                    column: sa.bindparam(name, type_=target.table.c[column].type)
                    for column, name in self._names.items()
                }
            )
        )

    def write(
        self,
        connection: sa.Connection,
        page: Page,
        outputs: Sequence[Mapping[str, Any]],
        parameters: Mapping[str, Any],
    ) -> int:
        bound = [
            {
                **self._key.parameters("key", key),
                **{name: output[column] for column, name in self._names.items()},
            }
            for key, output in zip(page.keys, outputs, strict=True)
        ]
        try:
            self._send(connection, bound)
        except UNSENDABLE as error:
            raise UnsendableValue(type(error).__name__) from error
        except sa.exc.DBAPIError as error:
            if self._dialect.error_code(error) in self._dialect.mismatches:
                raise UnsendableValue(self._dialect.error_code(error)) from error
            raise
        return len(bound)

    def _send(self, connection: sa.Connection, bound: Sequence[Mapping[str, Any]]) -> None:
        connection.execute(self._statement, bound)
