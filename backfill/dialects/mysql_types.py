"""Types that SQLAlchemy's own do not carry exactly: what a reflected column, or one of the key,
gets instead."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from backfill.errors import DeclarationError


class Float(sa.types.UserDefinedType[float]):
    """FLOAT is sent with six digits; as DOUBLE with all of them."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "FLOAT"

    def column_expression(self, column: Any) -> Any:
        return sa.cast(column, mysql.DOUBLE(asdecimal=False))


class Time(sa.types.UserDefinedType[Any]):
    """TIME is a time of day for Python where it is one, else what it is: a duration."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TIME"

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        def read(value: Any) -> Any:
            is_of_day = isinstance(value, timedelta) and timedelta(0) <= value < timedelta(days=1)
            return (datetime.min + value).time() if is_of_day else value

        return read


class Label(sa.String):
    """A label of an ENUM."""


class KeyDate(sa.types.TypeDecorator[Any]):
    """A date of a key."""

    impl = sa.Date
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return _not_zero(value)


class KeyMoment(sa.types.TypeDecorator[Any]):
    """A date and time of a key."""

    impl = sa.DateTime
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return _not_zero(value)


def _not_zero(value: Any) -> Any:
    """One driver makes None of a zero date, another one text."""
    if isinstance(value, date):
        return value
    raise DeclarationError(
        "A key has a zero date, or one whose month or day is zero, and Python has none such. Name"
        " other unique columns in `key`."
    )
