"""`backfill revision --autogenerate`: three steps where one revision would be unsafe."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any
from unittest import mock

import alembic.command
import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.util import CommandError

from tests.acceptance.shapes import alembic_init, edit, edit_env, succeeds
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.databases import Database

ROWS = 30

MODELS = """\
import sqlalchemy as sa

metadata = sa.MetaData()
users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    {}
)
"""
BEFORE = """\
    sa.Column("name", sa.String(50), nullable=False),
    sa.Column("nick", sa.String(50), comment="it's"),
    sa.Column("age", sa.Integer, nullable=False),
    sa.Column("code", sa.String(9)),
"""
AFTER = """\
    sa.Column("login", sa.String(50), nullable=False),
    sa.Column("nick", sa.String(50), nullable=False, comment="it's"),
    sa.Column("age", sa.BigInteger, nullable=False),
    sa.Column("code", sa.Integer),
    sa.Column("email", sa.String(80), nullable=False, default="none"),
    sa.Column("order", sa.String(20), nullable=False),
    sa.Column("level", sa.Integer, nullable=False, server_default="1"),
    sa.Column("data", sa.JSON, nullable=False),
"""
NICK_REQUIRED = BEFORE.replace("sa.String(50), comment", "sa.String(50), nullable=False, comment")
VALUES = {"nick": "'x'", "code_new": "CAST(code AS INTEGER)", "email": "'none'", "order": "name"}
VALUES |= {"data": "'[]'"}


def set_models(project: AlembicProject, columns: str) -> None:
    project.write("models.py", MODELS.format(columns.strip()))


def read_models(project: AlembicProject) -> None:
    """In env.py, as a project's own does."""
    env = "from models import metadata\n\ntarget_metadata = metadata\n"
    edit_env(project, ("target_metadata = None\n", env))


@pytest.fixture
def shop(database: Database, engine: sa.Engine, tmp_path: Path) -> AlembicProject:
    return filled(AlembicProject.create(tmp_path / "project", database.url), engine)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[AlembicProject]:
    url = f"sqlite:///{tmp_path / 'test.sqlite3'}"
    return filled(AlembicProject.create(tmp_path / "project", url), sa.create_engine(url))


def filled(project: AlembicProject, engine: sa.Engine) -> AlembicProject:
    """A table with rows, which some revision has made."""
    set_models(project, BEFORE)
    read_models(project)
    project.alembic("revision", "--autogenerate", "-m", "users", "--rev-id", "a1")
    project.alembic("upgrade", "head")
    users = sa.Table("users", sa.MetaData(), autoload_with=engine)
    rows = [
        {"id": i, "name": f"n{i}", "nick": None if i % 3 else f"k{i}", "age": i, "code": str(i)}
        for i in range(ROWS)
    ]
    with engine.begin() as connection:
        connection.execute(users.insert(), rows)
    engine.dispose()
    return project


def decide(project: AlembicProject, values: dict[str, str] = VALUES) -> None:
    """Write the values in place of the dots."""
    for path in classes(project):
        text = path.read_text()
        found = re.search(r'values = \{"(\w+)": \.\.\.\}', text)
        if found:
            path.write_text(text.replace("...}", f'"{values[found[1]]}"}}'))


def classes(project: AlembicProject) -> list[Path]:
    return sorted((project.directory / "migrations/backfills").glob("*.py"))


def revisions(project: AlembicProject) -> list[Path]:
    """Those after the first."""
    return [one for one in project.versions.glob("*.py") if not one.name.startswith("a1_")]


def the_revision(project: AlembicProject, words: str) -> str:
    (path,) = [one for one in revisions(project) if f"op.{words}(" in one.read_text()]
    return path.read_text()


def described(engine: sa.Engine) -> dict[str, Any]:
    return {one["name"]: one for one in sa.inspect(engine).get_columns("users")}


def required(engine: sa.Engine) -> set[str]:
    return {name for name, one in described(engine).items() if not one["nullable"]}


def rows_of(engine: sa.Engine, *columns: str) -> list[tuple[Any, ...]]:
    names = [sa.column(name) for name in columns]
    query = sa.select(*names).select_from(sa.table("users")).order_by(sa.column("id"))
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]


def test_there_and_back(shop: AlembicProject, engine: sa.Engine) -> None:
    before = rows_of(engine, "id", "name", "age", "code")
    set_models(shop, AFTER)
    rename = "--rename=users.name:login"
    done = succeeds(shop.backfill("revision", "--autogenerate", "-m", "contacts", rename))
    assert "write the values in place of the dots" in done.stdout
    assert len(revisions(shop)) == 2
    filled_columns = {one.stem.removeprefix("fill_users_") for one in classes(shop)}
    assert filled_columns == {*VALUES, "login", "age_new"}

    undecided = shop.backfill("upgrade")
    assert undecided.returncode == 1
    assert re.search(r"the value of '\w+' is not decided yet", undecided.stderr)
    decide(shop)
    succeeds(shop.backfill("upgrade"))
    assert required(engine) == {"id", "login", "nick", "age", "email", "order", "level", "data"}
    assert rows_of(engine, "id", "login", "age", "code") == [(*r[:3], int(r[3])) for r in before]
    assert rows_of(engine, "nick", "email", "level")[:2] == [("k0", "none", 1), ("x", "none", 1)]
    shop.alembic("check")  # finds nothing
    succeeds(shop.backfill("check"))  # also where the columns are gone

    shop.alembic("downgrade", "a1")
    assert required(engine) == {"id", "name", "age"}
    assert rows_of(engine, "id", "name", "age", "code") == before
    assert described(engine)["nick"].get("comment") in ("it's", None)
    succeeds(shop.backfill("upgrade"))
    shop.alembic("check")


def test_files_are_clean(sqlite: AlembicProject) -> None:
    set_models(sqlite, AFTER)
    succeeds(sqlite.backfill("revision", "--autogenerate", "-m", "contacts"))
    for folder, rules in (("backfills", "E,F,I,B,UP,PIE,SIM,W"), ("versions", "E4,E7,E9,F,B")):
        where = str(sqlite.directory / "migrations" / folder)
        words = [sys.executable, "-m", "ruff", "check", "--isolated", f"--select={rules}", where]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_rename_is_asked_for(sqlite: AlembicProject) -> None:
    set_models(sqlite, BEFORE.replace('"name"', '"login"'))
    done = succeeds(sqlite.backfill("revision", "--autogenerate", "-m", "login"))
    assert "say --rename users.name:login" in done.stderr
    wrong = sqlite.backfill("revision", "--autogenerate", "--rename=users.nam:login")
    assert wrong.returncode == 1
    assert "Target database is not up to date" in wrong.stderr


@pytest.mark.requires("server")
def test_script_of_expand_and_contract(shop: AlembicProject) -> None:
    """SQLite's copies of tables cannot be written without a database."""
    set_models(shop, AFTER)
    succeeds(shop.backfill("revision", "--autogenerate", "-m", "all", "--rename=users.name:login"))
    script = shop.alembic("upgrade", "a1:head", "--sql").stdout
    assert script.count("is not complete: backfill run") == len(classes(shop))
    assert script.index("is not complete") < script.index("DROP COLUMN name")


def test_own_file_is_not_overwritten(sqlite: AlembicProject) -> None:
    """Its class may have another name than the file."""
    path = "migrations/backfills/fill_users_nick.py"
    text = "# of somebody else's\n"
    file = sqlite.write(path, text)
    set_models(sqlite, NICK_REQUIRED)
    succeeds(sqlite.backfill("revision", "--autogenerate", "-m", "nick"))
    assert file.read_text() == text
    assert file.with_name("fill_users_nick_2.py").exists()


def test_rename_that_is_none(sqlite: AlembicProject) -> None:
    set_models(sqlite, BEFORE.replace('"name"', '"login"'))
    for text in ("users.nam:login", "people.name:login", "nonsense"):
        wrong = sqlite.backfill("revision", "--autogenerate", f"--rename={text}")
        assert wrong.returncode == 1
        assert f"--rename {text}" in wrong.stderr.replace("'", "")
    assert revisions(sqlite) == []


def test_what_is_safe_stays_as_alembic_has_it(sqlite: AlembicProject) -> None:
    more = 'sa.Column("level", sa.Integer, nullable=False, server_default="1"),'
    set_models(sqlite, f"{BEFORE.replace('String(9)', 'String(20)')}    {more}")
    options = ["--autogenerate", "-m", "safe", "--rev-id"]
    succeeds(sqlite.backfill("revision", *options, "ours"))
    (ours,) = revisions(sqlite)
    text = ours.read_text()
    ours.unlink()
    sqlite.alembic("revision", *options, "theirs")
    (theirs,) = revisions(sqlite)
    assert without_date(text) == without_date(theirs.read_text()).replace("theirs", "ours")
    assert classes(sqlite) == []


def without_date(text: str) -> str:
    return re.sub(r"Create Date: .*", "", text)


def test_only_a_contract_where_the_column_is_there(sqlite: AlembicProject) -> None:
    set_models(sqlite, NICK_REQUIRED)
    options = ["--rev-id=b2", "--branch-label=people", "-m", "nick"]
    succeeds(sqlite.backfill("revision", "--autogenerate", *options))
    (contract,) = revisions(sqlite)
    assert contract.name == "b2_nick.py"
    assert re.search(r"^branch_labels: .* = \('people',\)$", contract.read_text(), re.MULTILINE)
    assert 'revision = "a1"' in classes(sqlite)[0].read_text()


def test_several_heads(sqlite: AlembicProject) -> None:
    for name in ("b2", "c2"):
        sqlite.revision(name, down="a1")
    sqlite.alembic("upgrade", "heads")
    set_models(sqlite, NICK_REQUIRED)
    refused = sqlite.backfill("revision", "--autogenerate", "-m", "nick")
    assert refused.returncode == 1
    assert "There are several heads: b2, c2. Say by `--head`" in refused.stderr
    assert "Traceback" not in refused.stderr
    unknown = sqlite.backfill("revision", "--autogenerate", "-m", "nick", "--head=nope")
    assert (unknown.returncode, "Traceback" in unknown.stderr) == (1, False), unknown.stderr
    succeeds(sqlite.backfill("revision", "--autogenerate", "-m", "nick", "--head=b2"))
    assert 'revision = "b2"' in classes(sqlite)[0].read_text()


HOOK = """
def number(context, revision, directives):
    directives[0].rev_id = "0002"


def run_migrations_online() -> None:"""


def test_hook_of_env_and_version_path(sqlite: AlembicProject) -> None:
    """A common one numbers the revisions; the contract gets the next number."""
    edit_env(
        sqlite,
        ("def run_migrations_online() -> None:", HOOK),
        (
            "connection=connection, target_metadata",
            "process_revision_directives=number, connection=connection, target_metadata",
        ),
    )
    first = next(sqlite.versions.glob("a1_*"))
    edit(first, ("revision: str = 'a1'", "revision: str = '0001'"))
    url = f"sqlite:///{sqlite.directory.parent / 'test.sqlite3'}"
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    set_models(sqlite, AFTER)
    path = ["--version-path", str(sqlite.versions)]
    succeeds(sqlite.backfill("revision", "--autogenerate", "-m", "contacts", *path))
    contract = the_revision(sqlite, "require_backfill")
    assert "revision: str = '0003'" in contract
    assert re.search(r"^down_revision: .* = '0002'$", contract, re.MULTILINE)
    assert 'revision = "0002"' in classes(sqlite)[0].read_text()


def test_plain_revision_is_alembics(sqlite: AlembicProject) -> None:
    succeeds(sqlite.backfill("revision", "-m", "empty", "--rev-id=b2", "--depends-on=a1"))
    (path,) = revisions(sqlite)
    assert re.search(r"^depends_on: .* = 'a1'$", path.read_text(), re.MULTILINE)
    refused = sqlite.backfill("revision", "--rename=users.name:login")
    assert (refused.returncode, len(revisions(sqlite))) == (1, 1)
    senseless = sqlite.backfill("revision", "--autogenerate", "--sql")
    assert senseless.returncode == 1


def test_each_database_its_own(tmp_path: Path) -> None:
    project = alembic_init(tmp_path / "project", "multidb")
    for number, name in enumerate(("first", "second")):
        invented = "driver://user:pass@localhost/dbname" + ("2" if number else "")
        url = f"sqlite:///{tmp_path / name}.sqlite3"
        edit(project.ini, (f"{invented}\n", f"{url}\n"))
        with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
            connection.exec_driver_sql("CREATE TABLE users (id INTEGER NOT NULL PRIMARY KEY)")
            connection.exec_driver_sql("INSERT INTO users VALUES (1), (2)")
    models = "sa.Table('users', M, sa.Column('id', sa.Integer, primary_key=True), *MORE)"
    env = f"""
import sqlalchemy as sa

target_metadata = {{"engine1": sa.MetaData(), "engine2": sa.MetaData()}}
for M, MORE in (
    (target_metadata["engine1"], ()),
    (target_metadata["engine2"], (sa.Column("email", sa.Text, nullable=False),)),
):
    {models}
"""
    edit_env(project, ("target_metadata = {}\n", env))
    succeeds(project.backfill("revision", "--autogenerate", "-m", "mail"))
    (path,) = (project.directory / "migrations/backfills").glob("*.py")
    assert 'database = "engine2"' in path.read_text()
    path.write_text(path.read_text().replace("...", "\"'x'\""))
    succeeds(project.backfill("upgrade"))
    url = f"sqlite:///{tmp_path / 'second'}.sqlite3"
    assert required(sa.create_engine(url, poolclass=sa.NullPool)) == {"id", "email"}


# -- on a live table -----------------------------------------------------------------------

WAITS = """SELECT count(*) FROM pg_locks
WHERE relation = 'users'::regclass AND NOT granted AND mode = 'ShareUpdateExclusiveLock'"""


@pytest.fixture
def upgrade_here(shop: AlembicProject, engine: sa.Engine) -> Iterator[Callable[[], None]]:
    """Alembic's upgrade in this process, where a test can listen to its SQL."""
    config = Config()
    config.set_main_option("script_location", str(shop.directory / "migrations"))
    url = engine.url.render_as_string(hide_password=False)
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    sys.modules.pop("models", None)
    with mock.patch.object(sys, "path", [str(shop.directory), *sys.path]):
        yield lambda: alembic.command.upgrade(config, "head")
    sys.modules.pop("models", None)


def nick_is_to_be_required(project: AlembicProject) -> None:
    """All is done but the contract."""
    set_models(project, NICK_REQUIRED)
    succeeds(project.backfill("revision", "--autogenerate", "-m", "nick"))
    decide(project)
    succeeds(project.backfill("run"))


@pytest.mark.requires("transactional_ddl")
def test_validation_is_in_nobodys_way(
    shop: AlembicProject, engine: sa.Engine, upgrade_here: Callable[[], None]
) -> None:
    """It is held up in the middle; meanwhile the application reads and writes."""
    nick_is_to_be_required(shop)
    blocker = engine.connect()
    served: list[int] = []

    def use_the_table() -> None:
        with engine.connect() as connection:
            while not connection.exec_driver_sql(WAITS).scalar():
                connection.rollback()
            connection.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
            updated = connection.exec_driver_sql("UPDATE users SET age = age + 1 WHERE id < 3")
            served.append(updated.rowcount)
            connection.commit()
        blocker.rollback()

    meanwhile = threading.Thread(target=use_the_table)

    def hold_up(*arguments: Any) -> None:
        if "VALIDATE" in arguments[2]:
            blocker.exec_driver_sql("LOCK TABLE users IN SHARE UPDATE EXCLUSIVE MODE")
            meanwhile.start()

    sa.event.listen(sa.Engine, "before_cursor_execute", hold_up)
    try:
        upgrade_here()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", hold_up)
        if meanwhile.ident is not None:
            meanwhile.join()
        blocker.close()
    assert served == [3]
    assert "nick" in required(engine)
    assert sa.inspect(engine).get_check_constraints("users") == []


@pytest.mark.requires("transactional_ddl")
def test_nobody_waits_long_behind_the_contract(
    shop: AlembicProject, engine: sa.Engine, upgrade_here: Callable[[], None]
) -> None:
    """A long reader keeps it off the table; who comes after is not kept off for long."""
    nick_is_to_be_required(shop)
    reader, tries = engine.connect(), 0
    reader.exec_driver_sql("SELECT count(*) FROM users")

    def write_between(*arguments: Any) -> None:
        nonlocal tries
        if "NOT VALID" not in arguments[2]:
            return
        tries += 1
        with engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
            connection.exec_driver_sql("UPDATE users SET age = age + 1 WHERE id = 1")
        if tries == 3:
            reader.rollback()

    sa.event.listen(sa.Engine, "before_cursor_execute", write_between)
    try:
        upgrade_here()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", write_between)
        reader.close()
    assert tries == 3
    assert "nick" in required(engine)


@pytest.mark.requires("transactional_ddl")
def test_row_without_a_value_leaves_nothing_behind(
    shop: AlembicProject, engine: sa.Engine, upgrade_here: Callable[[], None]
) -> None:
    """Old code has written it behind the gate."""
    nick_is_to_be_required(shop)

    def write_between(*arguments: Any) -> None:
        if "NOT VALID" in arguments[2]:
            with engine.begin() as connection:
                connection.exec_driver_sql("UPDATE users SET nick = NULL WHERE id = 1")

    sa.event.listen(sa.Engine, "before_cursor_execute", write_between)
    try:
        with pytest.raises(CommandError, match=r"users\.nick cannot be made NOT NULL: a row has"):
            upgrade_here()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", write_between)
    assert sa.inspect(engine).get_check_constraints("users") == []
    succeeds(shop.backfill("upgrade"))
    assert "nick" in required(engine)


def swap_is_left(project: AlembicProject) -> Path:
    """The contract of a column that gets another type; all but that is done."""
    set_models(project, BEFORE.replace("sa.Integer", "sa.BigInteger"))
    succeeds(project.backfill("revision", "--autogenerate", "-m", "age"))
    succeeds(project.backfill("upgrade", "+1"))
    return next(one for one in revisions(project) if "contract" in one.name)


def after_swap(contract: Path, line: str) -> None:
    """Let a line follow it."""
    whole = contract.read_text()
    swap = next(one for one in whole.splitlines() if "op.replace_columns(" in one)
    contract.write_text(whole.replace(swap, f"{swap}\n    {line}"))


def test_write_between_the_gate_and_the_swap(shop: AlembicProject, engine: sa.Engine) -> None:
    """The triggers of `sync` stay until the new column has the old one's name."""
    contract = swap_is_left(shop)
    write = "    op.execute('UPDATE users SET age = 77 WHERE id = 1')\n"
    edit(contract, ("    op.replace_columns(", f"{write}    op.replace_columns("))
    succeeds(shop.backfill("upgrade"))
    assert rows_of(engine, "id", "age")[:3] == [(0, 0), (1, 77), (2, 2)]


def test_contract_that_was_interrupted_behind_the_swap_is_repeated(
    shop: AlembicProject, engine: sa.Engine
) -> None:
    """What is committed then is passed over: the gate asks for a column that has another name."""
    contract = swap_is_left(shop)
    whole = contract.read_text()
    after_swap(contract, "raise RuntimeError('killed')")
    assert shop.backfill("upgrade").returncode == 1
    contract.write_text(whole)
    succeeds(shop.backfill("upgrade"))
    assert isinstance(described(engine)["age"]["type"], sa.BigInteger)
    assert "age_new" not in described(engine)
    assert rows_of(engine, "id", "age")[:3] == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.requires("transactional_ddl")
def test_swap_keeps_nobody_off_while_something_else_is_waited_for(
    shop: AlembicProject, engine: sa.Engine, upgrade_here: Callable[[], None]
) -> None:
    after_swap(swap_is_left(shop), "op.execute('SELECT 1 AS later')")
    read = []

    def read_between(*arguments: Any) -> None:
        if "later" in arguments[2]:
            with engine.begin() as connection:
                connection.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
                read.append(connection.exec_driver_sql("SELECT count(*) FROM users").scalar())

    sa.event.listen(sa.Engine, "before_cursor_execute", read_between)
    try:
        upgrade_here()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", read_between)
    assert read == [ROWS]


@pytest.mark.requires("transactional_ddl")
@pytest.mark.parametrize(
    "made",
    [
        "CREATE UNIQUE INDEX knows ON users (lower(code))",
        "CREATE INDEX knows ON users (id) WHERE code IS NOT NULL",
        "CREATE INDEX knows ON users (id) INCLUDE (code)",
        "CREATE STATISTICS knows ON code, name FROM users",
        "CREATE VIEW knows AS SELECT code FROM users",
    ],
)
def test_column_on_which_something_depends_is_not_replaced(
    shop: AlembicProject, engine: sa.Engine, made: str
) -> None:
    """It would go with the column, and nobody would notice."""
    with engine.begin() as connection:
        connection.exec_driver_sql(made)
    set_models(shop, BEFORE.replace('"code", sa.String(9)', '"code", sa.String(5)'))
    done = shop.backfill("revision", "--autogenerate", "-m", "code")
    succeeds(done)
    assert "users.code: the change of its type is left to one ALTER TABLE" in done.stderr
    assert not classes(shop)


REFERS_TO_ITSELF = """
def upgrade():
    op.create_table(
        "nodes",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent", sa.ForeignKey("nodes.id", ondelete="CASCADE")),
        sa.Column("name", sa.Text),
    )
    for i, parent in ((1, "NULL"), (2, "1"), (3, "2")):
        op.execute(f"INSERT INTO nodes VALUES ({i}, {parent}, 'x')")
"""


def test_copy_of_a_table_that_refers_to_itself_keeps_its_rows(tmp_path: Path) -> None:
    """SQLite deletes what refers to rows of the table that is dropped, in the copy, too."""
    url = f"sqlite:///{tmp_path / 'test.sqlite3'}"
    project = AlembicProject.create(tmp_path / "project", url)
    edit_env(
        project,
        (
            "with connectable.connect() as connection:\n",
            "with connectable.connect() as connection:\n"
            "        connection.exec_driver_sql('PRAGMA foreign_keys = ON')\n"
            "        connection.commit()\n",
        ),
    )
    project.revision("a1", body=REFERS_TO_ITSELF)
    change = 'op.set_not_null("nodes", "name", existing_type=sa.Text())'
    project.revision("b2", down="a1", body=f"import backfill\n\ndef upgrade():\n    {change}\n")
    project.alembic("upgrade", "a1")
    refused = project.alembic("upgrade", "b2", check=False)
    assert "'nodes' refers to it" in refused.stderr
    with sa.create_engine(url).connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM nodes").scalar() == 3


def test_copy_that_was_killed_is_in_nobodys_way(sqlite: AlembicProject) -> None:
    nick_is_to_be_required(sqlite)
    url = sqlite_url(sqlite)
    with sa.create_engine(url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE _alembic_tmp_users (id INTEGER)")
    succeeds(sqlite.backfill("upgrade"))
    assert "nick" in required(sa.create_engine(url))
    assert len(rows_of(sa.create_engine(url), "id")) == ROWS


def sqlite_url(project: AlembicProject) -> str:
    return f"sqlite:///{project.directory.parent / 'test.sqlite3'}"


def test_rename_that_changes_the_type_is_left_to_a_person(sqlite: AlembicProject) -> None:
    set_models(sqlite, BEFORE.replace('"code", sa.String(9)', '"number", sa.Integer'))
    succeeds(
        sqlite.backfill(
            "revision", "--autogenerate", "-m", "number", "--rename", "users.code:number"
        )
    )
    (path,) = classes(sqlite)
    assert 'values = {"number": ...}' in path.read_text()
    assert "the type is another." in path.read_text()


def test_type_is_not_changed_by_way_of_a_column_that_is_there(sqlite: AlembicProject) -> None:
    taken = '    sa.Column("age_new", sa.Integer),\n'
    with sa.create_engine(sqlite_url(sqlite)).begin() as connection:
        connection.exec_driver_sql("ALTER TABLE users ADD age_new INTEGER")
    set_models(sqlite, BEFORE.replace("sa.Integer", "sa.BigInteger") + taken)
    done = sqlite.backfill("revision", "--autogenerate", "-m", "age")
    succeeds(done)
    assert "there is a column age_new already" in done.stderr
    assert not classes(sqlite)


@pytest.mark.requires("transactional_ddl")
@pytest.mark.parametrize(
    ("default", "sql"),
    [
        ("sa.Sequence('numbers').next_value()", "nextval('numbers')"),
        ("sa.func.concat('u-', sa.func.random())", "concat('u-', random())"),
    ],
)
def test_default_that_is_another_for_each_row_is_filled_in(
    shop: AlembicProject, engine: sa.Engine, default: str, sql: str
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SEQUENCE numbers")
    column = f'    sa.Column("mark", sa.String(40), nullable=False, server_default={default}),\n'
    set_models(shop, BEFORE + column)
    succeeds(shop.backfill("revision", "--autogenerate", "-m", "mark"))
    (path,) = classes(shop)
    assert sql in path.read_text()
    succeeds(shop.backfill("upgrade"))
    assert len(set(rows_of(engine, "mark"))) == ROWS


def test_copy_keeps_indexes_of_expressions(sqlite: AlembicProject) -> None:
    nick_is_to_be_required(sqlite)
    with sa.create_engine(sqlite_url(sqlite)).begin() as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX lower_code ON users (lower(code))")
    succeeds(sqlite.backfill("upgrade"))
    with sa.create_engine(sqlite_url(sqlite)).connect() as connection:
        found = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name='lower_code'")
        assert "lower(code)" in found.scalar_one()


@pytest.mark.parametrize("told", ["id INTEGER PRIMARY KEY AUTOINCREMENT", "c TEXT COLLATE NOCASE"])
def test_copy_that_would_forget_something_is_refused(tmp_path: Path, told: str) -> None:
    url = f"sqlite:///{tmp_path / 'test.sqlite3'}"
    project = AlembicProject.create(tmp_path / "project", url)
    made = f'def upgrade():\n    op.execute("CREATE TABLE notes ({told}, name TEXT)")\n'
    project.revision("a1", body=made)
    change = 'op.set_not_null("notes", "name", existing_type=sa.Text())'
    project.revision("b2", down="a1", body=f"import backfill\n\ndef upgrade():\n    {change}\n")
    refused = project.alembic("upgrade", "head", check=False)
    assert refused.returncode != 0
    assert "the copy would lose" in refused.stderr
    assert told.split()[-1] in refused.stderr


def test_what_new_code_wrote_into_a_renamed_column_survives_the_way_back(
    shop: AlembicProject, engine: sa.Engine
) -> None:
    """Before the contract both columns are there, and the old one is demanded again."""
    set_models(shop, BEFORE.replace('"name"', '"login"'))
    renamed = ("--rename", "users.name:login")
    succeeds(shop.backfill("revision", "--autogenerate", "-m", "login", *renamed))
    succeeds(shop.backfill("upgrade", "+1"))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE users SET login = 'changed' WHERE id = 2")
        connection.exec_driver_sql("INSERT INTO users (id, login, age) VALUES (99, 'new', 9)")
    engine.dispose()
    shop.alembic("downgrade", "a1")
    found = dict(rows_of(engine, "id", "name"))
    assert (found[1], found[2], found[99]) == ("n1", "changed", "new")
    assert "name" in required(engine)
