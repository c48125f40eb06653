"""Our own tables: edited, half created, of a newer version, emptied; in a schema of their own."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sqlalchemy as sa

import backfill
from backfill import Backfill, overview, quarantine, store, tables
from backfill.budget import Budget
from backfill.dialects import dialect_for
from backfill.errors import BackfillError, ConfigurationError, KeyChanged, StateError
from backfill.runs import Outcome, Status
from backfill.settings import Settings
from backfill.store import Store
from tests.integration.support import (
    Ran,
    bound,
    complete,
    declared,
    failures,
    make,
    read,
    run,
    status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.databases import Database
    from tests.projects import AlembicProject

ROWS = 40


class CountUp(Backfill):
    """Nothing but the state tables tells what of this is done."""

    table = "things"
    chunk_size = 5
    values: ClassVar = {"n": "n + 1"}


@pytest.fixture
def things(engine: sa.Engine) -> sa.Table:
    return make(
        engine,
        "things",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, nullable=False),
        rows=[{"id": i, "n": 0} for i in range(1, ROWS + 1)],
    )


def begun(engine: sa.Engine, rows: int = 10) -> Ran:
    """Run a part; the rest is in the state tables."""
    ran = run(engine, CountUp, budget=Budget(rows=rows))
    assert ran.outcome is Outcome.STOPPED, ran.result.text
    return ran


def execute(engine: sa.Engine, *statements: Any) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)


def edit(table: sa.Table, **values: Any) -> Any:
    return sa.update(table).values(**values)


# -- edited ----------------------------------------------------------------------------------

RUN, RANGE, FAILURE = tables.run, tables.key_range, tables.failure
EDITS: dict[str, Any] = {
    "an unknown status": edit(RUN, status="sleeping"),
    "no status": edit(RUN, status=""),
    "settings that are no JSON": edit(RUN, settings="nice=1"),
    "settings of another kind": edit(RUN, settings="[]"),
    "changes of another kind": edit(RUN, settings='{"set": 5}'),
    "a key of another kind": edit(RUN, settings='{"key": [5]}'),
    "a key of another table": edit(RUN, settings='{"key": [["uid", "String"]]}'),
    "a cursor that is no JSON": edit(RANGE, cursor="17"),
    "a cursor of two columns": edit(RANGE, cursor="[1, 2]"),
    "an upper bound that is no JSON": edit(RANGE, upper="many"),
    "an empty upper bound": edit(RANGE, upper="[]"),
    "an unknown type in a key": edit(RANGE, lower='[{"colour": "red"}]'),
    "a range that begins later": edit(RANGE, lower="[7]"),
    "a range that ended early": edit(RANGE, finished=True),
    "no ranges": sa.delete(RANGE),
}


@pytest.mark.parametrize("change", list(EDITS))
def test_edited_tables_are_refused(engine: sa.Engine, things: sa.Table, change: str) -> None:
    """In words, by every command that reads them; and nothing more is written."""
    begun(engine)
    before = read(engine, things, "n")
    execute(engine, EDITS[change])
    with pytest.raises((StateError, KeyChanged)) as refused:
        run(engine, CountUp)
    assert "`backfill cancel " in str(refused.value), refused.value
    assert read(engine, things, "n") == before
    for look in (overview.status, overview.listing, overview.failures):
        with suppress(StateError):  # anything else would be a traceback
            look([declared(CountUp)], Store(dialect_for(engine)))


@pytest.mark.parametrize("change", list(EDITS))
def test_what_was_edited_can_be_given_up(engine: sa.Engine, things: sa.Table, change: str) -> None:
    """`backfill cancel` needs only what is left of the run; then it begins anew."""
    begun(engine)
    execute(engine, EDITS[change])
    try:
        Store(dialect_for(engine)).move("count_up", Status.CANCELLED)
    except StateError:  # a status that nobody knows: by hand, as the message says
        execute(engine, edit(RUN, status="cancelled", settings="{}"))
    execute(engine, sa.update(things).values(n=0))
    complete(engine, CountUp)
    assert read(engine, things, "n") == [1] * ROWS


@pytest.mark.requires("server")
def test_cursor_of_another_type_is_refused(engine: sa.Engine, things: sa.Table) -> None:
    """MariaDB would take it for 0. SQLite may have keys of several types in one column."""
    begun(engine)
    execute(engine, edit(RANGE, cursor='["a"]'))
    with pytest.raises(StateError, match="backfill cancel count_up"):
        run(engine, CountUp)


OWNERS = [
    "nobody",
    "",
    ":",
    "a:b:c:d",
    "h:-1:x:y",
    "h:99999999999999999999:1:",
    "ä:٣:٣:m",
    "\u202e",
]


@pytest.mark.parametrize("owner", OWNERS)
def test_owners_of_any_kind(engine: sa.Engine, things: sa.Table, owner: str) -> None:
    """A lease of theirs is waited for as long as it lasts, and no longer."""
    begun(engine)
    past = sa.text("'2000-01-01 00:00:00'")
    execute(engine, edit(RANGE, owner=owner, token="x", lease_expires=past))
    assert status(engine, CountUp)["ranges"][0]["owner"] is not None
    complete(engine, CountUp)
    assert read(engine, things, "n") == [1] * ROWS


def test_token_or_cursor_edited_under_a_runner(
    engine: sa.Engine, things: sa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next commit does not happen; it claims again, and each row is done once."""
    original = Store.checkpoint
    calls: list[int] = []

    def meddled(self: Store, connection: sa.Connection, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            # In the chunk's own transaction, as if it had been done just before.
            connection.execute(edit(RANGE, cursor="[1]"))
        return original(self, connection, *args, **kwargs)

    monkeypatch.setattr(Store, "checkpoint", meddled)
    run(engine, CountUp)
    assert len(calls) > 3
    monkeypatch.undo()
    complete(engine, CountUp)
    assert read(engine, things, "n") == [1] * ROWS


# -- missing, half created, newer ------------------------------------------------------------


@pytest.mark.parametrize("missing", sorted(tables.NAMES))
def test_half_created_tables_are_completed(
    engine: sa.Engine, things: sa.Table, missing: str
) -> None:
    """As after a kill between two CREATE TABLE on MariaDB: the version comes last."""
    Store(dialect_for(engine)).ensure()
    with engine.begin() as connection:
        connection.execute(sa.delete(tables.schema))
        if missing not in ("backfill_run",):  # others refer to it
            connection.exec_driver_sql(f"DROP TABLE {missing}")
    complete(engine, CountUp)
    assert read(engine, things, "n") == [1] * ROWS
    with engine.connect() as connection:
        found = connection.execute(sa.select(tables.schema.c.version)).scalars().all()
    assert found == [tables.SCHEMA_VERSION]


@pytest.mark.parametrize("missing", sorted(tables.NAMES - {"backfill_run", "backfill_schema"}))
def test_table_that_was_dropped_is_told(engine: sa.Engine, things: sa.Table, missing: str) -> None:
    begun(engine)
    before = read(engine, things, "n")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {missing}")
    with pytest.raises(StateError, match=missing):
        run(engine, CountUp)
    assert read(engine, things, "n") == before


def test_newer_tables_are_left_alone(engine: sa.Engine, things: sa.Table) -> None:
    begun(engine)
    execute(engine, sa.insert(tables.schema).values(version=tables.SCHEMA_VERSION + 1))
    before = read(engine, things, "n")
    for act in (
        lambda: run(engine, CountUp),
        lambda: status(engine, CountUp),
        lambda: failures(engine, CountUp),
        lambda: overview.listing([declared(CountUp)], Store(dialect_for(engine))),
    ):
        with pytest.raises(StateError, match=r"are of version 2; this backfill knows 1\."):
            act()
    assert read(engine, things, "n") == before


@pytest.mark.requires("server")
def test_user_who_may_not_read_them_is_told(
    engine: sa.Engine, things: sa.Table, database: Database
) -> None:
    begun(engine)
    poor = user_without_rights(database)
    with pytest.raises(StateError, match=r"may not read the tables backfill_\*"):
        Store(dialect_for(poor)).exists()
    poor.dispose()


def user_without_rights(database: Database) -> sa.Engine:
    """An engine of a user who may connect, and read the one table."""
    url = sa.make_url(database.url)
    name = f"nosy_{url.database}"
    if database.name == "postgresql":
        statements = [f"CREATE ROLE {name} LOGIN PASSWORD 'p'", f"GRANT SELECT ON things TO {name}"]
    else:
        user = f"{name}@'%'"
        statements = [f"CREATE USER {user} IDENTIFIED BY 'p'", f"GRANT SELECT ON things TO {user}"]
    admin = sa.create_engine(database.admin_url, poolclass=sa.NullPool)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement.replace("%", "%%"))
    return sa.create_engine(url.set(username=name, password="p"), poolclass=sa.NullPool)


# -- in a schema of their own ----------------------------------------------------------------


@pytest.fixture
def elsewhere(database: Database) -> Iterator[str]:
    """A schema (MariaDB: a database) of a name that needs quotes, which the user may use."""
    url = sa.make_url(database.url)
    name = f"{url.database}_State of: it"
    admin = sa.create_engine(database.admin_url, poolclass=sa.NullPool)
    quoted = admin.dialect.identifier_preparer.quote(name)
    if database.name == "postgresql":
        before, after = [f"CREATE SCHEMA {quoted} AUTHORIZATION app"], []
    else:
        before, after = [f"CREATE DATABASE {quoted}"], [f"DROP DATABASE {quoted}"]
        before.append(f"GRANT ALL ON {quoted}.* TO app@'%'")
    alone = {"isolation_level": "AUTOCOMMIT", "no_parameters": True}
    with admin.connect().execution_options(**alone) as connection:
        for statement in before:
            connection.exec_driver_sql(statement)
        yield name
        for statement in after:
            connection.exec_driver_sql(statement)


def ours(engine: sa.Engine, schema: str | None) -> set[str]:
    found = sa.inspect(engine).get_table_names(schema)
    return {name for name in found if name.startswith("backfill_")}


@pytest.mark.requires("server")
def test_run_is_recorded_in_the_schema(engine: sa.Engine, things: sa.Table, elsewhere: str) -> None:
    placed = store.keep_in(engine, elsewhere)
    begun(placed)
    assert (ours(engine, None), ours(engine, elsewhere)) == (set(), set(tables.NAMES))
    complete(placed, CountUp)
    assert read(engine, things, "n") == [1] * ROWS
    assert status(placed, CountUp)["status"] == "succeeded"
    assert ours(engine, None) == set()


@pytest.mark.requires("server")
def test_bad_rows_and_their_retry(engine: sa.Engine, things: sa.Table, elsewhere: str) -> None:
    class Picky(Backfill):
        table = "things"
        writes = ("n",)

        def transform(self, row: Any) -> dict[str, int]:
            if row.id == 3 and not mended:
                raise ValueError
            return {"n": 1}

    mended: list[int] = []
    placed = store.keep_in(engine, elsewhere)
    assert run(placed, Picky).outcome is Outcome.QUARANTINED
    assert [one["key"] for one in failures(placed, Picky)] == [[3]]
    mended.append(1)
    target = bound(placed, Picky)
    kept = Store(target.dialect)
    found = kept.current("picky")
    assert found is not None
    assert quarantine.retry(target, kept, found, Settings()) == (1, 0)
    complete(placed, Picky)
    assert ours(engine, None) == set()


@pytest.mark.requires("server")
def test_missing_schema_is_told(engine: sa.Engine, things: sa.Table) -> None:
    placed = store.keep_in(engine, "no_such_schema")
    with pytest.raises(StateError, match=r"no (such )?schema.*`state_schema`"):
        run(placed, CountUp)
    assert read(engine, things, "n") == [0] * ROWS


def test_database_without_schemas_is_told(engine: sa.Engine, database: Database) -> None:
    if "server" in database.capabilities:
        return  # those have them
    with pytest.raises(ConfigurationError, match="`state_schema`"):
        store.keep_in(engine, "ops")


@pytest.mark.requires("server")
def test_is_complete_looks_there(
    engine: sa.Engine, things: sa.Table, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(store.keep_in(engine, elsewhere), CountUp)
    with engine.connect() as connection:
        assert not backfill.is_complete(connection, "count_up")
        assert backfill.is_complete(connection, "count_up", state_schema=elsewhere)
    monkeypatch.setenv("BACKFILL_STATE_SCHEMA", elsewhere)
    with engine.connect() as connection:
        assert backfill.is_complete(connection, "count_up")


REVISION = '''
from backfill import Backfill


def upgrade():
    items = op.create_table(
        "items",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("n", sa.Integer, nullable=False),
    )
    op.bulk_insert(items, [{"id": i, "n": 0} for i in range(1, 31)])


def downgrade():
    op.drop_table("items")


class CountUp(Backfill):
    """Add one."""

    table = "items"
    values = {"n": "n + 1"}
'''
GATE = """
import backfill


def upgrade():
    op.require_backfill("count_up")


def downgrade():
    pass
"""
INLINE = GATE.replace('"count_up")', '"count_up", inline=True)')


@pytest.fixture
def placed(project: AlembicProject, elsewhere: str) -> AlembicProject:
    project.ini.write_text(f"{project.ini.read_text()}\n[backfill]\nstate_schema = {elsewhere}\n")
    project.revision("a1", body=REVISION)
    return project


@pytest.mark.requires("server")
def test_every_command_looks_there(
    placed: AlembicProject, engine: sa.Engine, elsewhere: str
) -> None:
    placed.revision("b2", down="a1", body=GATE)
    placed.alembic("upgrade", "a1")
    assert placed.backfill("run", "--limit=10", "--chunk-size=10").returncode == 3
    assert placed.backfill("doctor", "--ignore=not-watched").returncode == 0
    refused = placed.alembic("upgrade", "head", check=False)
    assert "is not complete: its run is pending" in refused.stderr + refused.stdout
    (row,) = json.loads(placed.backfill("status", "--json").stdout)
    assert (row["status"], row["rows_changed"]) == ("pending", 10)
    assert placed.backfill("pause", "count_up").returncode == 0
    assert placed.backfill("resume", "count_up").returncode == 0
    assert placed.backfill("run", "--processes=2").returncode == 0
    placed.alembic("upgrade", "head")
    placed.alembic("downgrade", "base")
    (row,) = json.loads(placed.backfill("list", "--json").stdout)
    assert row["status"] == "stale"
    assert ours(engine, None) == set()
    assert ours(engine, elsewhere) == set(tables.NAMES)


@pytest.mark.requires("server")
def test_gate_records_there_what_it_did_inline(
    placed: AlembicProject, engine: sa.Engine, elsewhere: str
) -> None:
    placed.revision("b2", down="a1", body=INLINE)
    placed.alembic("upgrade", "head")
    assert ours(engine, None) == set()
    assert placed.backfill("check").returncode == 0
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM items WHERE n = 1").scalar() == 30


@pytest.mark.requires("server")
def test_autogenerate_does_not_see_them(
    placed: AlembicProject, engine: sa.Engine, elsewhere: str
) -> None:
    """Not even where env.py compares all schemas."""
    placed.alembic("upgrade", "head")
    assert placed.backfill("run").returncode == 0
    env = placed.directory / "migrations/env.py"
    models = (
        "import backfill\nfrom sqlalchemy import Column, Integer, MetaData, Table\n"
        "target_metadata = MetaData()\n"
        'Table("items", target_metadata, Column("id", Integer, primary_key=True),'
        ' Column("n", Integer, nullable=False))\n'
        f"only = {{None, {elsewhere!r}}}\n"
    )
    text = env.read_text().replace("target_metadata = None\n", models)
    given = "connection=connection, target_metadata=target_metadata"
    assert text.count(given) == 1
    chosen = 'include_name=lambda name, kind, parents: kind != "schema" or name in only'
    env.write_text(text.replace(given, f"{given}, include_schemas=True, {chosen}"))
    assert "No new upgrade operations" in placed.alembic("check").stdout


@pytest.mark.requires("server")
def test_offline_script_looks_there(placed: AlembicProject, engine: sa.Engine) -> None:
    placed.revision("b2", down="a1", body=GATE)
    script = placed.alembic("upgrade", "a1:head", "--sql").stdout
    assert '_State of: it".backfill_run' in script or "_State of: it`.backfill_run" in script
    assert " backfill_run" not in script


def test_a_class_cannot_say_where(engine: sa.Engine) -> None:
    with pytest.raises(BackfillError, match="one for the whole project"):
        type("Elsewhere", (CountUp,), {"state_schema": "ops"})
