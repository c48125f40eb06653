"""Rows in one text: what comes out of it is what went in, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects.mysql import pymysql

from backfill.dialects.mysql_packing import Packing

TABLE = sa.Table(
    "t",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(20), nullable=False),
    sa.Column("note", sa.String(20)),
    sa.Column("n", sa.Integer),
    sa.Column("at", sa.DateTime),
    sa.Column("tags", mysql.SET("a", "b")),
    sa.Column("essay", mysql.LONGTEXT),
    sa.Column("NAME", sa.Integer),
)
COLUMNS = [TABLE.c.id, TABLE.c.name, TABLE.c.note, TABLE.c.n]
MARKS = "\x1e\x1f+-"
MOST = 1_000_000

texts = st.text(st.sampled_from("ab\0\n'\"\\ü" + MARKS), max_size=4)
rows = st.dictionaries(
    st.integers(-3, 9),
    st.tuples(texts, st.none() | texts, st.none() | st.integers(-2, 2)),
    max_size=4,
)


def packing() -> Packing:
    found = Packing.of(COLUMNS, 1, pymysql.dialect())
    assert found is not None
    return found


def together(rows: list[tuple[Any, ...]]) -> str | None:
    """What the server makes of rows: NULL of none."""
    parts = [
        "\x1f".join([str(key), name, *("-" if v is None else f"+{v}" for v in nullable)]) + "\x1e"
        for key, name, *nullable in rows
    ]
    return "".join(parts) if parts else None


def has_mark(value: Any) -> bool:
    return isinstance(value, str) and not {"\x1e", "\x1f"}.isdisjoint(value)


@given(rows, st.randoms())
def test_rows_come_out_in_order_or_not_at_all(given: dict[int, Any], chance: Any) -> None:
    expected = [(key, *values) for key, values in sorted(given.items())]
    sent = list(expected)
    chance.shuffle(sent)
    found = packing().unpacked(len(sent), together(sent), MOST)
    assert found == expected or (found is None and any(map(has_mark, sum(sent, ()))))


@given(rows.filter(bool), st.data())
def test_text_that_was_cut_off_is_not_believed(given: dict[int, Any], data: st.DataObject) -> None:
    sent = [(key, *values) for key, values in given.items()]
    whole = together(sent)
    assert whole is not None
    assert packing().unpacked(len(sent), None, MOST) is None
    most = data.draw(st.integers(0, len(whole.encode())))
    cut = whole.encode()[:most].decode(errors="ignore")
    assert packing().unpacked(len(sent), cut + "?" * (most - len(cut.encode())), most) is None


@pytest.mark.parametrize(
    ("columns", "width"),
    [
        ([TABLE.c.name, TABLE.c.n], 1),
        ([TABLE.c.id, TABLE.c.name], 2),
        ([TABLE.c.id, TABLE.c.at], 1),
        ([TABLE.c.id, TABLE.c.tags], 1),
        ([TABLE.c.id, TABLE.c.essay], 1),
        ([TABLE.c.id, TABLE.c.name, TABLE.c.NAME], 1),
    ],
)
def test_what_is_not_its_text_or_has_no_order_is_not_packed(
    columns: list[sa.Column[Any]], width: int
) -> None:
    assert Packing.of(columns, width, pymysql.dialect()) is None
