"""The pytest plugin, used as a project's own tests use it."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import islice
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

import backfill.testing  # noqa: F401 (pytester forgets what it was first to import)
from tests.integration.test_drivers import make_async_project
from tests.projects import REPOSITORY, AlembicProject

if TYPE_CHECKING:
    from pathlib import Path

    from tests.databases import Database

pytestmark = pytest.mark.by_turns

pytest_plugins = ["pytester"]

STRICT = (
    "-W",
    "error",
    *(f"-pno:{name}" for name in ("cacheprovider", "xdist", "hypothesispytest")),
)

CREATE_USERS = """
def upgrade():
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("first", sa.String(20)),
        sa.Column("last", sa.String(20)),
    )
    op.create_table(
        "moved",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("first", sa.String(20)),
    )
"""
ADD_COLUMNS = '''
import itertools

from backfill import Backfill


def upgrade():
    op.add_column("users", sa.Column("full_name", sa.String(50)))
    op.add_column("users", sa.Column("n", sa.Integer))


class FillFullName(Backfill):
    """Give every user a full name."""

    table = "users"
    where = "full_name IS NULL"
    reads = ["first", "last"]
    writes = ["full_name"]

    def transform(self, row):
        return {"full_name": f"{row.first} {row.last}"}

    def throttle(self, connection):
        return "it is always busy"


class CountUp(Backfill):
    """Add one, exactly once."""

    table = "users"
    values = {"n": "COALESCE(n, 0) + 1"}


class MoveUsers(Backfill):
    """Copy users into another table, and delete them."""

    table = "users"
    where = "last = 'b'"

    def apply(self, connection, chunk):
        moved = sa.table("moved", sa.column("first"))
        connection.execute(moved.insert().from_select(["first"], chunk.select(chunk.table.c.first)))
        return connection.execute(chunk.delete()).rowcount


class NumberInChunk(Backfill):
    """Wrong: what a row gets depends on its neighbours."""

    table = "users"
    where = "n IS NULL"
    writes = ["n"]

    def transform_chunk(self, rows):
        return [{"n": number} for number, row in enumerate(rows)]


class NumberInProcess(Backfill):
    """Wrong: what it has counted dies with the process."""

    table = "users"
    where = "n IS NULL"
    writes = ["n"]

    def transform(self, row):
        self.numbers = getattr(self, "numbers", None) or itertools.count(1)
        return {"n": next(self.numbers)}


class LeaveBob(Backfill):
    """Wrong: a row stays as it is."""

    table = "users"
    where = "n IS NULL"
    reads = ["first"]
    writes = ["n"]

    def transform(self, row):
        return None if row.first == "Bob" else {"n": 1}


class StumbleOverBob(Backfill):
    """Wrong: a row is an error."""

    table = "users"
    where = "n IS NULL"
    reads = ["first"]
    writes = ["n"]

    def transform(self, row):
        return {"n": {"Ada": 1}[row.first]}


class RollDice(Backfill):
    """Each time another number."""

    table = "users"
    where = "n IS NULL"
    values = {"n": "RANDOM()"}
'''
GATE = """
import backfill


def upgrade():
    op.require_backfill("fill_full_name")
    with op.batch_alter_table("users") as users:
        users.alter_column("full_name", existing_type=sa.String(50), nullable=False)
"""


def checked(name: str, arguments: str = "") -> str:
    """A test of one backfill on three rows."""
    return f"""
def test_{name}(backfill_test):
    case = backfill_test("{name}")
    case.insert("users", id=3, first="Ada", last="Lovelace")
    case.insert("users", {{"id": 5, "first": "Grace"}}, {{"id": 8, "first": "Bob"}})
    case.check({arguments})
"""


@dataclass
class Suite:
    """A project with tests, and pytest to run them."""

    project: AlembicProject
    pytester: pytest.Pytester

    def run(self, code: str) -> pytest.RunResult:
        """Run a test file in this process; a warning is an error."""
        self.project.write("test_backfills.py", code)
        self.pytester.chdir()
        where = str(self.project.directory)
        return self.pytester.runpytest_inprocess(*STRICT, f"--rootdir={where}", where)

    def assert_passes(self, code: str) -> None:
        outcomes = self.run(code).parseoutcomes()
        assert set(outcomes) == {"passed"}, outcomes

    def message_of(self, code: str, *, tests: int = 1) -> str:
        """What tests that fail, and have to, say."""
        done = self.run(code)
        done.assert_outcomes(failed=tests)
        lines = [line for line in done.outlines if line.startswith("E  ")]
        return "\n".join(line[1:].strip() for line in lines)


def write_revisions(project: AlembicProject) -> None:
    project.revision("a1", body=CREATE_USERS)
    project.revision("b2", down="a1", body=ADD_COLUMNS)
    project.revision("c3", down="b2", body=GATE)


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """The application's own database, in which no test may be seen."""
    return tmp_path / "application.sqlite3"


@pytest.fixture
def tests(tmp_path: Path, application: Path, pytester: pytest.Pytester) -> Suite:
    project = AlembicProject.create(tmp_path / "project", f"sqlite:///{application}")
    write_revisions(project)
    return Suite(project, pytester)


def test_good_ones_pass(tests: Suite, database: Database, application: Path) -> None:
    """On an SQLite file, or on a server whose user may create databases."""
    if "server" in database.capabilities:
        how = dict(sa.make_url(database.url).query)  # such as: without TLS, which takes 20 ms
        url = sa.make_url(database.admin_url).update_query_dict(how)
        tests.project.write(
            "conftest.py",
            f"""
            import pytest

            @pytest.fixture
            def backfill_url():
                return {url.render_as_string(hide_password=False)!r}
            """,
        )
    tests.assert_passes(GOOD)
    assert not application.exists()
    assert not left_on(database)


GOOD = """
    USERS = [{"id": i * i, "first": f"f{i}", "last": "b"} for i in range(1, 5)]

    def test_fill_full_name(backfill_test):
        case = backfill_test("fill_full_name")
        case.insert("users", id=100, first="Ada", last="Lovelace")
        case.insert("users", id=200, first="Grace", last="Hopper", full_name="Amazing Grace")
        case.insert("users", *USERS)
        case.check()
        assert [row.full_name for row in case.rows("users")][-2:] == [
            "Ada Lovelace",
            "Amazing Grace",
        ]
        case.upgrade("head")
        assert case.execute("SELECT version_num FROM alembic_version") == [("c3",)]

    def test_count_up(backfill_test):
        case = backfill_test("count_up")
        case.insert("users", *USERS)
        case.check(kills=6)
        assert {row.n for row in case.rows("users")} == {1}

    def test_move_users(backfill_test):
        case = backfill_test("move_users")
        case.insert("users", *USERS)
        case.insert("users", id=100, first="Ada", last="Lovelace")
        case.check(ignore=["moved.id"])
        assert [row.first for row in case.rows("users")] == ["Ada"]
        assert sorted(row.first for row in case.rows("moved")) == [f"f{i}" for i in range(1, 5)]
"""


def left_on(database: Database) -> list[str]:
    """What the plugin has left on a server."""
    if "server" not in database.capabilities:
        return []
    engine = sa.create_engine(database.admin_url, poolclass=sa.NullPool)
    names = "SELECT datname FROM pg_database" if "schemas" in database.capabilities else ""
    with engine.connect() as connection:
        found = connection.exec_driver_sql(names or "SHOW DATABASES").scalars()
        return [name for name in found if name.startswith("backfill_test")]


WRONG = {
    "number_in_chunk": (
        "number_in_chunk depends on the size of its chunks (run in chunks of 1 row):",
        "users, id=5: n is 0 and was 1",
    ),
    "number_in_process": ("number_in_process does not survive kills", "check(seed=7))"),
    "leave_bob": ("leave_bob: ", "(id=8, first='Bob', last=None, full_name=None, n=None)"),
    "stumble_over_bob": (
        "stumble_over_bob: finished, but 2 rows are quarantined",
        "KeyError",
        "(id=5, first='Grace', last=None, full_name=None, n=None)",
    ),
    "roll_dice": ("users, id=3: n is ", 'check(ignore=["table.column"])'),
}


def test_wrong_ones_fail_and_say_why(tests: Suite) -> None:
    code = "".join(checked(name, "seed=7") for name in WRONG)
    message = tests.message_of(code, tests=len(WRONG))
    for part in (part for parts in WRONG.values() for part in parts):
        assert part in message


def test_a_column_may_be_left_out(tests: Suite) -> None:
    tests.assert_passes(checked("roll_dice", 'ignore=["users.n"]'))


def test_a_seed_repeats_the_kills(tests: Suite) -> None:
    code = checked("number_in_process", "seed=1")
    message = tests.message_of(code + code.replace("def test", "def test_again"), tests=2)
    one, other = message.split("killed and resumed")[1:]
    assert one.splitlines()[:3] == other.splitlines()[:3]


POINTLESS = """
    def test_nothing_is_pending(backfill_test):
        case = backfill_test("fill_full_name")
        case.insert("users", id=1, full_name="Ada Lovelace")
        case.check()

    def test_second_check_without_where(backfill_test):
        case = backfill_test("count_up")
        case.insert("users", id=1)
        case.check()
        case.check()

    def test_unknown_backfill(backfill_test):
        backfill_test("fill_name")

    def test_unknown_table(backfill_test):
        backfill_test("fill_full_name").insert("user", id=1)

    def test_unknown_column(backfill_test):
        backfill_test("fill_full_name").check(ignore=["users.m"])
"""


def test_what_cannot_be_checked(tests: Suite) -> None:
    message = tests.message_of(POINTLESS, tests=5)
    assert "has nothing to do here: insert rows that match its `where`" in message
    assert "without a `where` it is done once" in message
    assert "No backfill is called 'fill_name'" in message
    assert "There is no table 'user' at this revision. There are: moved, users." in message
    assert "There is no column 'users.m' at this revision." in message


TRIGGERS = """
    AUDIT = "INSERT INTO moved (first) VALUES (new.id)"
    TOUCH = "UPDATE users SET last = hex(randomblob(8)) WHERE id = new.id"

    def prepared(case, statement):
        case.insert("users", {"id": 1, "last": "a"}, {"id": 2, "last": "b"})
        case.execute(f"CREATE TRIGGER t AFTER UPDATE ON users BEGIN {statement}; END")
        return case
"""


def test_triggers_of_the_tables(tests: Suite) -> None:
    """An audit's rows are taken away again; a column that is never twice the same is left out."""
    tests.assert_passes(
        TRIGGERS
        + """
    def test_audit(backfill_test):
        case = prepared(backfill_test("count_up"), AUDIT)
        case.check()
        assert [row.first for row in case.rows("moved")] == ["1", "2"]

    def test_touch(backfill_test):
        prepared(backfill_test("count_up"), TOUCH).check(ignore=["users.last"])
"""
    )
    message = tests.message_of(
        TRIGGERS
        + """
    def test_touch(backfill_test):
        prepared(backfill_test("count_up"), TOUCH).check()
"""
    )
    assert "The rows are not what they were: does a trigger change them?" in message


def test_rows_of_the_migrations_are_cleared(tests: Suite) -> None:
    filled = CREATE_USERS + "    op.execute(\"INSERT INTO users (id, last) VALUES (1, 'x')\")\n"
    tests.project.revision("a1", body=filled)
    tests.assert_passes("""
        def test_it(backfill_test):
            case = backfill_test("count_up")
            assert [row.id for row in case.rows("users")] == [1]
            case.clear("users")
            case.insert("users", id=2)
            case.check()
            assert [(row.id, row.n) for row in case.rows("users")] == [(2, 1)]
    """)


def test_triggers_of_sync_stay_out_of_the_comparison(tests: Suite) -> None:
    tests.project.revision("b2", down="a1", body=ADD_COLUMNS + SYNC)
    tests.assert_passes("""
        def test_it(backfill_test):
            case = backfill_test("keep_up")
            case.insert("users", {"id": 1, "first": "a"}, {"id": 2, "first": "b"})
            case.check()
            case.insert("users", id=3, first="c")
            assert [row.full_name for row in case.rows("users")] == ["a!", "b!", "c!"]
    """)


SYNC = '''

class KeepUp(Backfill):
    """Fill what is written meanwhile, too."""

    table = "users"
    where = "full_name IS NULL"
    values = {"full_name": "first || '!'"}
    sync = True
'''


def test_env_that_takes_its_url_from_elsewhere(tests: Suite, application: Path) -> None:
    """Its options hold, here the name of the version table; its database is left alone."""
    env = tests.project.directory / "migrations" / "env.py"
    url = f'config.set_main_option("sqlalchemy.url", "sqlite:///{application}")'
    text = env.read_text().replace("target_metadata = None", f"target_metadata = None\n{url}")
    table = 'version_table="steps", target_metadata='
    env.write_text(text.replace("target_metadata=", table))
    tests.assert_passes(checked("count_up") + '    case.execute("SELECT version_num FROM steps")')
    assert sa.inspect(sa.create_engine(f"sqlite:///{application}")).get_table_names() == []


def test_asynchronous_env(tmp_path: Path, pytester: pytest.Pytester) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/application.sqlite3"
    with make_async_project(url, tmp_path / "project") as project:
        write_revisions(project)
        Suite(project, pytester).assert_passes(checked("count_up"))


APP = """
    from flask import Flask
    from flask_migrate import Migrate
    from flask_sqlalchemy import SQLAlchemy

    db = SQLAlchemy()

    def create_app(url="sqlite:///application.sqlite3"):
        app = Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = url
        db.init_app(app)
        Migrate(app, db)
        return app
"""
IN_AND_OUT = """
    from app import create_app

    def check(case):
        case.insert("users", {"id": 1}, {"id": 2})
        case.check()

    def test_in_its_context(backfill_test):
        with create_app("sqlite://").app_context():
            check(backfill_test("count_up"))

    def test_out_of_it(backfill_test):
        check(backfill_test("count_up"))
"""


def test_flask_migrate(pytester: pytest.Pytester) -> None:
    """Its env.py has the application's database, which is not the test's."""
    pytester.makepyfile(app=APP, test_backfills=IN_AND_OUT)
    pytester.run(sys.executable, "-m", "flask", "db", "init")
    write_revisions(AlembicProject(pytester.path))
    pytester.runpytest_inprocess(*STRICT).assert_outcomes(passed=2)
    engine = sa.create_engine(f"sqlite:///{pytester.path}/instance/application.sqlite3")
    assert sa.inspect(engine).get_table_names() == []


def test_it_is_quiet_and_leaves_logging_alone(tests: Suite) -> None:
    tests.assert_passes("""
        import logging
        import sys

        logger = logging.getLogger("app")

        def test_it(backfill_test, caplog, capfd):
            case = backfill_test("count_up")
            case.insert("users", id=1)
            case.check()
            logger.warning("hello")
            assert caplog.messages == ["hello"]
            assert capfd.readouterr() == ("", "")
    """)


def test_tests_of_the_quickstart(tmp_path: Path, pytester: pytest.Pytester) -> None:
    """As they stand in examples/, on fewer flights, since each test loads them all."""
    source, copy = REPOSITORY / "examples" / "flights", tmp_path / "flights"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.xz", "__pycache__", "*.sqlite3"))
    with (
        lzma.open(source / "data" / "flights.csv.xz", "rt") as every,
        lzma.open(copy / "data" / "flights.csv.xz", "wt") as few,
    ):
        few.writelines(islice(every, 100))
    pytester.chdir()
    done = pytester.runpytest_inprocess(*STRICT, f"--rootdir={copy}", copy)
    done.assert_outcomes(passed=2)


# -- where nobody asked for it ----------------------------------------------------------------


def test_plugin_is_found_by_pytest() -> None:
    (found,) = [one for one in entry_points(group="pytest11") if one.name == "backfill"]
    assert found.value == "backfill.testing.plugin"


def test_plugin_is_light() -> None:
    """Every pytest in an environment with backfill loads it."""
    done = subprocess.run(
        [sys.executable, "-c", "import backfill.testing.plugin, sys; print(*sys.modules)"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"click", "tenacity", "tqdm"} & set(done.stdout.split())


def test_project_without_alembic(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    pytester.runpytest_inprocess(*STRICT).assert_outcomes(passed=1)
    pytester.makepyfile('def test_it(backfill_test): backfill_test("any")')
    done = pytester.runpytest_inprocess(*STRICT)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*ConfigurationError: *alembic.ini*"])
