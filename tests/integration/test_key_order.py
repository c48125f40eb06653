"""Keys of any values: what a cursor's text gives back is the same key, and stands where the
database has it. With BACKFILL_SLOW_TESTS many more are tried."""

from __future__ import annotations

import datetime as dt
import os
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql

from backfill import Backfill, keys
from tests.integration.support import LIMITS, bound

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = 200 if "BACKFILL_SLOW_TESTS" in os.environ else 6
# Without shrinking: each example makes a table.
some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
EXACT = sa.String(60).with_variant(
    mysql.VARCHAR(60, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
BYTES = sa.LargeBinary().with_variant(mysql.VARBINARY(60), "mysql", "mariadb")
MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
EDGES = [dt.datetime.min.replace(year=1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999)]

# MariaDB pads text with spaces when it compares, and so does its unique index.
TEXT = st.text(CHARACTERS, max_size=15).map(lambda text: text.rstrip(" ") + "|")
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "integer": (sa.BigInteger, st.integers(-(2**63), 2**63 - 1)),
    "text": (EXACT, TEXT),
    "bytes": (BYTES, st.binary(max_size=20)),
    "uuid": (sa.Uuid(), st.uuids(version=4)),
    "numeric": (sa.Numeric(15, 4), st.decimals(-(10**9), 10**9, places=4)),
    "date": (sa.Date, st.dates()),
    "moment": (MOMENT, st.datetimes() | st.sampled_from(EDGES)),
}


def plain(value: Any) -> Any:
    """Equal values as one: -0 and 0 are one key."""
    return Decimal(0) if isinstance(value, Decimal) and value == 0 else value


@pytest.mark.parametrize("kind", list(KINDS))
def test_order_and_text_of_any_key(engine: sa.Engine, kind: str) -> None:
    column, values = KINDS[kind]
    walk_any(engine, [column], st.tuples(values.map(plain)))


@pytest.mark.parametrize("kinds", [("text", "integer"), ("numeric", "text", "moment")])
def test_order_and_text_of_any_composite_key(engine: sa.Engine, kinds: tuple[str, ...]) -> None:
    columns = [KINDS[k][0] for k in kinds]
    walk_any(engine, columns, st.tuples(*(KINDS[k][1].map(plain) for k in kinds)))


class Counting(Backfill):
    """Anything; only its key matters."""

    table = "things"
    values = {"n": "n + 1"}  # noqa: RUF012


def walk_any(
    engine: sa.Engine, columns: Sequence[Any], one: st.SearchStrategy[tuple[Any, ...]]
) -> None:
    names = [f"k{i}" for i in range(len(columns))]
    table = sa.Table(
        "things",
        sa.MetaData(),
        *(
            sa.Column(name, kind, primary_key=True, autoincrement=False)
            for name, kind in zip(names, columns, strict=True)
        ),
        sa.Column("n", sa.Integer, nullable=False),
    )
    table.create(engine)
    target = bound(engine, Counting)

    @some
    @given(st.lists(one, min_size=1, max_size=25, unique=True))
    def check(found: list[tuple[Any, ...]]) -> None:
        with engine.begin() as connection:
            connection.execute(sa.delete(table))
            rows = [{**dict(zip(names, key, strict=True)), "n": 0} for key in found]
            connection.execute(table.insert(), rows)
        key = target.key
        with (
            target.dialect.open(LIMITS) as connection,
            target.dialect.transaction(connection, LIMITS, write=False),
        ):
            walked = [
                tuple(row)
                for row in connection.execute(sa.select(*key.selected).order_by(*key.columns))
            ]
            assert len(walked) == len(found)
            count = sa.select(sa.func.count()).select_from(target.table)
            for place, stored in enumerate(walked):
                cursor = keys.loads(keys.dumps(stored))
                assert keys.dumps(cursor) == keys.dumps(stored)
                parameters = key.parameters("at", cursor)
                above = count.where(key.above(key.operands("at")))
                upto = count.where(key.upto(key.operands("at")))
                assert connection.execute(above, parameters).scalar() == len(walked) - place - 1
                assert connection.execute(upto, parameters).scalar() == place + 1

    check()
