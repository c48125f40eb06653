"""The triggers of `sync` carry every type of column unchanged, says the database."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar

import pytest

from backfill import Backfill
from tests.integration.kinds import KINDS
from tests.integration.places import Places, literal
from tests.integration.test_sync import install

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.databases import Servers
    from tests.integration.kinds import Kind
    from tests.integration.places import Place

DRIVERS = {"sqlite": "pysqlite", "postgresql": "psycopg", "mariadb": "pymysql"}


class Copy(Backfill):
    """What renames a column, while the old code writes the old one."""

    table = "things"
    where = "dst IS NULL"
    values: ClassVar = {"dst": "src"}
    sync = True


@pytest.fixture(scope="module")
def places(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with ExitStack() as stack:
        directory: Path = tmp_path_factory.mktemp("places")
        yield Places(servers, directory, stack)


@pytest.mark.parametrize(
    ("database", "kind"),
    [(name, kind) for name, kinds in KINDS.items() for kind in kinds if kinds[kind].edges],
)
def test_value_is_carried_and_followed(places: Places, database: str, kind: str) -> None:
    place, wanted = places[DRIVERS[database]], KINDS[database][kind]
    copied = place_with(place, wanted)
    assert place.different(wanted.form) == []

    shifted = copied[1:] + copied[:1]
    place.execute(*(f"UPDATE things SET src = {v} WHERE id = {i}" for i, v in enumerate(shifted)))
    assert place.different(wanted.form) == []


def place_with(place: Place, kind: Kind) -> list[str]:
    """Let the application insert each value, where triggers are."""
    given = [literal(place.database, value) for value in kind.edges]
    place.execute(
        "DROP TABLE IF EXISTS things",
        "CREATE TABLE things (id int NOT NULL PRIMARY KEY,"
        f" src {kind.declared} NULL, dst {kind.declared} NULL)",
    )
    install(place.engine, Copy)
    rows = ", ".join(f"({key}, {value})" for key, value in enumerate(given))
    place.execute(f"INSERT INTO things (id, src) VALUES {rows}")
    return given
