"""Who has rows that are not seen yet: transactions from before the bound of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from backfill.dialects import dialect_for
from tests.integration.support import make

if TYPE_CHECKING:
    from tests.databases import Database


def make_things(engine: sa.Engine) -> sa.Table:
    return make(engine, "things", sa.Column("id", sa.Integer, primary_key=True))


@pytest.mark.requires("dead_rows")
def test_an_open_transaction_is_known_by_its_id_alone(engine: sa.Engine) -> None:
    """Also by one above all that have ended, where nobody sees when its session began."""
    things, dialect = make_things(engine), dialect_for(engine)
    with engine.connect() as older, engine.connect() as younger, engine.connect() as looker:
        older.execute(things.insert(), [{"id": 1}])
        number = str(dialect.horizon(looker)).partition(" ")[0]
        looker.rollback()
        younger.execute(things.insert(), [{"id": 2}])
        assert dialect.older_than_horizon(looker, f"{number} 0") is not None
        older.rollback()
        looker.rollback()
        assert dialect.older_than_horizon(looker, f"{number} 0") is None


@pytest.mark.requires("history_list")
@pytest.mark.parametrize("zone", ["+09:00", "-05:00"])
def test_a_session_may_have_another_time_zone_than_its_server(
    database: Database, engine: sa.Engine, zone: str
) -> None:
    url = sa.make_url(database.admin_url).set(database=engine.url.database)
    see_all = sa.create_engine(url, poolclass=sa.NullPool)
    things, dialect = make_things(engine), dialect_for(see_all)
    with engine.connect() as writer, see_all.connect() as looker:
        looker.exec_driver_sql(f"SET time_zone = '{zone}'")
        writer.execute(things.insert(), [{"id": 1}])
        horizon = str(dialect.horizon(looker))
        assert dialect.older_than_horizon(looker, horizon) is not None
        writer.rollback()
        while dialect.horizon(looker) == horizon:  # InnoDB tells whole seconds
            time.sleep(0.05)
        looker.rollback()
        writer.execute(things.insert(), [{"id": 2}])
        assert dialect.older_than_horizon(looker, horizon) is None
