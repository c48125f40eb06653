"""What a column's values may become without anybody's decision."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from backfill.type_changes import fits


class Decorated(sa.types.TypeDecorator[Any]):
    impl = sa.String
    cache_ok = True


FITS = [
    (sa.VARCHAR(50), sa.String(50)),
    (sa.VARCHAR(50), sa.Text()),
    (sa.VARCHAR(50), Decorated(60)),
    (sa.CHAR(9), sa.CHAR(9)),
    (sa.INTEGER(), sa.Integer()),
    (sa.INTEGER(), sa.BigInteger()),
    (sa.NUMERIC(9, 2), sa.Numeric(9, 2)),
    (sa.TIMESTAMP(), sa.DateTime()),
    (postgresql.ENUM("a", "b", name="e"), sa.Enum("a", "b", "c", name="e")),
    (postgresql.JSONB(), sa.JSON()),
    (mysql.TINYINT(display_width=1), sa.Boolean()),
    (mysql.LONGTEXT(), sa.JSON()),
    (sa.CHAR(32), sa.Uuid()),
]
DOES_NOT = [
    (sa.VARCHAR(50), sa.String(40)),
    (sa.TEXT(), sa.Integer()),
    (sa.TEXT(), sa.JSON()),
    (sa.TEXT(), sa.Uuid()),
    (sa.BIGINT(), sa.Integer()),
    (sa.INTEGER(), sa.Boolean()),
    (sa.NUMERIC(9, 4), sa.Numeric(9, 2)),
    (sa.DATE(), sa.DateTime()),
    (postgresql.ENUM("a", "b", name="e"), sa.Enum("a", name="e")),
]


@pytest.mark.parametrize(("old", "new"), FITS)
def test_a_value_that_is_copied_as_it_is(old: Any, new: Any) -> None:
    assert fits(old, new)


@pytest.mark.parametrize(("old", "new"), DOES_NOT)
def test_a_value_that_somebody_has_to_think_about(old: Any, new: Any) -> None:
    assert not fits(old, new)
