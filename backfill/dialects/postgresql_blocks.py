"""PostgreSQL read in the order in which it stores rows, block after block."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill.dialects.readers import Reader, Readers

_LAST_BLOCK = 2**32 - 1


class _Seen(Enum):
    """What ends a proof block by block."""

    A_ROW = "a pending row"
    TWO_MOMENTS = "snapshots that differ"


def any_in_blocks(
    readers: Readers, table: sa.Table, quoted: str, condition: sa.ColumnElement[bool], rows: int
) -> bool | None:
    """Say whether a row of a heap matches, by reads of about so many rows; None: not to be told.

    A row that is written meanwhile may move from where we have yet to look to where we looked: so
    it counts only if every statement had the same snapshot, which means that no transaction ended
    from the first to the last.
    """
    looking = _looking(table, quoted, condition)
    with readers.first.reading():
        of_table = {"table": quoted}
        pages, density = readers.first.connection.execute(_PAGES_OF, of_table).one()
    moments: set[str] = set()

    def looking_with(reader: Reader) -> Callable[[dict[str, str]], _Seen | None]:
        def look(blocks: dict[str, str]) -> _Seen | None:
            with reader.reading():
                moment, is_found = reader.connection.execute(looking, blocks).one()
            moments.add(moment)
            if is_found:
                return _Seen.A_ROW
            return _Seen.TWO_MOMENTS if len(moments) > 1 else None

        return look

    answer = readers.ask(_blocks(int(pages), max(1, int(rows / density))), looking_with)
    return None if answer is _Seen.TWO_MOMENTS else answer is _Seen.A_ROW


def _looking(
    table: sa.Table, quoted: str, condition: sa.ColumnElement[bool]
) -> sa.Select[str, bool]:
    """Return what tells of some blocks the snapshot of the look, and whether a row matches."""
    ctid: sa.ColumnElement[Any] = sa.literal_column(f"{quoted}.ctid")
    low, high = (sa.cast(sa.bindparam(n, type_=sa.Text()), _Tid()) for n in ("low", "high"))
    found = sa.select(sa.literal(1)).select_from(table)
    found = found.where(ctid >= low, ctid < high, condition)
    return sa.select(sa.cast(sa.func.txid_current_snapshot(), sa.Text()), found.exists())


def _blocks(pages: int, step: int) -> Iterator[dict[str, str]]:
    """Give where each look begins and ends. The last one has no end: rows may have moved there
    since the size was read."""
    for page in range(0, max(pages, 1), step):
        end = page + step if page + step < pages else _LAST_BLOCK
        yield {"low": f"({page},0)", "high": f"({end},0)"}


class _Tid(sa.types.UserDefinedType[str]):
    """Where a row is stored: (block, number)."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TID"


# Where statistics are missing, the most rows that fit (MaxHeapTuplesPerPage of 8 kB).
_PAGES_OF = sa.text(
    "SELECT pg_relation_size(oid) / CAST(current_setting('block_size') AS bigint),"
    " CASE WHEN relpages > 0 AND reltuples > 0 THEN reltuples / relpages ELSE 291 END"
    " FROM pg_class WHERE oid = CAST(:table AS regclass)"
)
