"""The fixtures keep their promises; every other test relies on them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.conftest import scrub_environment
from tests.databases import version
from tests.projects import REPOSITORY

if TYPE_CHECKING:
    from tests.databases import Database, Servers
    from tests.projects import AlembicProject

numbers = sa.Table("numbers", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))

START_A_SERVER_AND_HANG = """
import sys, time
from tests.databases import SERVERS
server = SERVERS[sys.argv[1]]()
print(server.directory, flush=True)
time.sleep(600)
"""


def test_engine_connects_to_the_named_database(database: Database, engine: sa.Engine) -> None:
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
        assert connection.dialect.name == database.name


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_an_empty_database(engine: sa.Engine, turn: int) -> None:
    assert sa.inspect(engine).get_table_names() == []
    numbers.create(engine)


def test_reported_version_is_the_one_that_runs(database: Database, engine: sa.Engine) -> None:
    with engine.connect() as connection:
        running = connection.dialect.server_version_info
    assert running is not None
    assert version(database.name) == ".".join(str(part) for part in running if part != "MariaDB")


@pytest.mark.requires("server")
def test_user_is_no_administrator(engine: sa.Engine) -> None:
    engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="denied"):
        connection.exec_driver_sql("CREATE DATABASE another")


@pytest.mark.requires("server")
def test_administrator_may_do_everything(database: Database) -> None:
    engine = sa.create_engine(
        database.admin_url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE another")
        connection.exec_driver_sql("DROP DATABASE another")


@pytest.mark.requires("server")
def test_open_transaction_does_not_keep_a_database_alive(
    servers: Servers, database: Database, tmp_path: Path
) -> None:
    with servers.database(database.name, tmp_path) as doomed:
        numbers.create(doomed.engine())
        connection = doomed.engine().connect()
        connection.execute(numbers.insert(), {"id": 1})
    connection.invalidate()
    connection.close()
    with pytest.raises(sa.exc.OperationalError):
        doomed.engine().connect()


@pytest.mark.requires("server")
def test_server_ends_when_pytest_is_killed(database: Database) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START_A_SERVER_AND_HANG, database.name],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        assert directory.is_absolute()
        process.kill()
    wait_until_gone(directory)


def wait_until_gone(directory: Path) -> None:
    deadline = time.monotonic() + 20
    while directory.exists():
        assert time.monotonic() < deadline, f"{directory} is still there"
        time.sleep(0.02)


@pytest.mark.requires("row_locks")
def test_row_locks(engine: sa.Engine) -> None:
    numbers.create(engine)
    with engine.begin() as connection:
        connection.execute(numbers.insert(), [{"id": 1}, {"id": 2}])
    with engine.begin() as first, engine.begin() as second:
        first.execute(numbers.delete().where(numbers.c.id == 1))
        second.execute(numbers.delete().where(numbers.c.id == 2))


@pytest.mark.requires("transactional_ddl")
def test_transactional_ddl(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        numbers.create(connection)
        connection.rollback()
    assert not sa.inspect(engine).has_table("numbers")


@pytest.mark.requires("schemas")
def test_schemas(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("other"))
    numbers.to_metadata(sa.MetaData(), schema="other").create(engine)
    assert sa.inspect(engine).has_table("numbers", schema="other")


@pytest.mark.requires("native_uuid")
def test_native_uuid(engine: sa.Engine) -> None:
    sa.Table("things", sa.MetaData(), sa.Column("id", sa.Uuid, primary_key=True)).create(engine)
    reflected = sa.Table("things", sa.MetaData(), autoload_with=engine)
    value = uuid.uuid4()
    with engine.begin() as connection:
        connection.execute(reflected.insert(), {"id": value})
        assert connection.scalar(sa.select(reflected.c.id)) == value


def test_alembic_runs_the_revisions_of_a_project(
    project: AlembicProject, engine: sa.Engine
) -> None:
    project.revision("a1")
    project.revision(
        "b2",
        down="a1",
        body="""
            def upgrade():
                op.create_table("people", sa.Column("id", sa.Integer, primary_key=True))
        """,
    )
    project.alembic("upgrade", "head")
    assert sa.inspect(engine).has_table("people")
    assert "b2 (head)" in project.alembic("current").stdout


def test_settings_of_the_developer_are_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_URL", "postgresql://production")
    scrub_environment()
    assert "BACKFILL_URL" not in os.environ
