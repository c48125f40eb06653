"""What a change of a column's type means for the values that are there."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

_HEX_DIGITS = 32


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
