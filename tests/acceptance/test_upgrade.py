"""`backfill upgrade`: revisions and backfills in one go, stopped and continued like a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.acceptance.shapes import (
    BODY,
    COUNT_UP,
    CREATE_COUNTERS,
    GATE,
    ROWS,
    alembic_init,
    assert_filled,
    edit,
    edit_env,
    flask_init,
    revision,
    succeeds,
)
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from pathlib import Path

    from tests.databases import Database

CREATE = """
from backfill import Backfill


def upgrade():
    items = op.create_table(
        "items",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("amount", sa.Integer, nullable=False),
    )
    op.bulk_insert(items, [{"id": i, "amount": i} for i in range(ROWS)])


"""
FILLED = """
from backfill import Backfill


def upgrade():
    op.add_column("items", sa.Column("NEW", sa.Integer))


class Fill(Backfill):
    name = "fill_NEW"
    table = "items"
    where = "NEW IS NULL"
    values = {"NEW": "OLD * 2"}
"""
CONTRACT = """
import backfill


def upgrade():
    op.require_backfill("fill_NEW")
    with op.batch_alter_table("items") as batch:
        batch.alter_column("NEW", existing_type=sa.Integer(), nullable=False)
        batch.drop_column("OLD")
"""
COUNT_RUNS = "config = context.config\n"
COUNTED = f"""{COUNT_RUNS}
from pathlib import Path

counter = Path("env.runs")
counter.write_text((counter.read_text() if counter.exists() else "") + "x")
"""


@pytest.fixture
def sqlite(tmp_path: Path) -> AlembicProject:
    return AlembicProject.create(tmp_path / "project", f"sqlite:///{tmp_path / 'test.sqlite3'}")


def two_triples(project: AlembicProject, rows: int = 30) -> None:
    """Each column is filled from the one before, which is then dropped."""
    project.revision("a1", body=CREATE.replace("ROWS", str(rows)))
    down = "a1"
    for number, (new, old) in enumerate([("doubled", "amount"), ("quadrupled", "doubled")]):
        for kind, body in (("expand", FILLED), ("contract", CONTRACT)):
            name = f"{kind}{number}"
            project.revision(name, down=down, body=body.replace("NEW", new).replace("OLD", old))
            down = name
    edit_env(project, (COUNT_RUNS, COUNTED))


def runs_of_env(project: AlembicProject) -> int:
    return len((project.directory / "env.runs").read_text())


def heads(project: AlembicProject) -> list[str]:
    with engine_of(project).connect() as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version")
        return sorted(found.scalars())


def engine_of(project: AlembicProject) -> sa.Engine:
    url = f"sqlite:///{project.directory.parent / 'test.sqlite3'}"
    return sa.create_engine(url, poolclass=sa.NullPool)


def test_two_triples_in_one_go(database: Database, engine: sa.Engine, tmp_path: Path) -> None:
    project = AlembicProject.create(tmp_path / "project", database.url)
    two_triples(project)
    assert json.loads(project.backfill("upgrade", "--dry-run", "--json").stdout)[1] == {
        "database": "",
        "revision": "expand0",
        "backfills": ["fill_doubled"],
    }
    succeeds(project.backfill("upgrade"))
    columns = {one["name"]: one["nullable"] for one in sa.inspect(engine).get_columns("items")}
    assert columns == {"id": False, "quadrupled": False}
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT count(*), sum(quadrupled) FROM items")).one()
    assert tuple(found) == (30, sum(range(30)) * 4)
    succeeds(project.backfill("upgrade"))  # nothing is to be done


def test_new_database_in_one_stretch(sqlite: AlembicProject) -> None:
    two_triples(sqlite, rows=0)
    succeeds(sqlite.backfill("upgrade", "heads"))
    assert runs_of_env(sqlite) == 2  # to see where the database stands, and to migrate
    assert heads(sqlite) == ["contract1"]


def test_stops_like_a_run_and_goes_on(sqlite: AlembicProject) -> None:
    two_triples(sqlite)
    stopped = sqlite.backfill("upgrade", "--limit=10", "--chunk-size=5", "--json")
    assert stopped.returncode == 3, stopped.stderr
    events = [json.loads(line) for line in stopped.stdout.splitlines()]
    assert [one["revision"] for one in events if one["event"] == "upgraded"] == ["a1", "expand0"]
    assert sum(one["changed"] for one in events if one["event"] == "chunk") == 10
    assert heads(sqlite) == ["expand0"]
    waiting = sqlite.backfill("upgrade", "--max-seconds=0")
    assert waiting.returncode == 3, waiting.stderr
    succeeds(sqlite.backfill("pause", "fill_doubled"))
    paused = sqlite.backfill("upgrade")
    assert (paused.returncode, heads(sqlite)) == (3, ["expand0"]), paused.stderr
    succeeds(sqlite.backfill("resume", "fill_doubled"))
    done = succeeds(sqlite.backfill("upgrade"))
    assert "fill_doubled: complete, 30 rows changed" in done.stderr
    assert heads(sqlite) == ["contract1"]


def test_cancelled_backfill_stays_so(sqlite: AlembicProject) -> None:
    """Not even its own gate begins it anew."""
    two_triples(sqlite)
    sqlite.backfill("upgrade", "--limit=10", "--chunk-size=5")
    succeeds(sqlite.backfill("cancel", "fill_doubled"))
    refused = sqlite.backfill("upgrade")
    assert refused.returncode == 1
    assert "It was cancelled, so this command leaves that to you." in refused.stderr
    assert heads(sqlite) == ["expand0"]
    succeeds(sqlite.backfill("run", "fill_doubled"))
    succeeds(sqlite.backfill("upgrade"))


@pytest.mark.parametrize("rows", [30, 0])
def test_what_later_revisions_dropped_is_history(sqlite: AlembicProject, rows: int) -> None:
    """Deploys go on calling `run` and `check`, also on a database that was made anew."""
    two_triples(sqlite, rows)
    if rows:
        succeeds(sqlite.backfill("upgrade"))
    else:
        sqlite.alembic("upgrade", "head")
    again = succeeds(sqlite.backfill("run"))
    assert "fill_doubled: is complete; later revisions have changed" in again.stderr
    complete = ["fill_doubled: complete", "fill_quadrupled: complete"]
    assert succeeds(sqlite.backfill("check")).stdout.splitlines() == complete
    assert succeeds(sqlite.backfill("verify")).stdout.splitlines()[0] == "fill_doubled: 0 pending"
    succeeds(sqlite.backfill("plan"))
    edit(sqlite.versions / "expand0.py", ('"amount * 2"', '"amount * 3"'))
    assert sqlite.backfill("check").returncode == 1  # nobody has proved that one


def test_what_revisions_print_is_no_event(sqlite: AlembicProject) -> None:
    two_triples(sqlite)
    edit_env(sqlite, (COUNT_RUNS, f"{COUNT_RUNS}print('from env.py')\n"))
    edit(sqlite.versions / "a1.py", ("    items =", "    print('a1')\n    items ="))
    done = succeeds(sqlite.backfill("upgrade", "--json"))
    assert all(json.loads(line)["event"] for line in done.stdout.splitlines())
    listed = succeeds(sqlite.backfill("list", "--json"))
    assert [one["name"] for one in json.loads(listed.stdout)] == ["fill_doubled", "fill_quadrupled"]
    assert "from env.py" in listed.stderr


def test_relative_target_is_found_once(sqlite: AlembicProject) -> None:
    two_triples(sqlite)
    succeeds(sqlite.backfill("upgrade", "+3"))
    assert heads(sqlite) == ["contract0"]


def test_quarantined_rows_keep_it_before_the_next_revision(sqlite: AlembicProject) -> None:
    two_triples(sqlite)
    path = sqlite.versions / "expand0.py"
    edit(
        path,
        (
            '    values = {"doubled": "amount * 2"}\n',
            """    reads = ["amount"]
    writes = ["doubled"]

    def transform(self, row):
        return {"doubled": row.amount * 2 // (row.amount != 7)}
""",
        ),
    )
    failed = sqlite.backfill("upgrade")
    assert (failed.returncode, heads(sqlite)) == (5, ["expand0"]), failed.stderr


def test_failing_revision_is_named(sqlite: AlembicProject) -> None:
    two_triples(sqlite)
    path = sqlite.revision("last", down="contract1", body="def upgrade():\n    1 / 0\n")
    failed = sqlite.backfill("upgrade")
    assert failed.returncode == 1
    assert f"Revision last ({path}) failed: ZeroDivisionError at last.py:" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert heads(sqlite) == ["contract1"]


def test_revision_that_does_not_fit_the_schema_says_why(sqlite: AlembicProject) -> None:
    two_triples(sqlite)
    succeeds(sqlite.backfill("upgrade"))
    sqlite.alembic("stamp", "base")
    failed = sqlite.backfill("upgrade")
    assert failed.returncode == 1
    assert "failed: OperationalError: table items already exists." in failed.stderr


def test_gate_of_a_backfill_whose_rows_became_pending_again(sqlite: AlembicProject) -> None:
    two_triples(sqlite)
    succeeds(sqlite.backfill("upgrade", "expand0"))
    with engine_of(sqlite).begin() as connection:
        connection.exec_driver_sql("INSERT INTO items (id, amount) VALUES (99, 99)")
    done = succeeds(sqlite.backfill("upgrade"))
    assert "fill_doubled: complete, 1 rows changed" in done.stderr
    assert heads(sqlite) == ["contract1"]


def test_branches(sqlite: AlembicProject) -> None:
    two_triples(sqlite)
    sqlite.revision("stock", body=BODY)
    edit(
        sqlite.versions / "stock.py",
        ("down_revision = None\n", 'down_revision = None\nbranch_labels = ("warehouse",)\n'),
    )
    sqlite.revision("other", down="stock", body=GATE)
    several = sqlite.backfill("upgrade")
    assert several.returncode == 1
    assert "Multiple head revisions are present" in several.stderr
    succeeds(sqlite.backfill("upgrade", "warehouse@head"))
    assert heads(sqlite) == ["other"]
    sqlite.write("migrations/versions/merged.py", merge("merged", ("other", "contract1")))
    succeeds(sqlite.backfill("upgrade"))
    assert heads(sqlite) == ["merged"]


def merge(name: str, parents: tuple[str, ...]) -> str:
    return revision(name, "").replace("down_revision = None", f"down_revision = {parents!r}")


def test_each_database_goes_its_own_way(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / name}.sqlite3" for name in ("first", "second")]
    project = alembic_init(tmp_path / "project", "multidb")
    for number, url in enumerate(urls):
        invented = "driver://user:pass@localhost/dbname" + ("2" if number else "")
        edit(project.ini, (f"{invented}\n", f"{url}\n"))
    project.revision("a1", body=f'{CREATE_COUNTERS}{COUNT_UP}    database = "engine2"\n')
    gate = GATE.replace("upgrade()", "upgrade(engine_name)").replace(
        "    op.", '    if engine_name == "engine2":\n        op.'
    )
    project.revision("b2", down="a1", body=gate)
    succeeds(project.backfill("upgrade"))
    assert_filled(urls[0], 0)
    assert_filled(urls[1], 1)
    for url in urls:
        with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
            assert connection.exec_driver_sql("SELECT * FROM alembic_version").all() == [("b2",)]


def test_asynchronous_env(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'test.sqlite3'}"
    project = alembic_init(tmp_path / "project", "async", url.replace(":", "+aiosqlite:", 1))
    project.revision("a1", body=BODY)
    project.revision("b2", down="a1", body=GATE)
    succeeds(project.backfill("upgrade"))
    assert_filled(url)
    assert heads(project) == ["b2"]


def test_flask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASK_APP", raising=False)
    url = f"sqlite:///{tmp_path / 'test.sqlite3'}"
    project = flask_init(tmp_path / "project", {"SQLALCHEMY_DATABASE_URI": url})
    project.write("migrations/versions/a1.py", revision("a1", BODY))
    done = succeeds(project.flask("--app", "shop", "backfill", "upgrade"))
    assert f"count_up: complete, {ROWS} rows changed" in done.stderr
    assert_filled(url)


def test_url_that_env_does_not_follow(sqlite: AlembicProject, tmp_path: Path) -> None:
    two_triples(sqlite)
    edit_env(
        sqlite,
        (COUNTED, f"{COUNTED}config.set_main_option('sqlalchemy.url', 'sqlite:///own.sqlite3')\n"),
    )
    refused = sqlite.backfill("--url", f"sqlite:///{tmp_path / 'another.sqlite3'}", "upgrade")
    assert refused.returncode == 1
    assert "does not follow `--url`" in refused.stderr


def test_backfill_that_waits_for_a_later_revision(sqlite: AlembicProject) -> None:
    """Its `depends_on` is declared further up; without that one it is not left out in silence."""
    two_triples(sqlite)
    path = sqlite.versions / "expand0.py"
    early = """

class Early(Backfill):
    table = "items"
    depends_on = ["fill_quadrupled"]

    def apply(self, connection, chunk):
        return connection.execute(chunk.update().values(quadrupled=1)).rowcount
"""
    path.write_text(path.read_text() + early)
    waiting = sqlite.backfill("upgrade", "contract0")
    assert (waiting.returncode, heads(sqlite)) == (1, ["contract0"])
    assert (
        "early: waits for `depends_on` 'fill_quadrupled', which is not complete" in waiting.stderr
    )
    done = succeeds(sqlite.backfill("upgrade"))
    assert "early: complete, 30 rows changed" in done.stderr
    assert heads(sqlite) == ["contract1"]


SECOND = """

class Second(Backfill):
    table = "items"
    where = "seconds IS NULL AND doubled IS NOT NULL"
    values = {"seconds": "doubled + 1"}
    MORE
"""


def second_of_its_revision(project: AlembicProject, more: str) -> None:
    """It has nothing pending before the first has run, and a later revision drops what it reads."""
    project.revision("a1", body=CREATE.replace("ROWS", "30"))
    added = '    op.add_column("items", sa.Column("seconds", sa.Integer))\n\n\nclass Fill'
    body = FILLED.replace("NEW", "doubled").replace("OLD", "amount")
    body = body.replace("\n\nclass Fill", added) + SECOND.replace("MORE", more)
    project.revision("b2", down="a1", body=body)
    dropped = 'def upgrade():\n    op.drop_column("items", "doubled")\n'
    project.revision("c3", down="b2", body=dropped)


@pytest.mark.parametrize("more", ["", 'depends_on = ["fill_doubled"]'], ids=["later", "dependent"])
@pytest.mark.parametrize("before", [None, "b2"], ids=["by-us", "by-alembic"])
def test_second_backfill_of_a_revision_runs_before_the_next_one(
    sqlite: AlembicProject, before: str | None, more: str
) -> None:
    second_of_its_revision(sqlite, more)
    if before is not None:
        sqlite.alembic("upgrade", before)
    done = succeeds(sqlite.backfill("upgrade"))
    assert "second: complete, 30 rows changed" in done.stderr
    with engine_of(sqlite).connect() as connection:
        found = connection.exec_driver_sql("SELECT sum(seconds) FROM items").scalar()
    assert (found, heads(sqlite)) == (sum(2 * i + 1 for i in range(30)), ["c3"])
    succeeds(sqlite.backfill("check"))


def test_cancelled_second_backfill_does_not_follow_the_first(sqlite: AlembicProject) -> None:
    second_of_its_revision(sqlite, "")
    sqlite.alembic("upgrade", "b2")
    succeeds(sqlite.backfill("run", "fill_doubled", "second"))
    with engine_of(sqlite).begin() as connection:
        connection.exec_driver_sql("UPDATE items SET doubled = NULL, seconds = NULL")
    assert sqlite.backfill("run", "fill_doubled", "--limit=5", "--chunk-size=5").returncode == 3
    assert sqlite.backfill("run", "second", "--limit=1", "--chunk-size=1").returncode == 3
    succeeds(sqlite.backfill("cancel", "second"))
    done = succeeds(sqlite.backfill("upgrade"))
    assert "second: was cancelled, and is passed over" in done.stderr
    assert heads(sqlite) == ["c3"]
