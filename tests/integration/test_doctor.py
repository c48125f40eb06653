"""What the doctor finds in real databases, and that its advice is what mends it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from backfill import Backfill, sync
from backfill.configuration import Origin
from backfill.context import Call
from backfill.dialects import dialect_for
from backfill.doctor import Finding, examine
from tests.databases import sqlite_database
from tests.integration import support
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.databases import Database

CLASS = '''
import sqlalchemy as sa
from alembic import op

from backfill import Backfill

revision = "a1"
down_revision = None


def upgrade():
    op.add_column("things", sa.Column("n", sa.Integer))


class Count(Backfill):
    """Count."""

    table = "things"
    where = "n IS NULL"
    values = {"n": "id + 1"}
'''
UPDATE = """
from alembic import op

revision = "b2"
down_revision = "a1"


def upgrade():
    op.execute("UPDATE things SET n = 1")
"""
GATE = """
import backfill
from alembic import op

revision = "c3"
down_revision = "a1"


def upgrade():
    op.require_backfill("count")
"""
MANY = 12_000


@pytest.fixture
def small(tmp_path: Path) -> Iterator[AlembicProject]:
    """A project on SQLite, for what does not depend on the database."""
    database = sqlite_database(tmp_path)
    with AlembicProject.create(tmp_path / "project", database.url) as project:
        project.write("migrations/versions/a1.py", CLASS)
        yield project


def found_in(project: AlembicProject, *, everything: bool = False) -> list[Finding]:
    """The findings, without those on signals: a usual user sees few of them."""
    with ExitStack() as stack:
        found = examine(Call(Origin((str(project.ini),)), stack), everything=everything)
    return [one for one in found if one.code != "not-watched"]


def codes(project: AlembicProject, **options: Any) -> list[str]:
    return [one.code for one in found_in(project, **options)]


def engine_of(project: AlembicProject) -> sa.Engine:
    (line,) = [x for x in project.ini.read_text().splitlines() if x.startswith("sqlalchemy.url")]
    url = line.partition("=")[2].strip().replace("%%", "%")
    return sa.create_engine(url, poolclass=sa.NullPool)


def make(engine: sa.Engine, *, rows: int = 3, pending: int = 3, applied: str = "a1") -> None:
    """The table, some rows to do, and the stamp of a revision."""
    columns = sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer)
    given = [{"id": i, "n": None if i <= pending else i} for i in range(1, rows + 1)]
    support.make(engine, "things", *columns, rows=given)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{applied}')")


def execute(url: str, *statements: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    options = {"isolation_level": "AUTOCOMMIT", "no_parameters": True}
    with engine.connect().execution_options(**options) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


# -- on every database -----------------------------------------------------------------------


@pytest.fixture
def stamped(project: AlembicProject, engine: sa.Engine) -> AlembicProject:
    project.write("migrations/versions/a1.py", CLASS)
    make(engine)
    return project


def test_nothing_is_found_where_all_is_well(stamped: AlembicProject, engine: sa.Engine) -> None:
    before = sa.inspect(engine).get_table_names()
    assert found_in(stamped) == []
    assert sa.inspect(engine).get_table_names() == before


@pytest.mark.requires("server")
@pytest.mark.parametrize("has_state", [False, True], ids=["new", "used"])
def test_privileges_and_the_grants_that_give_them(
    stamped: AlembicProject, database: Database, *, has_state: bool
) -> None:
    if has_state:
        assert stamped.backfill("run", "--limit=1", "--chunk-size=1").returncode == 3
    url = sa.make_url(database.url)
    name = f"poor_{url.database}"
    if database.name == "postgresql":
        user, quoted = [f"CREATE ROLE {name} LOGIN PASSWORD 'p'"], name
    else:
        quoted = f"{name}@'%'"
        user = [f"CREATE USER {quoted} IDENTIFIED BY 'p'"]
    read = f"GRANT SELECT ON alembic_version TO {quoted}"
    execute(database.admin_url, *user, read)
    poor = url.set(username=name, password="p").render_as_string(hide_password=False)
    stamped.set_url(poor)
    asked = set()
    for _ in range(4):
        found = found_in(stamped)
        assert {one.code for one in found} <= {"missing-privilege"}, found
        if not found:
            break
        asked |= {one.advice.split(" ON ")[0] for one in found}
        grants = [grant for one in found for grant in one.advice.rstrip(";").split("; ")]
        execute(database.admin_url, *grants)
    assert len(asked) > 1
    assert stamped.backfill("run").returncode == 0, "what was granted is enough"
    assert found_in(stamped) == []
    stamped.set_url(database.url)


@pytest.mark.requires("server")
def test_signals_that_this_user_may_not_see(stamped: AlembicProject, database: Database) -> None:
    with ExitStack() as stack:
        found = examine(Call(Origin((str(stamped.ini),)), stack))
    codes = {(one.code, one.severity, one.line) for one in found}
    assert codes == {("not-watched", "warning", None)}, found
    assert all(one.advice.startswith("GRANT ") for one in found)
    assert sa.make_url(database.url).password not in found[0].where


@pytest.mark.requires("dead_rows")
def test_autovacuum_that_is_off(stamped: AlembicProject, database: Database) -> None:
    execute(database.url, "ALTER TABLE things SET (autovacuum_enabled = off)")
    (found,) = found_in(stamped)
    assert (found.code, found.severity) == ("autovacuum-off", "warning")
    assert found.advice == "ALTER TABLE things RESET (autovacuum_enabled);"
    execute(database.url, found.advice)
    assert found_in(stamped) == []


def test_few_rows_pending_among_many(
    project: AlembicProject, engine: sa.Engine, database: Database
) -> None:
    project.write("migrations/versions/a1.py", CLASS)
    make(engine, rows=MANY, pending=50)
    execute(database.url, "ANALYZE" if database.name != "mariadb" else "ANALYZE TABLE things")
    (found,) = found_in(project)
    assert (found.code, found.line) == ("pending-not-indexed", 15)
    if "partial_indexes" in database.capabilities:
        execute(database.url, found.advice.partition(": ")[2])
        assert found_in(project) == []
    else:
        assert "no partial indexes" in found.advice


def test_key_whose_order_no_index_has(project: AlembicProject, engine: sa.Engine) -> None:
    text = CLASS.replace('table = "things"', 'table = "things"\n    key = ["a", "b"]')
    project.write("migrations/versions/a1.py", text.replace("id + 1", "a + 1"))
    make(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE things")
        columns = "a INTEGER NOT NULL, b INTEGER NOT NULL, n INTEGER"
        connection.exec_driver_sql(f"CREATE TABLE things ({columns})")
        connection.exec_driver_sql("CREATE UNIQUE INDEX ab ON things (b, a)")
    assert codes(project) == ["key-not-indexed"]
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX ba ON things (a, b)")
    assert codes(project) == []


def test_triggers_whose_class_is_gone(
    stamped: AlembicProject, database: Database, engine: sa.Engine
) -> None:
    class Gone(Backfill):
        table = "things"
        where = "n IS NULL"
        values = {"n": "7"}  # noqa: RUF012
        sync = True

    dialect = dialect_for(engine)
    with (
        dialect.open(support.LIMITS) as connection,
        dialect.transaction(connection, support.LIMITS),
    ):
        sync.install(support.bound(engine, Gone), connection)
    found = found_in(stamped)
    assert {one.code for one in found} == {"orphaned-trigger"}
    assert "backfill_sync_gone" in found[0].message
    gone = CLASS.replace("class Count", "class Gone").replace("values", "sync = True\n    values")
    revision = stamped.directory / "migrations/versions/a1.py"
    before = revision.read_text(encoding="utf-8")
    stamped.write("migrations/versions/a1.py", gone)
    assert found_in(stamped) == []
    revision.write_text(before, encoding="utf-8")
    assert stamped.backfill("cancel", "gone").returncode == 0  # as it advises
    assert found_in(stamped) == []


# -- where it does not depend on the database ------------------------------------------------


def test_revisions_that_are_applied_are_history(small: AlembicProject) -> None:
    small.write("migrations/versions/b2.py", UPDATE)
    engine = engine_of(small)
    make(engine)
    (found,) = found_in(small)
    assert (found.code, found.line) == ("unbatched-write", 9)
    assert found.where.endswith("migrations/versions/b2.py")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'b2'")
    assert codes(small) == []
    assert codes(small, everything=True) == ["unbatched-write"]


def test_a_database_that_cannot_be_reached_hides_no_file(small: AlembicProject) -> None:
    small.write("migrations/versions/b2.py", UPDATE)
    small.set_url("sqlite:////nowhere/at/all.db")
    first, second = found_in(small)
    assert (first.code, first.severity, second.code) == ("database", "error", "unbatched-write")


def test_a_driver_that_is_missing(small: AlembicProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    small.set_url("postgresql+psycopg://me@127.0.0.1:1/nothing")
    (found,) = found_in(small)
    assert found.code == "driver-missing"
    assert "pip install 'backfill[postgresql]'" in found.advice


def test_a_class_that_is_wrong_and_a_file_that_cannot_be_imported(small: AlembicProject) -> None:
    make(engine_of(small))
    small.write("migrations/versions/b2.py", UPDATE)
    small.write("migrations/versions/a1.py", CLASS.replace("values", "valeus"))
    assert codes(small) == ["declaration", "unbatched-write"]
    small.write("migrations/versions/a1.py", CLASS.replace("import sqlalchemy", "import nothing"))
    first, second = found_in(small)
    assert (first.code, second.code) == ("project", "unbatched-write")
    assert "ModuleNotFoundError" in first.message


def test_several_heads_unless_their_branches_have_names(small: AlembicProject) -> None:
    make(engine_of(small))
    other = GATE.replace('"a1"', '"a1"\nbranch_labels = None')
    small.write("migrations/versions/b2.py", UPDATE.replace("UPDATE things SET n = 1", "SELECT 1"))
    small.write("migrations/versions/c3.py", other)
    (found,) = found_in(small)
    assert (found.code, "b2, c3" in found.message) == ("several-heads", True)
    for name in ("b2", "c3"):
        path = small.versions / f"{name}.py"
        label = f'"a1"\nbranch_labels = "branch_{name}"'
        text = path.read_text().replace("branch_labels = None\n", "").replace('"a1"', label)
        path.write_text(text)
    assert codes(small) == []


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        (GATE, None),
        (GATE.replace('"count"', '"counter"'), "gate-unknown"),
        (GATE.replace('"c3"', '"0"').replace('"a1"', "None"), "gate-too-early"),
    ],
)
def test_gates_that_can_never_be_passed(small: AlembicProject, gate: str, code: str | None) -> None:
    make(engine_of(small), applied="0" if code == "gate-too-early" else "a1")
    small.write("migrations/versions/gate.py", gate)
    if code == "gate-too-early":
        small.write("migrations/versions/a1.py", CLASS.replace("= None", '= "0"'))
        make_history_of_nothing(small)
    assert codes(small) == ([] if code is None else [code])


def make_history_of_nothing(project: AlembicProject) -> None:
    with engine_of(project).begin() as connection:
        connection.exec_driver_sql("DELETE FROM alembic_version")


def test_nothing_imports_us_but_a_file_of_the_folder(small: AlembicProject) -> None:
    make(engine_of(small))
    text = CLASS.replace('"""Count."""', '"""Count."""\n\n    revision = "a1"')
    small.write("migrations/backfills/count.py", text.replace("down_revision = None", ""))
    revision = CLASS.replace("from backfill import Backfill\n", "").partition("class Count")[0]
    small.write("migrations/versions/a1.py", revision)
    (found,) = found_in(small)
    assert (found.code, found.where[-6:]) == ("state-tables-visible", "env.py")
    env = small.directory / "migrations/env.py"
    env.write_text(f"import backfill  # noqa: F401\n{env.read_text()}")
    assert codes(small) == []


def test_runs_that_wait_for_a_person(small: AlembicProject) -> None:
    engine = engine_of(small)
    make(engine)
    assert small.backfill("run", "--limit=1", "--chunk-size=1").returncode == 3
    assert codes(small) == []
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE backfill_run SET updated_at = '2020-01-01 00:00:00'")
    (found,) = found_in(small)
    assert (found.code, found.line) == ("run-unfinished", 15)
    assert small.backfill("pause", "count").returncode == 0
    (found,) = found_in(small)
    assert (found.code, "backfill resume count" in found.advice) == ("run-paused", True)
    path = small.versions / "a1.py"
    path.write_text(path.read_text().replace("(Backfill):", "(Backfill):  # backfill: ok"))
    assert codes(small) == []


def test_rows_in_quarantine(small: AlembicProject) -> None:
    engine = engine_of(small)
    make(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE things")
        columns = "id INTEGER PRIMARY KEY, n INTEGER CHECK (n <> 3)"
        connection.exec_driver_sql(f"CREATE TABLE things ({columns})")
        connection.exec_driver_sql("INSERT INTO things (id) VALUES (1), (2), (3)")
    assert small.backfill("run").returncode == 5
    assert codes(small) == ["run-failed", "rows-quarantined"]


def test_state_tables_of_a_newer_version(small: AlembicProject) -> None:
    engine = engine_of(small)
    make(engine)
    assert small.backfill("run").returncode == 0
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE backfill_schema SET version = 99")
    assert "state-tables" in codes(small)
