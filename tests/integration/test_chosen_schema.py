"""env.py may choose a schema or database for its connection; all of ours look there, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from backfill.dialects import keep_place

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tests.databases import Database


class Choice(NamedTuple):
    command: str
    question: str
    answer: str


CHOICES = {
    "postgresql": Choice('SET search_path TO "a b", public', "SHOW search_path", '"a b", public'),
    "mariadb": Choice("USE information_schema", "SELECT database()", "information_schema"),
}


@pytest.mark.requires("server")
def test_choice_is_kept(database: Database, engine: sa.Engine) -> None:
    choice = CHOICES[database.name]
    with engine.connect() as connection:
        before = connection.exec_driver_sql(choice.question).scalar()
        connection.exec_driver_sql(choice.command)
        kept = keep_place(connection)
    assert before != choice.answer
    with kept.connect() as connection:
        connection.rollback()
        assert connection.exec_driver_sql(choice.question).scalar() == choice.answer
