"""What a downgrade takes back makes a success stale, with an env.py that knows nothing of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.acceptance.counting import PATIENCE_SECONDS
from tests.acceptance.test_gate import WITH_ROWS
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from pathlib import Path

    from tests.databases import Database

ADD = """
def upgrade():
    op.add_column("items", sa.Column("doubled", sa.Integer))


def downgrade():
    with op.batch_alter_table("items") as batch:
        batch.drop_column("doubled")
"""
CLASS = '''
import time
from pathlib import Path

from backfill import Backfill


class FillDoubled(Backfill):
    """Double the amounts."""

    {revision}
    table = "items"
    {what}
'''
WITHOUT_WHERE = """values = {"doubled": "amount * 2"}"""
WITH_WHERE = f'where = "doubled IS NULL"\n    {WITHOUT_WHERE}'
SLOW = """reads = ["amount"]
    writes = ["doubled"]

    def transform(self, row):
        while row.id > 5 and not Path("go_on").exists():
            time.sleep(0.01)
        return {"doubled": row.amount * 2}
"""


def declare(project: AlembicProject, what: str) -> None:
    project.revision("a1", body=WITH_ROWS)
    project.revision("b2", down="a1", body=ADD + CLASS.format(revision="", what=what))


def declare_apart(project: AlembicProject, what: str) -> Path:
    """No revision imports us, so that Alembic's own commands know nothing of us."""
    project.revision("a1", body=WITH_ROWS)
    project.revision("b2", down="a1", body=ADD)
    text = CLASS.format(revision='revision = "b2"', what=what)
    return project.write("migrations/backfills/doubled.py", text)


def status(project: AlembicProject) -> str:
    (one,) = json.loads(project.backfill("status", "--json").stdout)
    return str(one["status"])


def is_filled(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        wrong = sa.text("SELECT count(*) FROM items WHERE doubled IS NULL OR doubled <> amount * 2")
        return connection.execute(wrong).scalar() == 0


@pytest.mark.parametrize("what", [WITH_WHERE, WITHOUT_WHERE], ids=["where", "no where"])
def test_success_is_stale_after_a_downgrade(
    project: AlembicProject, engine: sa.Engine, what: str
) -> None:
    declare(project, what)
    project.alembic("upgrade", "head")
    assert project.backfill("run").returncode == 0
    assert status(project) == "succeeded"
    project.alembic("downgrade", "a1")
    project.alembic("upgrade", "head")
    assert status(project) == "stale"
    assert project.backfill("check").returncode == 1
    assert not is_filled(engine)
    assert project.backfill("run").returncode == 0
    assert (is_filled(engine), status(project)) == (True, "succeeded")


def test_downgrade_of_an_alembic_that_does_not_load_us(
    project: AlembicProject, engine: sa.Engine
) -> None:
    """The revision tells it, if anybody asks before the next upgrade; else a person can."""
    declare_apart(project, WITHOUT_WHERE)
    project.alembic("upgrade", "head")
    assert project.backfill("run").returncode == 0
    project.alembic("downgrade", "a1")
    assert status(project) == "stale"
    assert project.backfill("run").returncode == 0
    project.alembic("upgrade", "head")
    assert status(project) == "stale"
    assert project.backfill("run").returncode == 0
    assert is_filled(engine)

    project.alembic("downgrade", "a1")
    project.alembic("upgrade", "head")
    assert project.backfill("run", "--again").returncode == 2
    assert project.backfill("run", "fill_doubled", "--again").returncode == 0
    assert is_filled(engine)


def test_run_that_was_interrupted_begins_anew(project: AlembicProject, engine: sa.Engine) -> None:
    """Its cursor says nothing of the column that comes back."""
    declare(project, WITHOUT_WHERE)
    project.alembic("upgrade", "head")
    assert project.backfill("run", "--limit=10").returncode == 3
    project.alembic("downgrade", "a1")
    assert status(project) == "stale"
    project.alembic("upgrade", "head")
    assert project.backfill("run").returncode == 0
    assert is_filled(engine)


def test_downgrade_is_refused_while_it_runs(project: AlembicProject, engine: sa.Engine) -> None:
    declare(project, SLOW)
    project.alembic("upgrade", "head")
    runner = project.start("run", "--chunk-size=5", "--json")
    while '"chunk"' not in runner.read_stdout():
        assert runner.poll() is None, runner.read_stderr()
    done = project.alembic("downgrade", "a1", check=False)
    project.write("go_on", "")
    assert runner.wait(PATIENCE_SECONDS) == 0, runner.read_stderr()
    assert done.returncode != 0
    assert "cannot be downgraded while backfill 'fill_doubled' writes" in done.stdout
    assert "`backfill pause fill_doubled`" in done.stdout
    assert "Traceback" not in done.stderr
    assert "doubled" in {column["name"] for column in sa.inspect(engine).get_columns("items")}
    project.alembic("downgrade", "a1")
    assert status(project) == "stale"


def test_project_beside_it_with_the_same_ids(
    project: AlembicProject, engine: sa.Engine, tmp_path: Path, database: Database
) -> None:
    """It has a version table of its own, and the state tables in common."""
    declare(project, WITHOUT_WHERE)
    project.alembic("upgrade", "head")
    assert project.backfill("run").returncode == 0
    other = AlembicProject.create(tmp_path / "other", database.url)
    configured = "target_metadata=target_metadata"
    env = other.directory / "migrations/env.py"
    env.write_text(env.read_text().replace(configured, f"{configured}, version_table='other'"))
    other.revision("a1")
    other.revision("b2", down="a1", body="import backfill\n")
    other.alembic("upgrade", "a1")
    assert other.backfill("run").returncode == 0  # b2 is not applied: nobody took it back
    other.alembic("upgrade", "b2")
    other.alembic("downgrade", "a1")
    assert status(project) == "succeeded"


def test_downgrade_that_fails_changes_nothing(project: AlembicProject, engine: sa.Engine) -> None:
    broken = ADD.replace('batch.drop_column("doubled")', 'raise RuntimeError("not now")')
    text = CLASS.format(revision="", what=WITHOUT_WHERE)
    project.revision("a1", body=WITH_ROWS)
    project.revision("b2", down="a1", body=broken + text)
    project.alembic("upgrade", "head")
    assert project.backfill("run").returncode == 0
    assert project.alembic("downgrade", "a1", check=False).returncode != 0
    assert (status(project), is_filled(engine)) == ("succeeded", True)


def test_project_without_our_tables_is_downgraded_as_ever(project: AlembicProject) -> None:
    declare(project, WITH_WHERE)
    project.alembic("upgrade", "head")
    project.alembic("downgrade", "base")
    assert project.alembic("downgrade", "a1:base", "--sql").returncode == 0
