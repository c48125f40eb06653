"""`sync = True` from the first command to the gate, to `cancel`, and back down again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.acceptance.counting import status
from tests.acceptance.shapes import edit_env
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from pathlib import Path

CREATE_ITEMS = """
def upgrade():
    items = op.create_table(
        "items",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("amount", sa.Integer, nullable=False),
    )
    op.bulk_insert(items, [{"id": i, "amount": i} for i in range(1, 31)])
"""
ADD_COLUMN = '''
from backfill import Backfill


def upgrade():
    op.add_column("items", sa.Column("doubled", sa.Integer))


def downgrade():
    op.stop_backfill_sync("fill_doubled")
    op.drop_column("items", "doubled")


class FillDoubled(Backfill):
    """Double the amounts."""

    table = "items"
    where = "doubled IS NULL"
    values = {"doubled": "amount * 2"}
    sync = True
'''
GATE = """
import backfill


def upgrade():
    op.require_backfill("fill_doubled")
    op.create_table("later", sa.Column("id", sa.Integer, primary_key=True))
"""
ADD_CODE = """
from backfill import Backfill


def upgrade():
    op.add_column("items", sa.Column("code", sa.Integer))


class FillCode(Backfill):
    table = "items"
    where = "code IS NULL"
    values = {"code": "7"}
"""
TWO_GATES = """
import backfill

GATES = ("fill_doubled", "fill_code")


def upgrade():
    {}
    op.create_table("later", sa.Column("id", sa.Integer, primary_key=True))


def require():
    op.require_backfill("fill_doubled")
    op.require_backfill("fill_code")
"""
FAILING = """
import backfill


def upgrade():
    op.require_backfill("fill_doubled")
    raise SystemExit("by the test")
"""
AUTOCOMMIT = " isolation_level='AUTOCOMMIT',"
STOP = """
import backfill


def upgrade():
    op.stop_backfill_sync("fill_doubled")
    op.create_table("later", sa.Column("id", sa.Integer, primary_key=True))
"""
WRITE_FROM_OUTSIDE = """
def upgrade():
    other = sa.create_engine(op.get_bind().engine.url)
    with other.begin() as connection:
        connection.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
        connection.execute(sa.text("INSERT INTO items (id, amount) VALUES (500, 1)"))
    other.dispose()
"""
MODELS = """
import sqlalchemy as sa

metadata = sa.MetaData()
sa.Table(
    "items",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("amount", sa.Integer, nullable=False),
    sa.Column("doubled", sa.Integer),
)
"""


@pytest.fixture
def declared(project: AlembicProject) -> AlembicProject:
    """Thirty rows, a column to fill with its backfill, and a gate that is not yet passed."""
    project.revision("a1", body=CREATE_ITEMS)
    project.revision("b2", down="a1", body=ADD_COLUMN)
    project.alembic("upgrade", "b2")
    project.revision("c3", down="b2", body=GATE)
    return project


def doubled(engine: sa.Engine, key: int) -> int | None:
    """What becomes of a row that an old application writes, which knows of no such column."""
    with engine.begin() as connection:
        connection.execute(sa.text(f"INSERT INTO items (id, amount) VALUES ({key}, {key})"))
        query = sa.text(f"SELECT doubled FROM items WHERE id = {key}")
        found: int | None = connection.execute(query).scalar_one()
        return found


def test_triggers_stay_until_the_gate_lets_through(
    declared: AlembicProject, engine: sa.Engine
) -> None:
    assert declared.backfill("run", "--limit=10", "--chunk-size=5").returncode == 3
    assert declared.alembic("upgrade", "head", check=False).returncode != 0
    assert doubled(engine, 100) == 200
    assert declared.backfill("run").returncode == 0
    assert status(declared)["sync"] is True
    assert doubled(engine, 101) == 202

    declared.alembic("upgrade", "head")
    assert status(declared)["sync"] is False
    assert doubled(engine, 102) is None
    with engine.connect() as connection:
        query = sa.text("SELECT what FROM backfill_event WHERE what LIKE 'sync%' ORDER BY id")
        assert connection.execute(query).scalars().all() == ["sync installed", "sync removed"]


@pytest.mark.parametrize(
    "gates",
    [
        "op.require_backfill('fill_doubled')\n    op.require_backfill('fill_code')",
        "for name in GATES:\n        op.require_backfill(name)",
        "require()",
    ],
    ids=["lines", "loop", "function"],
)
def test_no_gate_ends_them_before_all_gates_of_its_revision_have_passed(
    declared: AlembicProject, engine: sa.Engine, gates: str
) -> None:
    """What old code writes after a refusal is followed, as it was before."""
    declared.revision("b3", down="b2", body=ADD_CODE)
    declared.revision("c3", down="b3", body=TWO_GATES.format(gates))
    declared.alembic("upgrade", "b3")
    assert declared.backfill("run").returncode == 0
    assert doubled(engine, 100) == 200  # and `code` is NULL
    refused = declared.alembic("upgrade", "head", check=False)
    assert "Backfill 'fill_code' is not complete" in refused.stdout
    assert status(declared, "fill_doubled")["sync"] is True
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE items SET amount = 4 WHERE id = 5"))

    assert declared.backfill("run").returncode == 0
    declared.alembic("upgrade", "head")
    assert status(declared, "fill_doubled")["sync"] is False
    with engine.connect() as connection:
        query = sa.text("SELECT doubled FROM items WHERE id = 5")
        assert connection.execute(query).scalar_one() == 8


@pytest.mark.parametrize(
    "more", [pytest.param("", marks=pytest.mark.requires("server")), AUTOCOMMIT]
)
def test_run_makes_them_anew_where_a_revision_failed_behind_its_gate(
    declared: AlembicProject, engine: sa.Engine, more: str
) -> None:
    edit_env(declared, ("poolclass=pool.NullPool,", f"poolclass=pool.NullPool,{more}"))
    assert declared.backfill("run").returncode == 0
    declared.revision("c3", down="b2", body=FAILING)
    assert declared.alembic("upgrade", "head", check=False).returncode != 0
    assert status(declared)["sync"] is False
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE items SET amount = 4 WHERE id = 5"))
        connection.execute(sa.text("INSERT INTO items (id, amount) VALUES (100, 100)"))

    told = declared.backfill("run", "--dry-run")
    assert (told.returncode, status(declared)["sync"]) == (0, False)
    run = declared.backfill("run", "fill_doubled")
    assert run.returncode == 0, run.stderr
    assert "triggers keep up with new writes again" in run.stderr
    assert "Revision c3, which is not applied, had ended them at 20" in run.stderr
    assert "complete, 1 rows changed" in run.stderr
    assert status(declared)["sync"] is True
    assert doubled(engine, 101) == 202
    with engine.begin() as connection:  # what it tells to do
        connection.execute(sa.text("UPDATE items SET doubled = NULL WHERE doubled <> amount * 2"))
    again = declared.backfill("run", "fill_doubled")
    assert (again.returncode, "had ended them" in again.stderr) == (0, False)
    with engine.connect() as connection:
        wrong = sa.text("SELECT count(*) FROM items WHERE doubled <> amount * 2")
        assert connection.execute(wrong).scalar_one() == 0

    declared.revision("c3", down="b2", body=GATE)
    declared.alembic("upgrade", "head")
    assert declared.backfill("run", "fill_doubled").returncode == 0
    assert status(declared)["sync"] is False


def test_run_without_a_name_only_tells_of_it(declared: AlembicProject) -> None:
    """It may be cron's, and the revision at work."""
    edit_env(declared, ("poolclass=pool.NullPool,", f"poolclass=pool.NullPool,{AUTOCOMMIT}"))
    assert declared.backfill("run").returncode == 0
    declared.revision("c3", down="b2", body=FAILING)
    assert declared.alembic("upgrade", "head", check=False).returncode != 0
    run = declared.backfill("run")
    assert run.returncode == 0, run.stderr
    assert "`backfill run fill_doubled` makes them anew" in run.stderr
    assert status(declared)["sync"] is False


def test_a_revision_that_failed_on_sqlite_has_ended_nothing(tmp_path: Path) -> None:
    with AlembicProject.create(tmp_path / "project", f"sqlite:///{tmp_path / 'x.db'}") as project:
        project.revision("a1", body=CREATE_ITEMS)
        project.revision("b2", down="a1", body=ADD_COLUMN)
        project.alembic("upgrade", "b2")
        assert project.backfill("run").returncode == 0
        project.revision("c3", down="b2", body=FAILING)
        assert project.alembic("upgrade", "head", check=False).returncode != 0
        assert status(project)["sync"] is True


def test_run_makes_none_anew_that_a_person_has_ended(declared: AlembicProject) -> None:
    assert declared.backfill("run").returncode == 0
    assert declared.backfill("cancel", "fill_doubled").returncode == 0
    assert declared.backfill("run", "fill_doubled").returncode == 0
    assert status(declared)["sync"] is False


@pytest.mark.requires("transactional_ddl")
@pytest.mark.parametrize("body", [GATE, STOP])
@pytest.mark.parametrize("more", ["", AUTOCOMMIT])
def test_nobody_waits_for_the_revisions_behind_their_end(
    declared: AlembicProject, engine: sa.Engine, body: str, more: str
) -> None:
    """All revisions of an upgrade share a transaction, if there is any."""
    edit_env(declared, ("poolclass=pool.NullPool,", f"poolclass=pool.NullPool,{more}"))
    assert declared.backfill("run").returncode == 0
    declared.revision("c3", down="b2", body=body)
    declared.revision("d4", down="c3", body=WRITE_FROM_OUTSIDE)
    declared.alembic("upgrade", "head")
    assert status(declared)["sync"] is False
    assert doubled(engine, 501) is None


@pytest.mark.requires("transactional_ddl")
def test_half_a_revision_is_not_kept_with_their_end(
    declared: AlembicProject, engine: sa.Engine
) -> None:
    assert declared.backfill("run").returncode == 0
    too_late = STOP.replace(
        "    op.stop", '    op.create_table("half", sa.Column("id", sa.Integer))\n    op.stop'
    )
    declared.revision("c3", down="b2", body=f"{too_late}    raise SystemExit('by the test')\n")
    assert declared.alembic("upgrade", "head", check=False).returncode != 0
    assert not sa.inspect(engine).has_table("half")
    assert doubled(engine, 500) == 1000  # and the triggers are back


@pytest.mark.requires("transactional_ddl")
@pytest.mark.parametrize(
    "statement",
    [
        'op.get_bind().exec_driver_sql("CREATE TABLE half (id int)")',
        'sa.Table("half", sa.MetaData(), sa.Column("id", sa.Integer)).create(op.get_bind())',
    ],
)
def test_nor_is_one_that_alembic_knows_nothing_of(
    declared: AlembicProject, engine: sa.Engine, statement: str
) -> None:
    assert declared.backfill("run").returncode == 0
    too_late = STOP.replace("    op.stop", f"    {statement}\n    op.stop")
    declared.revision("c3", down="b2", body=f"{too_late}    raise SystemExit('by the test')\n")
    assert declared.alembic("upgrade", "head", check=False).returncode != 0
    assert not sa.inspect(engine).has_table("half")


@pytest.mark.requires("transactional_ddl")
def test_a_transaction_of_env_py_stays_whole(declared: AlembicProject, engine: sa.Engine) -> None:
    assert declared.backfill("run").returncode == 0
    edit_env(declared, ("with connectable.connect() as", "with connectable.begin() as"))
    failing = f"{STOP}    raise SystemExit('by the test')\n"
    declared.revision("c3", down="b2", body=failing)
    assert declared.alembic("upgrade", "head", check=False).returncode != 0
    assert doubled(engine, 500) == 1000
    declared.revision("c3", down="b2", body=GATE)
    declared.alembic("upgrade", "head")
    assert doubled(engine, 501) is None


def test_cancel_removes_them_during_a_run_and_after_it(
    declared: AlembicProject, engine: sa.Engine
) -> None:
    assert declared.backfill("run", "--limit=10", "--chunk-size=5").returncode == 3
    done = declared.backfill("cancel", "fill_doubled")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            "fill_doubled: its triggers are removed",
            "fill_doubled: cancelled; rows already written stay",
        ],
    )
    assert doubled(engine, 100) is None

    assert declared.backfill("run", "fill_doubled").returncode == 0
    assert doubled(engine, 101) == 202
    done = declared.backfill("cancel", "fill_doubled")  # for those who have no gate
    assert (done.returncode, done.stdout) == (0, "fill_doubled: its triggers are removed\n")
    assert doubled(engine, 102) is None
    again = declared.backfill("cancel", "fill_doubled")
    assert (again.returncode, "has succeeded" in again.stderr) == (1, True), again.stderr


def test_alembic_sees_none_of_it_and_a_downgrade_takes_it_away(
    declared: AlembicProject, engine: sa.Engine
) -> None:
    script = declared.alembic("upgrade", "b2:c3", "--sql").stdout
    assert "not removed by this script: `backfill cancel fill_doubled`" in script
    (declared.versions / "c3.py").unlink()
    declared.write("models.py", MODELS)
    env = declared.directory / "migrations/env.py"
    ours = "from models import metadata\n\ntarget_metadata = metadata"
    env.write_text(env.read_text().replace("target_metadata = None", ours))
    assert "  trigger    CREATE " in declared.backfill("plan").stdout
    assert declared.backfill("run").returncode == 0
    assert doubled(engine, 100) == 200
    declared.alembic("check")

    declared.alembic("downgrade", "a1")
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO items (id, amount) VALUES (101, 1)"))
    assert status(declared)["sync"] is False


def test_triggers_without_a_class_are_shown_and_removed_by_name(
    declared: AlembicProject, engine: sa.Engine
) -> None:
    assert declared.backfill("run", "--limit=10", "--chunk-size=5").returncode == 3
    (declared.versions / "c3.py").unlink()
    declared.revision("b2", down="a1", body=ADD_COLUMN.partition("class FillDoubled")[0])
    assert doubled(engine, 100) == 200

    listed = declared.backfill("list")
    assert listed.returncode == 0, listed.stderr
    assert "class is gone" in listed.stdout
    shown = declared.backfill("status")
    assert shown.returncode == 0, shown.stderr
    assert "class is gone" in shown.stdout
    assert "triggers keep up with new writes" in shown.stdout

    done = declared.backfill("cancel", "fill_doubled")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            "fill_doubled: its triggers are removed",
            "fill_doubled: cancelled; rows already written stay",
        ],
    ), done.stderr
    assert doubled(engine, 101) is None
    assert status(declared, "fill_doubled")["sync"] is False
    again = declared.backfill("cancel", "fill_doubled")
    assert (again.returncode, "is cancelled already" in again.stdout) == (0, True)
    never = declared.backfill("cancel", "fill_nothing")
    assert (never.returncode, "No backfill is called 'fill_nothing'" in never.stderr) == (2, True)


def test_a_downgrade_needs_no_class_to_take_triggers_away(
    declared: AlembicProject, engine: sa.Engine
) -> None:
    assert declared.backfill("run").returncode == 0
    (declared.versions / "c3.py").unlink()
    declared.revision("b2", down="a1", body=ADD_COLUMN.partition("class FillDoubled")[0])
    declared.alembic("downgrade", "a1")
    with engine.connect() as connection:
        assert "doubled" not in {c["name"] for c in sa.inspect(connection).get_columns("items")}
        query = sa.text("SELECT what FROM backfill_event WHERE what LIKE 'sync%' ORDER BY id")
        assert connection.execute(query).scalars().all() == ["sync installed", "sync removed"]
