"""The triggers of `sync` and statements of the application that they must neither bend nor fail."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sqlalchemy as sa

from backfill import Backfill
from backfill.planner import make_plan
from backfill.settings import Settings
from tests.integration.support import bound, fill, make, read
from tests.integration.test_sync import install, is_lax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.databases import Database

Row = dict[str, Any]
Rule = tuple[str, "Callable[[Row, Row], Any]"]
"""What a column becomes on a conflict: as SQL, and as Python of the old and the given row."""

goods = sa.Table(
    "goods",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("price", sa.Integer),
    sa.Column("unit", sa.String(10)),
    sa.Column("label", sa.String(20)),
)


class Cents(Backfill):
    """Reads what it writes: applied twice, it shows."""

    table = "goods"
    where = goods.c.unit.is_(None)
    values: ClassVar = {"price": goods.c.price * 100, "unit": sa.literal("cents")}
    sync = True


class Label(Backfill):
    """Reads another column than it writes."""

    table = "goods"
    where = goods.c.label.is_(None)
    values: ClassVar = {"label": sa.cast(goods.c.price, sa.String(10)) + "!"}
    sync = True


def cents(row: Row) -> Row:
    price = row["price"]
    filled = {"price": None if price is None else price * 100, "unit": "cents"}
    return row | filled if row["unit"] is None else row


def label(row: Row) -> Row:
    return row | {"label": labelled(row)} if row["label"] is None else row


def labelled(row: Row) -> str | None:
    return None if row["price"] is None else f"{row['price']}!"


def given(column: str) -> Rule:
    return f"{{given[{column}]}}", lambda _old, new: new[column]


KEPT: Rule = (
    "COALESCE({given[label]}, goods.label)",
    lambda old, new: new["label"] or old["label"],
)
SUM: Rule = ("goods.price + {given[price]}", lambda old, new: plus(old["price"], new["price"]))


def plus(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


COPIES: dict[type[Backfill], list[Mapping[str, Rule]]] = {
    Cents: [
        {"price": given("price"), "unit": given("unit")},
        {"label": given("label")},
        {"price": given("price"), "unit": given("unit"), "label": given("label")},
    ],
    Label: [
        {"label": given("label")},
        {"price": given("price")},
        {"price": given("price"), "label": given("label")},
        {"price": given("price"), "unit": given("unit"), "label": given("label")},
    ],
}
COMPUTED: list[Mapping[str, Rule]] = [
    {"price": given("price")},  # into a row that says `cents` already
    {"unit": given("unit")},
    {"label": KEPT},
    {"price": SUM, "unit": given("unit")},
]
"""What is right only where no trigger fills the given row."""


@dataclass
class World:
    """The table, and what should be in it."""

    connection: sa.Connection
    filled: Callable[[Row], Row]
    rows: dict[int, Row] = field(default_factory=dict)

    def insert(self, rows: Sequence[Row], *, or_ignore: bool = False) -> None:
        for row in rows:
            if row["id"] not in self.rows:
                self.rows[row["id"]] = self.filled(row)
        ignored = {"mariadb": "", "default": " ON CONFLICT DO NOTHING"}
        self._write(rows, ignored if or_ignore else {"default": ""}, ignore=or_ignore)

    def upsert(self, rows: Sequence[Row], rules: Mapping[str, Rule]) -> None:
        for row in rows:
            old = self.rows.get(row["id"])
            if old is None:
                self.rows[row["id"]] = self.filled(row)
            else:
                changed = {name: rule(old, row) for name, (_, rule) in rules.items()}
                self.rows[row["id"]] = self.updated(old, old | changed)
        is_mariadb = self.connection.dialect.name == "mariadb"
        form = "VALUES({})" if is_mariadb else "excluded.{}"
        names = {column.name: form.format(column.name) for column in goods.c}
        sets = ", ".join(f"{c} = {sql.format(given=names)}" for c, (sql, _) in rules.items())
        self._write(
            rows,
            {
                "mariadb": f" ON DUPLICATE KEY UPDATE {sets}",
                "default": f" ON CONFLICT (id) DO UPDATE SET {sets}",
            },
        )

    def update(self, key: int, changed: Row) -> None:
        self.rows[key] = self.updated(self.rows[key], self.rows[key] | changed)
        self.connection.execute(goods.update().where(goods.c.id == key).values(changed))

    def updated(self, old: Row, new: Row) -> Row:
        row = self.filled(new)
        follows = self.filled is label and old["label"] == new["label"] == labelled(old)
        return row | {"label": labelled(row)} if follows and new["label"] is not None else row

    def _write(self, rows: Sequence[Row], end: Mapping[str, str], *, ignore: bool = False) -> None:
        name = self.connection.dialect.name
        is_ignored = ignore and name == "mariadb"
        values = ", ".join(f"({', '.join(map(literal, row.values()))})" for row in rows)
        self.connection.exec_driver_sql(
            f"INSERT {'IGNORE ' if is_ignored else ''}INTO goods (id, price, unit, label)"
            f" VALUES {values}{end.get(name, end['default'])}"
        )


def literal(value: Any) -> str:
    return "NULL" if value is None else repr(value)


def random_statement(dice: random.Random, world: World, rules: list[Mapping[str, Rule]]) -> None:
    keys = dice.sample(range(1, 9), dice.randint(1, 3))
    rows = [
        {
            "id": key,
            "price": dice.choice([None, *range(1, 90)]),
            "unit": dice.choice([None, None, "cents", "francs"]),
            "label": dice.choice([None, None, "own"]),
        }
        for key in keys
    ]
    kind = dice.choice(["insert", "upsert", "upsert", "upsert", "ignore", "update"])
    if kind == "upsert":
        world.upsert(rows, dice.choice(rules))
    elif kind == "insert":
        world.insert([row for row in rows if row["id"] not in world.rows] or [new_row(world)])
    elif kind == "ignore":
        world.insert(rows, or_ignore=True)
    elif world.rows:
        changed = dice.choice([{"price": dice.randint(1, 89)}, {"unit": None}, {"label": None}])
        world.update(dice.choice(sorted(world.rows)), changed)


def new_row(world: World) -> Row:
    return {"id": 100 + len(world.rows), "price": 7, "unit": None, "label": None}


@pytest.mark.parametrize(("declaration", "filled"), [(Cents, cents), (Label, label)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_upsert_copies_what_it_was_given(
    engine: sa.Engine, declaration: type[Backfill], filled: Callable[[Row], Row], seed: int
) -> None:
    goods.create(engine)
    old = [{"id": key, "price": key, "unit": None, "label": None} for key in range(1, 6)]
    with engine.begin() as connection:
        connection.execute(goods.insert(), old)
    install(engine, declaration)
    rules = COPIES[declaration] + ([] if engine.dialect.name == "mariadb" else COMPUTED)
    dice = random.Random(seed)
    with engine.begin() as connection:
        world = World(connection, filled, {row["id"]: row for row in old})
        for step in range(120):
            random_statement(dice, world, rules)
            found = connection.execute(sa.select(goods).order_by(goods.c.id)).mappings()
            assert [dict(row) for row in found] == [
                world.rows[key] for key in sorted(world.rows)
            ], f"step {step}"
            if dice.random() < 0.2:  # few keys, so that most of them meet
                connection.execute(goods.delete())
                world.rows.clear()
    assert len(read(engine, goods, "id")) == len(world.rows)


@pytest.mark.parametrize("unit", [None, "francs"])
def test_a_price_is_not_multiplied_twice(engine: sa.Engine, unit: str | None) -> None:
    """An old application that knows no unit writes prices, into a row of ours and its own."""
    goods.create(engine)
    row = {"id": 1, "price": 3, "unit": unit, "label": None}
    with engine.begin() as connection:
        connection.execute(goods.insert(), [row])
    install(engine, Cents)
    with engine.begin() as connection:
        world = World(connection, cents, {1: row})
        world.upsert([{"id": 1, "price": 5, "unit": None, "label": None}], COMPUTED[0])
    assert read(engine, goods, "price", "unit") == [(5, "francs") if unit else (500, "cents")]


# -- statements that the triggers must not fail -----------------------------------------------


class Needed(Backfill):
    """Some rows have nothing to compute it from."""

    table = "notes"
    where = "words = -1"
    values: ClassVar = {"words": "length(body) + length(head)"}
    sync = True


CONFLICT_CLAUSES = ["", "OR ABORT", "OR FAIL", "OR ROLLBACK", "OR IGNORE", "OR REPLACE"]


def test_a_null_that_the_column_does_not_take_fails_no_statement(engine: sa.Engine) -> None:
    """SQLite's triggers inherit the conflict clause of the statement."""
    notes = make(
        engine,
        "notes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("head", sa.String(20)),
        sa.Column("body", sa.String(20)),
        sa.Column("words", sa.Integer, nullable=False, server_default="-1"),
    )
    install(engine, Needed)
    clauses = CONFLICT_CLAUSES if is_lax(engine) else [""]
    with engine.begin() as connection:
        for key, clause in enumerate(clauses):
            for statement in (
                f"INSERT {clause} INTO notes (id, head) VALUES ({key}, 'a')",
                f"UPDATE {clause} notes SET head = 'b' WHERE id = {key}",
            ):
                connection.exec_driver_sql(statement)
    assert read(engine, notes, "head", "words") == [("b", -1)] * len(clauses)
    with engine.begin() as connection:
        connection.execute(notes.update().values(body="bcd"))
    assert read(engine, notes, "words") == [4] * len(clauses)


class OfJson(Needed):
    values: ClassVar = {"words": "json_extract(body, '$.n')"}


class OfJsonThatIsLookedAt(OfJson):
    values: ClassVar = {"words": "CASE WHEN json_valid(body) THEN json_extract(body, '$.n') END"}


def test_functions_that_raise_are_told_where_nothing_catches_them(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'one.db'}", poolclass=sa.NullPool)
    notes = make(
        engine,
        "notes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("body", sa.String(20)),
        sa.Column("words", sa.Integer, nullable=False, server_default="-1"),
    )
    warnings = make_plan(bound(engine, OfJson), Settings()).warnings
    assert any(text.startswith("json_extract raises an error") for text in warnings)

    warnings = make_plan(bound(engine, OfJsonThatIsLookedAt), Settings()).warnings
    assert not any("raises an error" in text for text in warnings)
    install(engine, OfJsonThatIsLookedAt)
    fill(engine, notes, [{"id": 1, "body": "{"}, {"id": 2, "body": '{"n": 3}'}])
    assert read(engine, notes, "words") == [-1, 3]


class OfJsonThatWhereLooksAt(OfJson):
    where = "words = -1 AND json_valid(body)"


def test_what_where_leaves_out_is_not_computed(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'one.db'}", poolclass=sa.NullPool)
    notes = make(
        engine,
        "notes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("body", sa.String(20)),
        sa.Column("words", sa.Integer, nullable=False, server_default="-1"),
    )
    install(engine, OfJsonThatWhereLooksAt)
    fill(engine, notes, [{"id": 1, "body": "{"}, {"id": 2, "body": '{"n": 3}'}])
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE notes SET words = 8 WHERE id = 1")
    assert read(engine, notes, "words") == [8, 3]


class LabelIfNew(Backfill):
    """What is looked at, and what is written, are two columns."""

    table = "goods"
    where = "unit IS NULL"
    values: ClassVar = {"label": "price || '!'", "unit": "'cents'"}
    sync = True


WHAT_FAILS_AN_UPDATE = {
    "no replica identity": (
        "ALTER TABLE goods REPLICA IDENTITY NOTHING",
        "CREATE PUBLICATION all_of_it FOR TABLE goods",
    ),
    "a trigger of the application's": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RAISE EXCEPTION $$no updates here$$; END'",
        "CREATE TRIGGER refuse BEFORE UPDATE ON goods FOR EACH ROW EXECUTE PROCEDURE refuse()",
    ),
    "a check": ("ALTER TABLE goods ADD CHECK (label <> '7!')",),
    "no such source": ("ALTER TABLE goods RENAME price TO amount",),
    "no such key": ("ALTER TABLE goods RENAME id TO number",),
    "no such value": ("ALTER TABLE goods DROP label",),
    "no such column to look at": ("ALTER TABLE goods DROP unit",),
}


@pytest.mark.requires("schemas")
@pytest.mark.parametrize("what", WHAT_FAILS_AN_UPDATE)
def test_a_row_that_cannot_be_updated_can_be_inserted(engine: sa.Engine, what: str) -> None:
    goods.create(engine)
    install(engine, LabelIfNew)
    with engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO goods VALUES (1, 5)")  # its plans are kept
        connection.commit()
        with engine.begin() as other:
            for statement in WHAT_FAILS_AN_UPDATE[what]:
                other.exec_driver_sql(statement)
        connection.exec_driver_sql("INSERT INTO goods VALUES (2, 7)")
        connection.commit()
        found = connection.exec_driver_sql("SELECT * FROM goods ORDER BY 1").mappings().all()
    given = {"id": 2, "price": 7, "unit": None, "label": None}
    assert found[0].get("label", "5!") == "5!"
    assert list(found[1].values()) == list(given.values())[: len(found[1])]


@pytest.mark.requires("schemas")
def test_rows_of_one_statement_share_a_subtransaction(engine: sa.Engine) -> None:
    """More than 64 in one transaction would be felt by everybody (PostgreSQL's procarray.c)."""
    goods.create(engine)
    install(engine, LabelIfNew)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO goods SELECT i, i FROM generate_series(1, 200) i")
    with engine.connect() as connection:
        numbers = connection.exec_driver_sql("SELECT DISTINCT xmin::text FROM goods").all()
    assert len(numbers) == 1
    assert read(engine, goods, "label") == [f"{i}!" for i in range(1, 201)]


@pytest.mark.requires("schemas")
def test_rows_beside_one_that_cannot_be_updated_are_filled(engine: sa.Engine) -> None:
    goods.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(*WHAT_FAILS_AN_UPDATE["a check"])
    install(engine, LabelIfNew)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO goods SELECT i, i FROM generate_series(5, 9) i")
    assert read(engine, goods, "label") == ["5!", "6!", None, "8!", "9!"]


@pytest.mark.requires("schemas")
def test_triggers_of_another_kind_are_made_anew(engine: sa.Engine) -> None:
    """What a table's rows came by before it became a part of another one."""
    goods.create(engine)
    install(engine, LabelIfNew)
    with engine.begin() as connection:
        for statement in (
            "ALTER TABLE goods RENAME TO low",
            "CREATE TABLE goods (LIKE low INCLUDING INDEXES) PARTITION BY RANGE (id)",
            "ALTER TABLE goods ATTACH PARTITION low FOR VALUES FROM (0) TO (10)",
        ):
            connection.exec_driver_sql(statement)
    assert install(engine, LabelIfNew)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO goods VALUES (1, 5), (2, 7)")
    assert read(engine, goods, "label") == ["5!", "7!"]
    assert not install(engine, LabelIfNew)


class LookUp(Label):
    """Reads another table, too."""

    values: ClassVar = {"label": "(SELECT name FROM names WHERE names.price = goods.price)"}


@contextlib.contextmanager
def teller(database: Database, name: str, *rights: str) -> Iterator[sa.Connection]:
    """A connection of a role that has no rights on goods but these."""
    admin = sa.create_engine(database.admin_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for statement in (
            f"CREATE ROLE {name} LOGIN",
            f"GRANT {', '.join(rights)} ON goods TO {name}",
            f"GRANT USAGE ON SCHEMA public TO {name}",
        ):
            connection.exec_driver_sql(statement)
        try:
            connection.exec_driver_sql(f"SET ROLE {name}")
            yield connection
        finally:
            for statement in ("RESET ROLE", f"DROP OWNED BY {name}", f"DROP ROLE {name}"):
                connection.exec_driver_sql(statement)
    admin.dispose()


@pytest.mark.requires("schemas")
def test_who_may_only_insert_still_may(database: Database, engine: sa.Engine) -> None:
    goods.create(engine)
    install(engine, Label)
    with teller(database, f"teller_{engine.url.database}", "INSERT") as connection:
        # Its own table of that name is none of the triggers' business.
        connection.exec_driver_sql("CREATE TEMPORARY TABLE goods (id integer, label text)")
        connection.exec_driver_sql("INSERT INTO public.goods (id, price) VALUES (1, 5)")
    assert read(engine, goods, "label") == ["5!"]


@pytest.mark.requires("schemas")
def test_who_may_not_read_what_values_look_up_has_them_follow(
    database: Database, engine: sa.Engine
) -> None:
    goods.create(engine)
    make(
        engine,
        "names",
        sa.Column("price", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20)),
        rows=[{"price": 5, "name": "five"}, {"price": 6, "name": "six"}],
    )
    install(engine, LookUp)
    with teller(database, f"teller_{engine.url.database}", "INSERT", "UPDATE") as connection:
        connection.exec_driver_sql("INSERT INTO goods (id, price) VALUES (1, 5)")
        assert read(engine, goods, "label") == ["five"]
        connection.exec_driver_sql("UPDATE goods SET price = 6")
    assert read(engine, goods, "label") == ["six"]
