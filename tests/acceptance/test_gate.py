"""The gate in a later revision asks the data; Alembic never sees our tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.acceptance.shapes import edit, edit_env

if TYPE_CHECKING:
    from pathlib import Path
    from subprocess import CompletedProcess

    from tests.projects import AlembicProject

CREATE_ITEMS = """
def upgrade():
    items = op.create_table(
        "items",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("amount", sa.Integer, nullable=False),
    )
"""
WITH_ROWS = CREATE_ITEMS + (
    '    op.bulk_insert(items, [{"id": i, "amount": i} for i in range(1, 31)])\n'
)
ADD_COLUMN = """
def upgrade():
    op.add_column("items", sa.Column("doubled", sa.Integer))
"""
DECLARATION = '''
from backfill import Backfill


class FillDoubled(Backfill):
    """Double the amounts."""

    table = "items"
    where = "doubled IS NULL"
    values = {"doubled": "amount * 2"}
'''
WITHOUT_WHERE = DECLARATION.replace('    where = "doubled IS NULL"\n', "")
COUNT_UP = WITHOUT_WHERE.replace('{"doubled": "amount * 2"}', '{"amount": "amount + 1"}')
COMPUTED = DECLARATION.replace(
    '    values = {"doubled": "amount * 2"}\n',
    """    reads = ["amount"]
    writes = ["doubled"]

    def transform(self, row):
        return {"doubled": row.amount * 2 // (row.amount != 7)}
""",
)
GATE = """
import backfill


def upgrade():
    op.require_backfill("fill_doubled")
    op.create_table("later", sa.Column("id", sa.Integer, primary_key=True))
"""
MODELS = """
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]
    doubled: Mapped[int | None]


class Later(Base):
    __tablename__ = "later"
    id: Mapped[int] = mapped_column(primary_key=True)
"""


def test_gate_refuses_and_keeps_the_earlier_revisions(project: AlembicProject) -> None:
    declare(project)
    refused = project.alembic("upgrade", "head", check=False)
    assert_refused(refused)
    assert current(project) == "b2"  # with its column: else the backfill could not start
    assert project.backfill("run").returncode == 0
    project.alembic("upgrade", "head")
    assert current(project) == "c3"


def test_gate_refuses_again_when_a_row_became_pending(
    project: AlembicProject, engine: sa.Engine
) -> None:
    declare(project)
    project.alembic("upgrade", "b2")
    assert project.backfill("run").returncode == 0
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO items (id, amount) VALUES (99, 99)"))
    refused = project.alembic("upgrade", "head", check=False)
    assert_refused(refused)
    assert project.backfill("run").returncode == 0
    project.alembic("upgrade", "head")


@pytest.mark.parametrize("declaration", [DECLARATION, WITHOUT_WHERE], ids=["where", "no where"])
def test_gate_passes_on_an_empty_database(project: AlembicProject, declaration: str) -> None:
    declare(project, items=CREATE_ITEMS, declaration=declaration)
    project.alembic("upgrade", "head")
    assert current(project) == "c3"


def test_gate_on_a_connection_without_transactions(project: AlembicProject) -> None:
    """There is no savepoint under AUTOCOMMIT."""
    declare(project)
    edit_env(
        project,
        ("poolclass=pool.NullPool,", "poolclass=pool.NullPool, isolation_level='AUTOCOMMIT',"),
    )
    assert_refused(project.alembic("upgrade", "head", check=False))
    assert project.backfill("run").returncode == 0
    project.alembic("upgrade", "head")
    assert current(project) == "c3"
    project.alembic("downgrade", "a1")


def test_gate_in_a_transaction_of_env_says_what_becomes_of_the_others(
    project: AlembicProject, engine: sa.Engine
) -> None:
    declare(project)
    edit_env(project, ("with connectable.connect() as", "with connectable.begin() as"))
    refused = project.alembic("upgrade", "head", check=False)
    assert_refused(refused)
    is_there = sa.inspect(engine).has_table("items")
    said = "`alembic stamp b2`" if is_there else "`alembic upgrade b2` first"
    assert "env.py has begun the transaction itself, so" in refused.stderr
    assert said in refused.stderr


def test_gate_that_found_nothing_is_remembered(project: AlembicProject, engine: sa.Engine) -> None:
    """Rows that come after it are the application's, and no run takes them for its own."""
    declare(project, items=CREATE_ITEMS, declaration=COUNT_UP)
    project.alembic("upgrade", "head")
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO items (id, amount) VALUES (1, 7)")
    checked, run = project.backfill("check"), project.backfill("run")
    assert (checked.returncode, run.returncode) == (0, 0), checked.stdout + run.stderr
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT amount FROM items").scalar() == 7


@pytest.mark.parametrize("how", ["stopped", "paused", "cancelled", "failed", "edited"])
def test_gate_ends_a_run_that_was_left(
    project: AlembicProject, engine: sa.Engine, how: str
) -> None:
    """The application did the rest, and what it was done from is dropped: nothing could be asked
    any more."""
    declaration = COMPUTED if how == "failed" else DECLARATION
    dropping = GATE.replace(
        "    op.create_table(", '    op.drop_column("items", "amount")\n    op.create_table('
    )
    declare(project, declaration=declaration, gate=dropping)
    project.alembic("upgrade", "b2")
    limit = [] if how == "failed" else ["--limit=10", "--chunk-size=5"]
    assert project.backfill("run", *limit).returncode == (5 if how == "failed" else 3)
    if how in ("paused", "cancelled"):
        project.backfill({"paused": "pause", "cancelled": "cancel"}[how], "fill_doubled")
    if how == "edited":
        edit(project.versions / "b2.py", ("amount * 2", "2 * amount"))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE items SET doubled = 2 * amount WHERE doubled IS NULL")
    project.alembic("upgrade", "head")
    for command in (["check"], ["run"], ["upgrade"], ["run"]):
        done = project.backfill(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    with engine.connect() as connection:
        told = connection.exec_driver_sql("SELECT what FROM backfill_event ORDER BY id").scalars()
        assert list(told)[-2:] == ["succeeded", "completed inline"]
    assert "No row is quarantined" in project.backfill("failures").stdout


def test_gate_does_not_pass_a_runner_by(project: AlembicProject, engine: sa.Engine) -> None:
    """It would have to finish without the columns that the revision drops."""
    declare(project)
    project.alembic("upgrade", "b2")
    assert project.backfill("run", "--limit=10", "--chunk-size=5").returncode == 3
    later = "2199-01-01 00:00:00"
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE items SET doubled = 2 * amount")
        connection.exec_driver_sql(
            "UPDATE backfill_range SET token = 'theirs', owner = 'elsewhere:7:x',"
            f" lease_expires = '{later}'"
        )
    refused = project.alembic("upgrade", "head", check=False)
    assert_refused(refused)
    assert "is being run by elsewhere" in refused.stdout
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE backfill_range SET lease_expires = '2001-01-01 00:00:00'"
        )
    project.alembic("upgrade", "head")
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT DISTINCT token FROM backfill_range").scalars()
        assert list(found) == [None]  # whoever held it commits nothing more
    assert project.backfill("run").returncode == 0


@pytest.mark.requires("transactional_ddl")
def test_gate_in_a_function_of_its_revision(project: AlembicProject, engine: sa.Engine) -> None:
    """What `upgrade()` did before it is rolled back, rather than kept without its stamp."""
    gate = """
import backfill


def upgrade():
    op.add_column("items", sa.Column("half", sa.Integer))
    gate()


def gate():
    op.require_backfill("fill_doubled")
"""
    declare(project, gate=gate)
    project.alembic("upgrade", "b2")
    refused = project.alembic("upgrade", "head", check=False)
    assert "the gate has to be the first operation of revision c3: line 23" in refused.stdout
    assert "half" not in {one["name"] for one in sa.inspect(engine).get_columns("items")}


def test_gate_without_where_asks_the_run(project: AlembicProject) -> None:
    declare(project, declaration=WITHOUT_WHERE)
    refused = project.alembic("upgrade", "head", check=False)
    assert_refused(refused)
    assert current(project) == "b2"
    assert project.backfill("run", "--limit=10", "--chunk-size=5").returncode == 3
    refused = project.alembic("upgrade", "head", check=False)
    assert_refused(refused)
    assert project.backfill("run").returncode == 0
    project.alembic("upgrade", "head")
    assert current(project) == "c3"


def test_gate_with_an_unknown_name(project: AlembicProject) -> None:
    declare(project, gate=GATE.replace("fill_doubled", "fill_dubled"))
    refused = project.alembic("upgrade", "head", check=False)
    said = refused.stdout + refused.stderr
    assert (refused.returncode != 0, "Traceback" in said) == (True, False), said
    assert "No backfill is called 'fill_dubled'. Did you mean fill_doubled?" in said
    assert current(project) == "b2"


def test_gate_in_offline_mode(project: AlembicProject, engine: sa.Engine) -> None:
    declare(project)
    done = project.alembic("upgrade", "head", "--sql")
    assert re.search(r"^-- .*fill_doubled", done.stdout, re.MULTILINE), done.stdout
    assert "CREATE TABLE later" in done.stdout
    assert sa.inspect(engine).get_table_names() == []


@pytest.mark.parametrize("place", ["revision file", "folder"])
def test_alembic_never_sees_our_tables(
    project: AlembicProject, engine: sa.Engine, place: str
) -> None:
    use_models(project)
    if place == "folder":
        declare_with_new(project)
    else:
        declare(project)
        project.alembic("upgrade", "b2")
    assert project.backfill("run").returncode == 0
    project.alembic("upgrade", "head")
    assert "backfill_run" in sa.inspect(engine).get_table_names()

    project.alembic("check")
    written = generate(project, "nothing_to_do")
    assert "backfill_" not in written.read_text()
    written.unlink()

    forget_backfill(project)  # proves that the models and the tables were compared at all
    assert "op.drop_table('backfill_run')" in generate(project, "all_of_it").read_text()


def declare(
    project: AlembicProject,
    *,
    items: str = WITH_ROWS,
    declaration: str = DECLARATION,
    gate: str = GATE,
) -> None:
    """A table, a column to fill with its backfill, and a revision which needs that filled."""
    project.revision("a1", body=items)
    project.revision("b2", down="a1", body=ADD_COLUMN + declaration)
    project.revision("c3", down="b2", body=gate)


def declare_with_new(project: AlembicProject) -> None:
    """The same with `backfill new`, and a gate that is added after the run."""
    project.revision("a1", body=WITH_ROWS)
    project.revision("b2", down="a1", body=ADD_COLUMN)
    project.alembic("upgrade", "head")
    done = project.backfill("new", "fill_doubled", "--revision=b2", "--table=items")
    assert done.returncode == 0, done.stderr
    file = project.directory / "migrations/backfills/fill_doubled.py"
    text = (
        file.read_text().replace("new_column", "doubled").replace("lower(old_column)", "amount*2")
    )
    file.write_text(text)
    project.revision("c3", down="b2", body=GATE)


def use_models(project: AlembicProject) -> None:
    """What every project does for autogenerate."""
    project.write("models.py", MODELS)
    env = project.directory / "migrations/env.py"
    ours = "from models import Base\n\ntarget_metadata = Base.metadata"
    text = env.read_text()
    assert "target_metadata = None" in text
    env.write_text(text.replace("target_metadata = None", ours))


def generate(project: AlembicProject, message: str) -> Path:
    known = set(project.versions.glob("*.py"))
    project.alembic("revision", "--autogenerate", "-m", message)
    (written,) = set(project.versions.glob("*.py")) - known
    return written


def forget_backfill(project: AlembicProject) -> None:
    """Leave no import of ours in the revisions."""
    project.revision("a1", body=WITH_ROWS)
    project.revision("b2", down="a1", body=ADD_COLUMN)
    project.revision("c3", down="b2")


def current(project: AlembicProject) -> str:
    return project.alembic("current").stdout.split()[0]


def assert_refused(done: CompletedProcess[str]) -> None:
    """Alembic prints the refusal and logs it too, once each."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("FAILED: Backfill 'fill_doubled' is not complete")
    assert "`backfill run fill_doubled`" in line
