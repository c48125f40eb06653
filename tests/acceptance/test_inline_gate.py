"""The gate that does a small remainder itself, and what it says where it cannot be passed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.acceptance.test_gate import ADD_COLUMN, CREATE_ITEMS, GATE, WITH_ROWS

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from tests.projects import AlembicProject

ROWS = 30
INLINE = GATE.replace('"fill_doubled")', '"fill_doubled", inline=True)')
CLASS = '''
from backfill import Backfill


class FillDoubled(Backfill):
    """Double the amounts."""

    table = "items"
    chunk_size = 7
'''
SET = CLASS + '    where = "doubled IS NULL"\n    values = {"doubled": "amount * 2"}\n'
PYTHON = CLASS + (
    '    where = "doubled IS NULL"\n    reads = ["amount"]\n    writes = ["doubled"]\n\n'
    '    def transform(self, row):\n        return {"doubled": row.amount * 2}\n'
)
CUSTOM = CLASS + (
    '    where = "doubled IS NULL"\n\n    def apply(self, connection, chunk):\n'
    "        connection.execute(chunk.update().values(doubled=chunk.table.c.amount * 2))\n"
)
COUNTING = CLASS + '    values = {"amount": "amount + 1000", "doubled": "amount * 2"}\n'


def declare(project: AlembicProject, declaration: str, gate: str = INLINE) -> None:
    project.revision("a1", body=WITH_ROWS)
    project.revision("b2", down="a1", body=ADD_COLUMN + declaration)
    project.revision("c3", down="b2", body=gate)


def doubled(engine: sa.Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        query = sa.text("SELECT id, amount, doubled FROM items ORDER BY id")
        return [tuple(row) for row in connection.execute(query)]


def status(project: AlembicProject) -> str:
    return project.backfill("status").stdout.splitlines()[0].rpartition(": ")[2]


def refused(project: AlembicProject, *words: str) -> CompletedProcess[str]:
    done = project.alembic("upgrade", "head", check=False)
    assert (done.returncode != 0, "Traceback" in done.stderr) == (True, False), done.stderr
    for word in words:
        assert word in done.stdout, done.stdout
    return done


def current(project: AlembicProject) -> str:
    return "".join(project.alembic("current").stdout.split()[:1])


@pytest.mark.parametrize("declaration", [SET, PYTHON, CUSTOM], ids=["values", "transform", "apply"])
def test_inline_does_the_work_of_a_run(
    project: AlembicProject, engine: sa.Engine, declaration: str
) -> None:
    """In one upgrade from nothing to the head, on the connection that has just added the column."""
    declare(project, declaration)
    project.alembic("upgrade", "head")
    assert doubled(engine) == [(i, i, 2 * i) for i in range(1, ROWS + 1)]
    assert status(project) == "succeeded"
    assert project.backfill("run").stderr.strip() == "fill_doubled: already complete"


def test_inline_by_the_setting_goes_on_where_a_run_stopped(
    project: AlembicProject, engine: sa.Engine
) -> None:
    """Without a `where` only the cursors tell what is done: each row is counted once."""
    declare(project, COUNTING, gate=GATE)
    project.alembic("upgrade", "b2")
    assert project.backfill("run", "--limit=10").returncode == 3
    refused(project, "its run is pending")
    project.ini.write_text(project.ini.read_text() + "\n[backfill]\ngate = inline\n")
    project.alembic("upgrade", "head")
    assert [amount for _, amount, _ in doubled(engine)] == [i + 1000 for i in range(1, ROWS + 1)]
    assert status(project) == "succeeded"
    assert project.backfill("run").returncode == 0
    assert doubled(engine)[0][1] == 1001


def test_what_inline_refuses(project: AlembicProject, engine: sa.Engine) -> None:
    """Too many rows, a run that a person stopped, a row that cannot be done: nothing is changed."""
    project.revision("a1", body=WITH_ROWS)
    project.revision("b2", down="a1", body=ADD_COLUMN + SET + "    inline_rows = 29\n")
    project.revision("c3", down="b2", body=INLINE)
    refused(project, "more than inline_rows = 29 rows are left", "`backfill run fill_doubled`")
    assert current(project) == "b2"
    assert {value for _, _, value in doubled(engine)} == {None}

    project.revision("b2", down="a1", body=ADD_COLUMN + SET)
    assert project.backfill("run", "--limit=7").returncode == 3
    assert project.backfill("pause", "fill_doubled").returncode == 0
    refused(project, "its run is paused")
    assert project.backfill("resume", "fill_doubled").returncode == 0

    bad = PYTHON.replace("row.amount * 2", "1 // (row.amount - 20)")
    project.revision("b2", down="a1", body=ADD_COLUMN + bad)
    refused(project, "row [20] cannot be written: ZeroDivisionError")
    assert [id for id, _, value in doubled(engine) if value is not None] == list(range(1, 8))
    assert (current(project), status(project)) == ("b2", "pending")


def test_gate_that_is_not_first_says_so(project: AlembicProject, engine: sa.Engine) -> None:
    late = GATE.replace("    op.require", '    op.execute("SELECT 1")\n    op.require')
    declare(project, SET, gate=late)
    done = refused(project, "has to be the first operation of revision c3", "the gate to the top")
    (line,) = re.findall(r"line (\d+) of its file comes before", done.stdout)
    text = (project.versions / "c3.py").read_text().splitlines()[int(line) - 1]
    assert "op.execute" in text


@pytest.mark.requires("transactional_ddl")
def test_transaction_of_env_py_that_cannot_be_left(project: AlembicProject) -> None:
    env = project.directory / "migrations/env.py"
    begins = '        connection.exec_driver_sql("SELECT 1")\n        context.configure('
    env.write_text(env.read_text().replace("        context.configure(\n", begins + "\n", 1))
    assert "SELECT 1" in env.read_text()
    declare(project, SET, gate=GATE)
    refused(project, "env.py has begun the transaction itself", "`alembic upgrade b2` first")


@pytest.mark.requires("server")
@pytest.mark.parametrize("is_counting", [False, True], ids=["where", "no where"])
def test_script_checks_on_the_server(
    project: AlembicProject, engine: sa.Engine, is_counting: bool
) -> None:
    """`alembic upgrade --sql`, given to the database: it stops at the gate, or passes."""
    declare(project, COUNTING if is_counting else SET, gate=GATE)
    project.alembic("upgrade", "b2")
    script = project.alembic("upgrade", "b2:c3", "--sql").stdout
    assert project.backfill("run", "--limit=10").returncode == 3
    with pytest.raises(sa.exc.DBAPIError) as caught:
        execute(engine, script)
    assert "Backfill fill_doubled is not complete" in str(caught.value.orig)
    assert not sa.inspect(engine).has_table("later")
    assert project.backfill("run").returncode == 0
    execute(engine, script)
    assert sa.inspect(engine).has_table("later")


@pytest.mark.requires("server")
def test_script_for_an_empty_database(project: AlembicProject, engine: sa.Engine) -> None:
    """Nothing is there to be checked, our tables neither."""
    declare(project, COUNTING, gate=GATE)
    project.revision("a1", body=CREATE_ITEMS)
    execute(engine, project.alembic("upgrade", "head", "--sql").stdout)
    assert sa.inspect(engine).has_table("later")


def execute(engine: sa.Engine, script: str) -> None:
    """As a client does: statement by statement, and no further after an error."""
    text = re.sub(r"^--.*$", "", script, flags=re.MULTILINE)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            for statement in re.split(r";\n(?=\n|SET|EXEC|\Z)", text):
                if statement.strip():
                    connection.exec_driver_sql(statement.replace("%", "%%"))
        except sa.exc.DBAPIError:
            connection.exec_driver_sql("ROLLBACK")
            raise
