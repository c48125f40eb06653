"""Projects of every shape that Alembic and Flask-Migrate make, found without configuration.

`python -m tests.matrix` runs these with other versions of Alembic and SQLAlchemy.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from backfill.dialects import dialect_for
from backfill.project import load
from tests.acceptance.shapes import (
    BODY,
    COUNT_UP,
    CREATE_COUNTERS,
    GATE,
    ROWS,
    alembic_init,
    assert_filled,
    assert_runs,
    edit,
    edit_env,
    flask_init,
    needs_pyproject,
    revision,
    succeeds,
)
from tests.databases import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.databases import Database, Servers


@pytest.fixture
def url(tmp_path: Path) -> str:
    """An SQLite database."""
    return f"sqlite:///{tmp_path / 'test.sqlite3'}"


@pytest.fixture
def postgresql(servers: Servers, tmp_path: Path) -> Iterator[Database]:
    try:
        with servers.database("postgresql", tmp_path) as database:
            yield database
    except Unavailable as error:
        pytest.skip(str(error))


# -- Alembic's templates -------------------------------------------------------------------


def test_generic(tmp_path: Path, url: str) -> None:
    project = alembic_init(tmp_path / "project", "generic", url)
    project.revision("a1", body=BODY)
    assert_runs(project, url)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async_on_postgresql(postgresql: Database, tmp_path: Path, driver: str) -> None:
    project = alembic_init(tmp_path / "project", "async", postgresql.through(driver).url)
    project.revision("a1", body=BODY)
    assert_runs(project, postgresql.through("psycopg").url)
    project.revision("b2", down="a1", body=GATE)
    project.alembic("upgrade", "head")


def test_called_inside_an_event_loop(postgresql: Database, tmp_path: Path) -> None:
    """As by a test of the user's that is itself asynchronous."""
    database = postgresql.through("asyncpg")
    project = alembic_init(tmp_path / "project", "async", database.url)

    def ask(engine: sa.Engine) -> object:
        with engine.connect() as connection:
            return connection.scalar(sa.text("SELECT 42"))

    async def call() -> object:
        engine = load(str(project.ini)).engine
        return dialect_for(engine).call(ask, engine)

    assert asyncio.run(call()) == 42


def test_async_on_sqlite(tmp_path: Path, url: str) -> None:
    driven = url.replace("sqlite:", "sqlite+aiosqlite:")
    project = alembic_init(tmp_path / "project", "async", driven)
    project.revision("a1", body=BODY)
    assert_runs(project, url)


@needs_pyproject
@pytest.mark.parametrize("template", ["pyproject", "pyproject_async"])
def test_pyproject(tmp_path: Path, url: str, template: str) -> None:
    driven = url if template == "pyproject" else url.replace("sqlite:", "sqlite+aiosqlite:")
    project = alembic_init(tmp_path / "project", template, driven)
    assert "script_location" not in project.ini.read_text()
    with (project.directory / "pyproject.toml").open("a") as file:
        file.write("\n[tool.backfill]\nchunk_size = 7\n")
    project.revision("a1", body=BODY)
    project.alembic("upgrade", "head")
    planned = succeeds(project.backfill("plan", "--json"))
    assert '"chunk_rows": 7' in planned.stdout
    assert_runs(project, url)


@needs_pyproject
def test_both_files_named(tmp_path: Path, url: str) -> None:
    """`-c` twice: one has the URL and the logging, the other where the revisions are."""
    project = alembic_init(tmp_path / "project", "pyproject", url)
    project.revision("a1", body=BODY)
    deploy = project.directory / "deploy"
    deploy.mkdir()
    project.ini.rename(deploy / "alembic.ini")
    assert_runs(project, url, "-c", "deploy/alembic.ini", "-c", "pyproject.toml")


def test_section(tmp_path: Path, url: str) -> None:
    project = alembic_init(tmp_path / "project", "generic", "sqlite:///not-this-one.sqlite3")
    with project.ini.open("a") as file:
        file.write(f"\n[other]\nscript_location = %(here)s/migrations\nsqlalchemy.url = {url}\n")
    project.revision("a1", body=BODY)
    assert_runs(project, url, "-n", "other")
    assert not (project.directory / "not-this-one.sqlite3").exists()
    wrong = project.backfill("-n", "another", "list")
    assert wrong.returncode == 1
    assert "alembic.ini has no script_location in its section [another]" in wrong.stderr


def test_several_version_locations(tmp_path: Path, url: str) -> None:
    """Each has a folder `backfills` beside it."""
    project = alembic_init(tmp_path / "project", "generic", url)
    places = os.pathsep.join(["%(here)s/core/versions", "%(here)s/shop/versions"])
    locations = f"version_locations = {places}\nrecursive_version_locations = true\n"
    edit(project.ini, ("[alembic]\n", f"[alembic]\n{locations}"))
    # Alembic 1.13 takes the comment that it writes behind this option for its value.
    project.ini.write_text(re.sub(r"(?m)(separator = os) +#.*$", r"\1", project.ini.read_text()))
    project.write("core/versions/a1.py", revision("a1", CREATE_COUNTERS))
    project.write("shop/versions/2026/b1.py", revision("b1", "", depends_on="a1"))
    declaration = f"from backfill import Backfill\n{COUNT_UP}    revision = 'b1'\n"
    path = project.write("shop/backfills/count_up.py", declaration)
    project.alembic("upgrade", "heads")
    succeeds(project.backfill("run"))
    assert_filled(url)
    succeeds(project.backfill("new", "fill", "--revision=b1", "--table=counters"))
    assert (path.parent / "fill.py").is_file()
    edit(path, ("'b1'", "'b2'"))
    lost = project.backfill("run", "count_up")
    assert lost.returncode == 1
    assert "CountUp names the revision 'b2', which is not in" in lost.stderr


# -- what people write into env.py ---------------------------------------------------------

CONNECTED = "    with connectable.connect() as connection:\n"
FINISHED = "            context.run_migrations()\n\n\nif "
TIMEOUT_AND_LOCK = f"""{CONNECTED}\
        connection.exec_driver_sql("SET statement_timeout = 2000")
        connection.exec_driver_sql("SELECT pg_advisory_lock(4711)")
"""
NEEDS_THE_LOCK = f"""{CREATE_COUNTERS}
class CountUp(Backfill):
    table = "counters"

    def apply(self, connection, chunk):
        assert connection.scalar(sa.text("SELECT pg_try_advisory_xact_lock(4711)"))
        n = chunk.table.c.n
        return connection.execute(chunk.update().values(n=n + 1)).rowcount
"""


def test_env_that_takes_a_lock(postgresql: Database, tmp_path: Path) -> None:
    """It is not held while we run, although a pool keeps the connection that took it."""
    project = alembic_init(tmp_path / "project", "generic", postgresql.url)
    edit_env(
        project,
        (CONNECTED, TIMEOUT_AND_LOCK),
        ("            poolclass=pool.NullPool,\n".replace("    ", "", 1), ""),
        (FINISHED, FINISHED.replace("\n\n", "\n        connection.commit()\n\n", 1)),
    )
    project.revision("a1", body=NEEDS_THE_LOCK)
    assert_runs(project, postgresql.url)


# Alembic's recipe "Rudimental Schema-Level Multi Tenancy for PostgreSQL Databases".
TENANT = f"""{CONNECTED}\
        tenant = context.get_x_argument(as_dictionary=True)["tenant"]
        connection.exec_driver_sql('SET search_path TO "%s"' % tenant)
        connection.commit()
        connection.dialect.default_schema_name = tenant
"""
SUMS = 'SELECT (SELECT sum(n) FROM one.counters), (SELECT sum(n) FROM "other one".counters)'


def test_tenant(postgresql: Database, tmp_path: Path) -> None:
    project = alembic_init(tmp_path / "project", "generic", postgresql.url)
    edit_env(project, (CONNECTED, TENANT))
    project.revision("a1", body=BODY)
    engine = postgresql.engine()
    for tenant in ("one", "other one"):
        with engine.begin() as connection:
            connection.exec_driver_sql(f'CREATE SCHEMA "{tenant}"')
        project.alembic("-x", f"tenant={tenant}", "upgrade", "head")
    succeeds(project.backfill("-x", "tenant=other one", "run", "--processes=2"))
    with engine.connect() as connection:
        assert tuple(connection.exec_driver_sql(SUMS).one()) == (0, ROWS)
    assert project.backfill("-x", "tenant=one", "check").returncode == 1
    failed = project.backfill("list")
    assert failed.returncode == 1
    assert "env.py could not be run: KeyError: 'tenant' (line" in failed.stderr


def test_schema_for_the_version_table(postgresql: Database, tmp_path: Path) -> None:
    project = alembic_init(tmp_path / "project", "generic", postgresql.url)
    names = 'version_table="history", version_table_schema="ops"'
    edit_env(
        project,
        (
            "connection=connection, target_metadata=",
            f"connection=connection, {names}, target_metadata=",
        ),
    )
    with postgresql.engine().begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA ops")
    project.revision("a1", body=BODY)
    assert_runs(project, postgresql.url)


NOISY = f"""{CREATE_COUNTERS}
import logging

logger = logging.getLogger("shop.counting")


class CountUp(Backfill):
    table = "counters"
    reads = ["n"]
    writes = ["n"]

    def transform(self, row):
        if row.id == 7:
            logger.warning("seven is heard")
            logging.getLogger("backfill").warning("and so are we")
            logging.getLogger("shop.models").warning("and who came with env.py")
        return {{"n": row.n + 1}}
"""


def test_logging_of_alembic_silences_nobody(tmp_path: Path, url: str) -> None:
    """What `alembic init` writes disables the loggers that are not named in it."""
    project = alembic_init(tmp_path / "project", "generic", url)
    models = "from alembic import context\nimport logging\nlogging.getLogger('shop.models')\n"
    edit_env(project, ("from alembic import context\n", models))
    project.revision("a1", body=NOISY)
    project.alembic("upgrade", "head")
    done = succeeds(project.backfill("run"))
    assert done.stderr.count("seven is heard") == 1
    assert done.stderr.count("and so are we") == 1
    assert done.stderr.count("and who came with env.py") == 1


# -- several databases ---------------------------------------------------------------------

COUNT_TWICE = """
class CountTwice(Backfill):
    table = "counters"
    values = {"n": "n + 2"}
"""


def test_multidb(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / name}.sqlite3" for name in ("first", "second")]
    project = alembic_init(tmp_path / "project", "multidb")
    for number, url in enumerate(urls):
        invented = "driver://user:pass@localhost/dbname" + ("2" if number else "")
        edit(project.ini, (f"{invented}\n", f"{url}\n"))
    path = project.revision("a1", body=BODY)
    project.alembic("upgrade", "head")
    refused = project.backfill("run")
    assert refused.returncode == 1
    assert "count_up does not say which database it fills" in refused.stderr
    assert 'Name one of them: database = "engine1"' in refused.stderr

    text = f"""{CREATE_COUNTERS}{COUNT_UP}
    database = "engine2"
{COUNT_TWICE}
    database = "engine1"
"""
    path.write_text(revision("a1", text))
    done = succeeds(project.backfill("run", "--processes=2"))
    assert done.stderr.count(f"complete, {ROWS} rows changed") == 2
    assert_filled(urls[0], 2)
    assert_filled(urls[1], 1)
    checked = json.loads(succeeds(project.backfill("check", "--json")).stdout)
    assert [one["name"] for one in checked] == ["count_twice", "count_up"]


# -- Flask-Migrate -------------------------------------------------------------------------

IN_APPLICATION = f"""{CREATE_COUNTERS}
from flask import current_app


class CountUp(Backfill):
    table = "counters"
    reads = ["n"]
    writes = ["n"]

    def transform(self, row):
        return {{"n": row.n + current_app.config["STEP"]}}
"""


def test_flask(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application factory, its migrations in a folder of another name."""
    monkeypatch.delenv("FLASK_APP", raising=False)
    config = {"SQLALCHEMY_DATABASE_URI": url, "STEP": 1}
    project = flask_init(tmp_path / "project", config, migrations="db/revisions")
    project.write("db/revisions/versions/a1.py", revision("a1", IN_APPLICATION))
    succeeds(project.flask("--app", "shop", "db", "upgrade"))
    lost = project.backfill("run")
    assert lost.returncode == 1
    assert "Could not locate a Flask application" in lost.stderr

    options = ["--limit=10", "--chunk-size=5", "--processes=2"]
    started = project.flask("--app", "shop", "backfill", "run", *options)
    assert started.returncode == 3, started.stderr
    monkeypatch.setenv("FLASK_APP", "shop")
    succeeds(project.backfill("run"))
    assert_filled(url)
    succeeds(project.backfill("-c", "db/revisions/alembic.ini", "check"))


def test_flask_with_binds(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What names no database belongs to the default bind."""
    monkeypatch.delenv("FLASK_APP", raising=False)
    stock = url.replace("test.sqlite3", "stock.sqlite3")
    config = {"SQLALCHEMY_DATABASE_URI": url, "SQLALCHEMY_BINDS": {"stock": stock}}
    project = flask_init(tmp_path / "project", config, "--multidb")
    text = f"""{CREATE_COUNTERS}{COUNT_UP}{COUNT_TWICE}
    database = "stock"
"""
    project.write("migrations/versions/a1.py", revision("a1", text))
    project.write("wsgi.py", "from shop import create_app\n\napp = create_app()\n")
    succeeds(project.flask("db", "upgrade"))
    succeeds(project.flask("backfill", "run"))
    assert_filled(url, 1)
    assert_filled(stock, 2)
