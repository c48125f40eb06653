"""Types in which keys of PostgreSQL travel, where a driver's own way is not exact."""

from __future__ import annotations

from datetime import date, datetime, timezone
from typing import Any

import sqlalchemy as sa

from backfill.errors import DeclarationError

_ENDS = frozenset({date.min, date.max, datetime.min, datetime.max})
"""What asyncpg makes of infinity, and infinity of these; the other drivers refuse infinity."""


class QuotedNumeric(sa.Numeric[Any]):
    """For psycopg2, which sends an infinite Decimal as NaN: a quoted literal is a numeric too."""

    cache_ok = True

    def adapt(self, cls: Any, **kw: Any) -> Any:
        return super().adapt(type(self), **kw)  # SQLAlchemy would take the driver's own instead

    def bind_processor(self, dialect: Any) -> Any:
        return lambda value: None if value is None else str(value)

    def result_processor(self, dialect: Any, coltype: Any) -> None:
        """The driver reads a Decimal."""


class KeyDate(sa.types.TypeDecorator[Any]):
    """A date that is no other one for Python."""

    impl = sa.Date
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return _finite(value, dialect.driver)


class KeyMoment(sa.types.TypeDecorator[Any]):
    """A moment that is no other one for Python, which compares those of one time zone by what its
    clocks show: each autumn they show an hour twice (docs.python.org, PEP 495)."""

    impl = sa.DateTime
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        value = _finite(value, dialect.driver)
        return value if value.tzinfo is None else value.astimezone(timezone.utc)


def _finite(value: Any, driver: str) -> Any:
    bare = value.replace(tzinfo=None) if isinstance(value, datetime) else value
    if driver == "asyncpg" and bare in _ENDS:
        raise DeclarationError(
            "A key has a date that is infinity, or as far away, and asyncpg reads and sends these"
            " alike. Connect by psycopg, or name other unique columns in `key`."
        )
    return value
