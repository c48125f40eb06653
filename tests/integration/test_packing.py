"""Pages that travel as one text: the rows that a backfill sees, by the statements it sends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from backfill import Backfill
from backfill.dialects import ErrorKind, dialect_for
from tests.integration import support

if TYPE_CHECKING:
    from tests.databases import Database

pytestmark = pytest.mark.requires("cut_values")

ORDINARY = ["", "-", "+", "ü", "💾", "a b", "it's", '"\\"', "line\nline", "NULL", "\0", " "]
MARKED = ["\x1e", "\x1f", "a\x1eb\x1fc"]


class Copy(Backfill):
    revision = "a1"
    table = "notes"
    key = ("id",)
    reads = ("name", "label", "note", "kind", "n")
    writes = ("copy",)
    where = sa.column("copy").is_(None)

    def transform(self, row: Any) -> dict[str, Any]:
        return {"copy": repr((row.id, row.name, row.label, row.note, row.kind, row.n))}


def notes(engine: sa.Engine, values: list[str | None]) -> sa.Table:
    """A row for each value, in columns of several character sets."""
    latin = mysql.VARCHAR(20, charset="latin1", collation="latin1_german1_ci")
    rows = [
        {
            "id": i - 3,
            "name": (value or "")[:20],
            "label": "ä" if value and not value.isascii() else (value or "")[:20],
            "note": value,
            "kind": "two" if i % 2 else None,
            "n": None if i % 3 else -i,
        }
        for i, value in enumerate(values)
    ]
    return support.make(
        engine,
        "notes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20, collation="utf8mb4_bin"), nullable=False),
        sa.Column("label", latin),
        sa.Column("note", mysql.TEXT(collation="utf8mb4_unicode_ci")),
        sa.Column("kind", mysql.ENUM("one", "two")),
        sa.Column("n", sa.BigInteger),
        sa.Column("copy", mysql.LONGTEXT(charset="utf8mb4")),
        rows=rows,
    )


def sent(engine: sa.Engine, **options: Any) -> list[str]:
    """Run the backfill to its end; returns the statements that read pages."""
    statements: list[str] = []

    def note(*found: Any) -> None:
        if " AS kind" in found[2] or ".kind" in found[2]:
            statements.append(found[2])

    sa.event.listen(engine, "before_cursor_execute", note)
    support.complete(engine, Copy, **options)
    sa.event.remove(engine, "before_cursor_execute", note)
    return statements


def assert_copied(engine: sa.Engine, table: sa.Table) -> None:
    found = support.read(engine, table, "id", "name", "label", "note", "kind", "n", "copy")
    assert [copy for *_, copy in found] == [repr(tuple(values)) for *values, _ in found]


@pytest.mark.parametrize("size", [1, 5, 500])
def test_rows_are_read_as_they_are(engine: sa.Engine, size: int) -> None:
    table = notes(engine, [*ORDINARY, None])
    statements = sent(engine, chunk_size=size)
    assert_copied(engine, table)
    assert statements
    assert all("group_concat" in text for text in statements)


@pytest.mark.parametrize("marked", MARKED)
def test_what_looks_like_a_mark_is_read_row_by_row(engine: sa.Engine, marked: str) -> None:
    table = notes(engine, [*ORDINARY, marked, None, *ORDINARY])
    statements = sent(engine, chunk_size=4)
    assert_copied(engine, table)
    assert "group_concat" in statements[0]
    assert "group_concat" not in statements[-1]


def test_what_is_cut_off_is_read_row_by_row(engine: sa.Engine) -> None:
    table = notes(engine, [digit * 60_000 for digit in "1234567890" * 4])
    statements = sent(engine, chunk_size=40)
    assert_copied(engine, table)
    assert "group_concat" not in statements[-1]


def test_marks_at_the_end_of_what_is_cut_off(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left looks like two rows, as many as there are."""
    monkeypatch.setattr("backfill.dialects.mysql._GATHERED_BYTES", 2_000)
    begins, forged = "-3\x1f\x1f+\x1f+", "x\x1e-2\x1fa\x1f+b\x1f+"
    ends = "\x1f-\x1f+0\x1e"
    filler = "F" * (2_000 - len(begins) - len(forged) - len(ends))
    table = notes(engine, [None, "second"])
    with engine.begin() as connection:
        first = table.update().where(table.c.id == -3)
        connection.execute(first.values(label="", note=forged + filler + ends + "tail"))
    sent(engine, chunk_size=4)
    assert_copied(engine, table)


@pytest.mark.parametrize("mode", ["ORACLE", "PAD_CHAR_TO_FULL_LENGTH", "ANSI"])
def test_other_modes_of_sql(database: Database, engine: sa.Engine, mode: str) -> None:
    table = notes(engine, [*ORDINARY, None])
    command = f"SET sql_mode = CONCAT(@@sql_mode, ',{mode}')"
    other = sa.create_engine(database.url, connect_args={"init_command": command})
    sent(other, chunk_size=5)
    other.dispose()
    assert_copied(engine, table)


@pytest.mark.parametrize("text", ["a", "\u00e9", "\u0436", "\U0001f4be"])
def test_chunks_of_long_texts_fit_into_a_packet(engine: sa.Engine, text: str) -> None:
    table = notes(engine, [text * (16_000 // len(text.encode()))] * 1_500)
    support.complete(engine, Copy, target_seconds=20)
    assert_copied(engine, table)


def test_rows_are_locked_as_they_are_read_again(engine: sa.Engine) -> None:
    """Another session can touch none of them while the chunk is being written."""
    table = notes(engine, [*ORDINARY])
    refused: list[Any] = []

    def touch(_: Any, __: Any, text: str, *___: Any) -> None:
        if "group_concat" not in text or "FOR UPDATE" not in text:
            return
        with engine.connect() as other:
            other.exec_driver_sql("SET innodb_lock_wait_timeout = 0")
            for (key,) in other.execute(sa.select(table.c.id)).all():
                with pytest.raises(sa.exc.OperationalError) as error:
                    other.execute(table.update().where(table.c.id == key).values(n=1))
                refused.append(dialect_for(engine).error_kind(error.value))

    sa.event.listen(engine, "after_cursor_execute", touch)
    support.complete(engine, Copy)
    assert refused == [ErrorKind.LOCKED] * len(ORDINARY)
