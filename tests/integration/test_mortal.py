"""A runner that dies at a chosen commit leaves what `kill -9` would leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
import sqlalchemy as sa

from backfill import Backfill
from backfill.dialects import dialect_for
from backfill.runs import Status
from backfill.store import Store
from backfill.testing.mortal import Death, Killed, Moment, mortal
from tests.integration.support import make, read, run

if TYPE_CHECKING:
    from backfill.dialects import Dialect

ROWS = 10
CHUNK = 3


class CountUp(Backfill):
    """Add one, exactly once."""

    table = "items"
    values: ClassVar = {"n": "n + 1"}


class CountUpInPython(Backfill):
    """Add one, exactly once."""

    table = "items"
    reads: ClassVar = ["n"]
    writes: ClassVar = ["n"]

    def transform(self, row):  # type: ignore[no-untyped-def]
        return {"n": row.n + 1}


@pytest.mark.parametrize("declaration", [CountUp, CountUpInPython])
@pytest.mark.parametrize(
    ("moment", "chunks"), [(Moment.BEFORE_COMMIT, 1), (Moment.AFTER_COMMIT, 2)]
)
def test_death_in_the_second_chunk(
    engine: sa.Engine, declaration: type[Backfill], moment: Moment, chunks: int
) -> None:
    table = make(
        engine,
        "items",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, nullable=False),
        rows=[{"id": i, "n": 0} for i in range(ROWS)],
    )
    death = Death(2, moment, f"backfill: {declaration.name}")
    with pytest.raises(Killed):
        run(engine, declaration, dialect=mortal(engine, death), chunk_size=CHUNK)

    done = chunks * CHUNK
    assert read(engine, table, "n") == [1] * done + [0] * (ROWS - done)
    assert as_left(dialect_for(engine), declaration.name) == (Status.RUNNING, True, done)


def as_left(dialect: Dialect, name: str) -> tuple[Status, bool, int]:
    """Status, whether the dead runner's lease is still there, and rows changed."""
    store = Store(dialect)
    found = store.current(name)
    assert found is not None
    (key_range,) = store.ranges(found)
    return found.status, key_range.lease_is_live, key_range.rows_changed
