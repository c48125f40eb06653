"""`plan` tells what a database does besides, where rows are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa

from backfill import Backfill
from backfill.planner import make_plan
from backfill.settings import Settings
from tests.integration.support import bound, complete, make, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.databases import Database


class FillN(Backfill):
    table = "things"
    where = "n IS NULL"
    values: ClassVar = {"n": "id"}


class FillNAndKeepTheTime(FillN):
    values: ClassVar = {"n": "id", "changed_at": "changed_at"}


def make_things(engine: sa.Engine, *columns: sa.Column[Any]) -> sa.Table:
    return make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("n", sa.Integer),
        sa.Column("m", sa.Integer),
        *columns,
        rows=[{"id": i} for i in range(1, 4)],
    )


def warnings(engine: sa.Engine, declaration: type[Backfill], word: str) -> list[str]:
    found = make_plan(bound(engine, declaration), Settings()).warnings
    return [text for text in found if word in text]


TRIGGERS = {
    "sqlite": (
        "CREATE TRIGGER of_all AFTER UPDATE ON things BEGIN SELECT 1; END",
        "CREATE TRIGGER of_n BEFORE UPDATE OF m, n ON things BEGIN SELECT 1; END",
        "CREATE TRIGGER of_m AFTER UPDATE OF m ON things BEGIN SELECT 1; END",
        "CREATE TRIGGER of_new AFTER INSERT ON things BEGIN UPDATE things SET n = 1"
        " WHERE id = (SELECT 1 FROM things AS t JOIN things AS u ON t.id = u.id); END",
    ),
    "postgresql": (
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER of_all AFTER UPDATE ON things EXECUTE PROCEDURE nothing()",
        "CREATE TRIGGER of_n BEFORE UPDATE OF m, n ON things FOR EACH ROW"
        " EXECUTE PROCEDURE nothing()",
        "CREATE TRIGGER of_m AFTER UPDATE OF m ON things EXECUTE PROCEDURE nothing()",
        "CREATE TRIGGER of_new AFTER INSERT ON things EXECUTE PROCEDURE nothing()",
        "CREATE TRIGGER off BEFORE UPDATE ON things FOR EACH ROW EXECUTE PROCEDURE nothing()",
        "ALTER TABLE things DISABLE TRIGGER off",
    ),
    "mariadb": (
        "CREATE TRIGGER of_all AFTER UPDATE ON things FOR EACH ROW SET @x = 1",
        "CREATE TRIGGER of_n BEFORE UPDATE ON things FOR EACH ROW SET NEW.m = NEW.n",
        "CREATE TRIGGER of_new AFTER INSERT ON things FOR EACH ROW SET @x = 1",
    ),
}


def send(engine: sa.Engine, statements: Sequence[str]) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_triggers_of_updates_are_told(database: Database, engine: sa.Engine) -> None:
    make_things(engine)
    send(engine, TRIGGERS[database.name])
    told = warnings(engine, FillN, "fires for each row")
    assert [text.split("'")[1] for text in told] == ["of_all", "of_n"]


def test_a_time_that_each_update_moves_is_told(database: Database, engine: sa.Engine) -> None:
    """And stays where the backfill writes it, as `plan` says."""
    make_things(engine)
    if database.name != "mariadb":
        assert warnings(engine, FillN, "the time of the run") == []
        return
    send(
        engine,
        [
            "ALTER TABLE things ADD changed_at timestamp NOT NULL DEFAULT '2020-01-01 00:00:00'"
            " ON UPDATE CURRENT_TIMESTAMP"
        ],
    )
    (told,) = warnings(engine, FillN, "the time of the run")
    assert told.startswith("'changed_at' gets")
    assert warnings(engine, FillNAndKeepTheTime, "the time of the run") == []
    complete(engine, FillNAndKeepTheTime)
    things = sa.Table("things", sa.MetaData(), autoload_with=engine)
    assert {when.year for when in read(engine, things, "changed_at")} == {2020}
