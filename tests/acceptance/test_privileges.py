"""The users of docs/pages/howto/privileges.md: each can do what the page says, and not more."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.documents import PAGES, Page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

    from tests.databases import Database
    from tests.projects import AlembicProject

pytestmark = pytest.mark.requires("server")

FILES = {
    block.title: block.text
    for block in Page(PAGES / "howto" / "privileges.md").blocks()
    if block.title
}
TABLE = """
def upgrade():
    customers = op.create_table(
        "customers",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("first", sa.Text, nullable=False),
        sa.Column("secret", sa.Text),
    )
    op.bulk_insert(customers, [{"id": i, "first": f"F{i}"} for i in range(1, 1001)])
"""
COLUMN = '''
from backfill import Backfill


def upgrade():
    op.add_column("customers", sa.Column("full_name", sa.Text))
    op.add_column("customers", sa.Column("in_sync", sa.String(5)))


def downgrade():
    op.stop_backfill_sync("in_sync")
    op.drop_column("customers", "in_sync")
    op.drop_column("customers", "full_name")


class FillFullName(Backfill):
    """By the database."""

    table = "customers"
    where = "full_name IS NULL"
    values = {"full_name": "first"}


class Mend(Backfill):
    """By Python, of all rows: only the run's record tells that it is done."""

    table = "customers"
    reads = ["first"]
    writes = ["full_name"]

    def transform(self, row):
        if row.id == 7 and not __import__("os").path.exists("mended"):
            raise ValueError
        return {"full_name": row.first.lower()}


class InSync(Backfill):
    """With triggers, which are the owner's."""

    table = "customers"
    where = "in_sync IS NULL"
    values = {"in_sync": "CASE WHEN first <> 'F7' THEN first ELSE 'too long' END"}
    sync = True


class Overreach(Backfill):
    """Writes what its user may not write."""

    table = "customers"
    values = {"secret": "first"}
'''
GATE = """
import backfill


def upgrade():
    op.require_backfill("fill_full_name")
    op.require_backfill("mend")


def downgrade():
    pass
"""


class Users:
    """The project as each of the page's users would have it."""

    def __init__(self, project: AlembicProject, database: Database) -> None:
        self.project = project
        self.database = database
        self.url = sa.make_url(database.url)
        self.name = str(self.url.database)

    def own(self, text: str) -> str:
        """The page's SQL with names of this database."""
        text = re.sub(r"\bshop_(\w+)", rf"{self.name}_\1", text)
        return re.sub(r"\bshop\.", f"{self.name}.", text)

    def do(self, file: str) -> None:
        self.execute(*self.own(FILES[f"{self.database.name}_{file}.sql"]).split(";\n"))

    def execute(self, *statements: str) -> None:
        engine = sa.create_engine(self.database.admin_url, poolclass=sa.NullPool)
        alone = {"isolation_level": "AUTOCOMMIT", "no_parameters": True}
        with engine.connect().execution_options(**alone) as connection:
            for statement in statements:
                if statement.strip():
                    connection.exec_driver_sql(statement)

    def place(self, table: str) -> str:
        """The application's table, as an administrator names it."""
        return table if self.database.name == "postgresql" else f"{self.name}.{table}"

    def longer(self, column: str) -> str:
        """Of ALTER TABLE: let a column take more."""
        if self.database.name == "postgresql":
            return f"ALTER {column} TYPE text"
        return f"MODIFY {column} varchar(20)"

    def be(self, user: str) -> AlembicProject:
        passwords = {"migrate": "one of its own", "run": "another one", "watch": "a third one"}
        url = self.url.set(username=f"{self.name}_{user}", password=passwords[user])
        self.project.set_url(url.render_as_string(hide_password=False))
        return self.project

    def remove(self) -> None:
        users = [f"{self.name}_{user}" for user in ("migrate", "run", "watch")]
        if self.database.name == "postgresql":
            for user in users:
                self.execute(f"DROP OWNED BY {user}", f"DROP ROLE {user}")
        else:
            self.execute(f"DROP DATABASE {self.name}_backfill")
            self.execute(*(f"DROP USER {user}@'%'" for user in users))


@pytest.fixture
def users(project: AlembicProject, database: Database) -> Iterator[Users]:
    users = Users(project, database)
    project.ini.write_text(f"{project.ini.read_text()}\n{users.own(FILES['alembic.ini'])}")
    project.revision("a1", body=TABLE)
    project.revision("b2", down="a1", body=COLUMN)
    project.revision("c3", down="b2", body=GATE)
    users.do("users")
    users.be("migrate").alembic("upgrade", "b2")
    users.do("tables")
    yield users
    project.set_url(database.url)
    users.remove()


STEERING = (
    ["pause", "fill_full_name"],
    ["cancel", "fill_full_name"],
    ["set", "fill_full_name", "nice=1"],
)
WATCHING = ("status", "list", "check", "verify", "failures")


def test_each_user_can_do_what_is_theirs(users: Users) -> None:
    watch = users.be("watch")
    for command in WATCHING:
        assert_said(watch.backfill(command), (0, 1))  # also before there is any state

    run = users.be("run")
    doctor = run.backfill("doctor", "--ignore=not-watched")
    assert "missing-privilege" in doctor.stdout, "of the classes that write too much"
    assert doctor.stdout.count("missing-privilege") == 2
    assert_said(run.backfill("plan", "fill_full_name"), (0,))
    assert_said(run.backfill("run", "fill_full_name", "--limit=100", "--workers=2"), (3,))
    assert_said(run.backfill("pause", "fill_full_name"), (0,))
    assert_said(run.backfill("resume", "fill_full_name"), (0,))
    assert_said(run.backfill("set", "fill_full_name", "chunk_size=50"), (0,))
    assert_said(run.backfill("run", "fill_full_name"), (0,))
    assert_said(run.backfill("run", "mend"), (5,))
    (users.project.directory / "mended").touch()
    assert_said(run.backfill("failures", "mend", "--retry"), (0,))

    watch = users.be("watch")
    for command in WATCHING:
        names = [] if command == "list" else ["fill_full_name", "mend"]
        assert_said(watch.backfill(command, *names), (0,))

    migrate = users.be("migrate")
    migrate.alembic("upgrade", "head")
    migrate.alembic("downgrade", "a1")
    assert '"status": "stale"' in users.be("watch").backfill("status", "--json").stdout


def test_a_backfill_with_triggers_is_run_by_the_migrate_user(users: Users) -> None:
    """Also where it is the first of all, and the run user goes on with others."""
    migrate = users.be("migrate")
    assert_said(migrate.backfill("run", "in_sync"), (5,))
    assert_said(users.be("run").backfill("run", "fill_full_name"), (0,))
    users.execute(f"ALTER TABLE {users.place('customers')} {users.longer('in_sync')}")
    assert_said(users.be("migrate").backfill("failures", "--retry", "in_sync"), (0,))
    assert_said(users.be("watch").backfill("check", "in_sync", "fill_full_name"), (0,))


def test_a_right_on_the_state_tables_is_no_matter_of_a_row(users: Users) -> None:
    run = users.be("run")
    assert_said(run.backfill("run", "mend"), (5,))
    (users.project.directory / "mended").touch()
    user, host = f"{users.name}_run", "" if users.database.name == "postgresql" else "@'%'"
    table = f"{users.name}_backfill.backfill_failure"
    everything = table if not host else f"{users.name}_backfill.*"
    users.execute(f"REVOKE DELETE ON {everything} FROM {user}{host}")
    refused = run.backfill("failures", "--retry", "mend")
    assert_said(refused, (1,))
    assert "GRANT " in refused.stderr
    assert "backfill_failure" in refused.stderr
    assert "quarantine" not in refused.stderr
    (kept,) = json.loads(run.backfill("failures", "--json", "mend").stdout)
    assert (kept["attempts"], "ValueError" in kept["error"]) == (1, True)
    users.execute(f"GRANT DELETE ON {everything} TO {user}{host}")
    assert_said(run.backfill("failures", "--retry", "mend"), (0,))


def test_a_session_that_is_read_only_is_told(users: Users) -> None:
    run = users.be("run")
    assert_said(run.backfill("run", "fill_full_name", "--limit=100"), (3,))
    is_postgresql = users.database.name == "postgresql"
    role = f"ALTER ROLE {users.name}_run SET default_transaction_read_only = on"
    users.execute(role if is_postgresql else "SET GLOBAL read_only = 1")
    try:
        for command in STEERING:
            refused = run.backfill(*command)
            assert_said(refused, (1,))
            assert "This session is read-only" in refused.stderr
    finally:
        if not is_postgresql:
            users.execute("SET GLOBAL read_only = 0")


def test_nobody_can_do_more(users: Users) -> None:
    run = users.be("run")
    refused = run.backfill("run", "overreach")
    assert refused.returncode == 1
    assert "a privilege is missing" in refused.stderr
    assert_said(run.backfill("run", "fill_full_name", "--limit=100"), (3,))
    watch = users.be("watch")
    for command in (["run", "mend"], ["pause", "mend"], ["failures", "--retry", "mend"]):
        done = watch.backfill(*command)
        assert (done.returncode, "Traceback" in done.stderr) in ((0, False), (1, False))
    for command in STEERING:
        refused = watch.backfill(*command)
        assert_said(refused, (1,))
        assert "may not" in refused.stderr
        assert re.search("GRANT .* ON .*backfill_run", refused.stderr), refused.stderr
    engine = sa.create_engine(users.url, poolclass=sa.NullPool)
    place = f"{users.name}_backfill"
    assert "backfill_run" not in sa.inspect(engine).get_table_names()
    with sa.create_engine(users.database.admin_url, poolclass=sa.NullPool).connect() as connection:
        found = connection.exec_driver_sql(f"SELECT count(*) FROM {place}.backfill_run").scalar()
    assert found == 2, "the run that was refused, and the one that was not"


def assert_said(done: CompletedProcess[str], codes: tuple[int, ...]) -> None:
    assert done.returncode in codes, f"{done.args}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
