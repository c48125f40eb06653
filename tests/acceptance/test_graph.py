"""Alembic's graph as projects have it: branches, merges, `depends_on`, revisions that are gone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from backfill.discovery import discover
from backfill.errors import DeclarationError
from backfill.scaffold import write_class
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLE = """
def upgrade():
    items = op.create_table(
        "items",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("a", sa.Integer),
        sa.Column("b", sa.Integer),
        sa.Column("c", sa.Integer),
    )
    op.bulk_insert(items, [{"id": i} for i in range(1, 21)])
"""
CLASS = '''
from backfill import Backfill


class Fill{name}(Backfill):
    """Fill it."""

    name = "fill_{name}"
    {revision}
    table = "items"
    where = "{name} IS NULL"
    values = {{"{name}": "{value}"}}
    {more}
'''


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[AlembicProject]:
    """The graph does not depend on the database."""
    url = f"sqlite:///{tmp_path / 'graph.sqlite3'}"
    with AlembicProject.create(tmp_path / "project", url) as project:
        yield project


def declaration(name: str, revision: str = "", *, value: str = "id", more: str = "") -> str:
    named = f'revision = "{revision}"' if revision else ""
    return CLASS.format(name=name, revision=named, value=value, more=more)


def link(project: AlembicProject, revision: str, down: Any = None, **more: Any) -> None:
    """A revision whose ids sort against the graph, with what Alembic knows of links."""
    body = more.pop("body", "")
    said = "".join(f"{name} = {value!r}\n" for name, value in more.items())
    project.revision(revision, down=down, body=said + body)


def revisions(project: AlembicProject) -> dict[str, str]:
    """The backfills in their order, each with its revision."""
    return {one.name: one.revision for one in discover(script_of(project), frozenset())}


def names(project: AlembicProject) -> list[str]:
    return list(revisions(project))


def script_of(project: AlembicProject) -> ScriptDirectory:
    return ScriptDirectory.from_config(Config(project.ini))


def listed(project: AlembicProject) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in document(project, "list")}


def document(project: AlembicProject, *command: str, code: int = 0) -> list[dict[str, Any]]:
    done = project.backfill(*command, "--json")
    assert done.returncode == code, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_branches_merges_and_dependencies_between_them(sqlite: AlembicProject) -> None:
    """Applied is what the heads have behind them, across `depends_on`; the order is the graph's."""
    link(sqlite, "zzz1", body=TABLE + declaration("a"))
    link(sqlite, "yyy2", "zzz1", branch_labels=("left",))
    link(sqlite, "xxx3", "zzz1", branch_labels=("right",), body=declaration("b"))
    link(sqlite, "ccc4", ("yyy2", "xxx3"))
    link(sqlite, "bbb5", branch_labels=("apart",), depends_on="ccc4", body=declaration("c"))
    assert names(sqlite) == ["fill_a", "fill_b", "fill_c"]

    sqlite.alembic("upgrade", "yyy2")
    assert [one["applied"] for one in document(sqlite, "list")] == [True, False, False]
    sqlite.alembic("upgrade", "right@xxx3")  # two heads in the database
    assert [one["applied"] for one in document(sqlite, "list")] == [True, True, False]
    sqlite.alembic("upgrade", "apart@head")  # one row in alembic_version, with all behind it
    assert [one["applied"] for one in document(sqlite, "list")] == [True, True, True]
    ran = sqlite.backfill("run", "--json")
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    started = [one["name"] for one in events if one["event"] == "started"]
    assert (ran.returncode, started) == (0, ["fill_a", "fill_b", "fill_c"]), ran.stderr


@pytest.mark.parametrize("said", ["a1b2c3d4e5", "a1b2", "shop", "shop@a1b2"])
def test_ids_as_alembic_takes_them(sqlite: AlembicProject, said: str) -> None:
    link(sqlite, "a1b2c3d4e5", branch_labels=("shop",))
    link(sqlite, "f6", "a1b2c3d4e5")
    sqlite.write("migrations/backfills/a.py", declaration("a", said))
    assert revisions(sqlite) == {"fill_a": "a1b2c3d4e5"}


@pytest.mark.parametrize("said", ["head", "heads", "shop@head", "head-1", "a1b2+1"])
def test_id_that_moves_is_for_new_classes_only(sqlite: AlembicProject, said: str) -> None:
    """It is resolved where a class is written, and refused in one that stays."""
    link(sqlite, "a1b2c3d4e5", branch_labels=("shop",), body=TABLE)
    link(sqlite, "f6a7b8", "a1b2c3d4e5")
    sqlite.write("migrations/backfills/a.py", declaration("a", said))
    with pytest.raises(DeclarationError, match="is another one with each new revision"):
        names(sqlite)
    (sqlite.directory / "migrations/backfills/a.py").unlink()
    write_class(script_of(sqlite), "fill_b", said, "items")
    expected = "a1b2c3d4e5" if said == "head-1" else "f6a7b8"
    assert revisions(sqlite) == {"fill_b": expected}


def test_order_on_one_revision(sqlite: AlembicProject) -> None:
    """That of declaration, or what `depends_on` says, which may also lead across revisions."""
    link(sqlite, "z1", body=TABLE + declaration("c") + declaration("b"))
    assert names(sqlite) == ["fill_c", "fill_b"]
    link(sqlite, "z1", body=TABLE + declaration("c", more='depends_on = ["fill_a"]'))
    sqlite.write("migrations/backfills/a.py", declaration("a", "z2"))
    sqlite.write("migrations/backfills/b.py", declaration("b", "z1"))
    link(sqlite, "z2", "z1")
    assert names(sqlite) == ["fill_a", "fill_c", "fill_b"]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (["fill_b"], ["fill_a"], "waits for itself: fill_a -> fill_b -> fill_a"),
        (["fill_a"], [], "waits for itself: fill_a -> fill_a"),
        (["fil_b"], [], "No backfill is called 'fil_b'. Did you mean fill_b"),
    ],
)
def test_dependencies_that_cannot_be(
    sqlite: AlembicProject, first: list[str], second: list[str], words: str
) -> None:
    one = declaration("a", more=f"depends_on = {first}")
    link(sqlite, "z1", body=one + declaration("b", more=f"depends_on = {second}"))
    with pytest.raises(DeclarationError, match=words):
        names(sqlite)


def test_nothing_starts_before_what_it_depends_on(sqlite: AlembicProject) -> None:
    after = 'depends_on = ["fill_b"]'
    body = TABLE + declaration("a", value="b * 2", more=after) + declaration("b")
    link(sqlite, "z1", body=body)
    sqlite.alembic("upgrade", "head")
    alone = sqlite.backfill("run", "fill_a")
    assert alone.returncode == 1
    assert "fill_a: waits for `depends_on` 'fill_b', which is not complete" in alone.stderr
    assert sqlite.backfill("run", "--limit=5", "--chunk-size=5").returncode == 3
    assert [one["rows_changed"] for one in document(sqlite, "status")] == [5, 0]
    assert sqlite.backfill("cancel", "fill_b").returncode == 0
    both = sqlite.backfill("run")
    assert both.returncode == 1
    assert "fill_b: was cancelled" in both.stderr
    assert "fill_a: waits for" in both.stderr
    assert sqlite.backfill("run", "fill_b", "fill_a").returncode == 0
    with sa.create_engine(f"sqlite:///{sqlite.directory.parent / 'graph.sqlite3'}").connect() as c:
        assert c.execute(sa.text("SELECT count(*) FROM items WHERE a = id * 2")).scalar() == 20


def test_revision_that_was_squashed(sqlite: AlembicProject) -> None:
    """The run remembers: what it did stays done, and nothing crashes."""
    link(sqlite, "z1", body=TABLE)
    link(sqlite, "z2", "z1")
    sqlite.write("migrations/backfills/a.py", declaration("a", "z2"))
    sqlite.alembic("upgrade", "head")
    assert sqlite.backfill("run").returncode == 0
    sqlite.alembic("stamp", "z1")
    (sqlite.versions / "z2.py").unlink()

    assert listed(sqlite)["fill_a"]["problem"] == "revision unknown"
    assert "revision unknown" in sqlite.backfill("list").stdout
    (one,) = document(sqlite, "status")
    assert (one["revision"], one["status"]) == ("z2", "succeeded")
    assert document(sqlite, "check")[0]["complete"] is True
    assert sqlite.backfill("run").returncode == 0


def test_revision_that_never_was(sqlite: AlembicProject) -> None:
    """A typing error must not pass for nothing to do."""
    link(sqlite, "z1", body=TABLE)
    sqlite.write("migrations/backfills/a.py", declaration("a", "z9"))
    sqlite.alembic("upgrade", "head")
    assert listed(sqlite)["fill_a"]["problem"] == "revision unknown"
    for command in (["run"], ["run", "fill_a"]):
        refused = sqlite.backfill(*command)
        assert refused.returncode == 1
        assert "a.py: Filla names the revision 'z9', which is not in" in refused.stderr
        assert "Known heads: z1" in refused.stderr
    (checked,) = document(sqlite, "check", code=1)
    assert "its revision z9 is unknown" in checked["reason"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nothing_like_this\n", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ('revision = "b2"\ndown_revision = "gone"\n', "KeyError: 'gone'"),
    ],
)
def test_revision_that_cannot_be_loaded(sqlite: AlembicProject, text: str, told: str) -> None:
    sqlite.revision("a1", body=TABLE + declaration("a"))
    sqlite.alembic("upgrade", "head")
    sqlite.write("migrations/versions/b2.py", text)
    listed = sqlite.backfill("list")
    assert listed.returncode == 1
    assert f"cannot be loaded: {told}" in listed.stderr
    assert "Traceback" not in listed.stderr


@pytest.mark.parametrize("head", ["zzz", "0123456789ab"])
def test_database_that_is_ahead_of_the_code(sqlite: AlembicProject, head: str) -> None:
    """As after a rollback of the application; Alembic has another error for short ids."""
    sqlite.revision("a1", body=TABLE + declaration("a"))
    sqlite.alembic("upgrade", "head")
    with sa.create_engine(f"sqlite:///{sqlite.directory.parent / 'graph.sqlite3'}").begin() as one:
        one.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{head}'")
    listed = sqlite.backfill("list")
    assert listed.returncode == 1
    assert f"The database stands at {head}, which" in listed.stderr
    assert "Traceback" not in listed.stderr


def test_class_that_is_gone(sqlite: AlembicProject) -> None:
    link(sqlite, "z1", body=TABLE)
    file = sqlite.write("migrations/backfills/a.py", declaration("a", "z1"))
    sqlite.write("migrations/backfills/b.py", declaration("b", "z1"))
    sqlite.alembic("upgrade", "head")
    assert sqlite.backfill("run", "fill_a", "--limit=5", "--chunk-size=5").returncode == 3
    file.unlink()

    found = listed(sqlite)
    assert list(found) == ["fill_b", "fill_a"]
    assert (found["fill_a"]["status"], found["fill_a"]["problem"]) == ("pending", "class is gone")
    for command in (["status"], ["status", "fill_a"]):
        one = document(sqlite, *command)[-1]
        assert (one["name"], one["status"], one["rows_changed"]) == ("fill_a", "pending", 5)
    assert [one["name"] for one in document(sqlite, "status", "fill_b", "fill_a")] == [
        "fill_b",
        "fill_a",
    ]
    assert sqlite.backfill("status", "fill_aa").returncode == 2
    assert sqlite.backfill("run").returncode == 0


def test_what_waits_for_another_branch_says_so(sqlite: AlembicProject) -> None:
    """Its gate is met before the other branch's backfill can run."""
    link(sqlite, "z1", body=TABLE)
    link(sqlite, "b2", "z1", body=declaration("b"))
    link(sqlite, "c2", "z1", body=declaration("c", more='depends_on = ["fill_b"]'))
    gate = "\ndef upgrade():\n    op.require_backfill('fill_c')\n"
    link(sqlite, "c3", "c2", body=gate)
    refused = sqlite.backfill("upgrade", "c3")
    assert refused.returncode == 1
    assert "fill_c waits for `depends_on` 'fill_b', which is not complete" in refused.stderr
    assert sqlite.backfill("upgrade", "b2").returncode == 0
    assert sqlite.backfill("upgrade", "c3").returncode == 0


COUNT_UP = """
from backfill import Backfill


class CountUp(Backfill):
    table = "items"
    values = {"a": "coalesce(a, 0) + 1"}
"""
REQUIRES = "\ndef upgrade():\n    op.require_backfill('count_up')\n"


@pytest.mark.parametrize("table", [TABLE, TABLE.replace("21)", "1)")], ids=["rows", "empty"])
def test_gate_beside_the_revision_of_its_backfill(sqlite: AlembicProject, table: str) -> None:
    """Passed on one branch it would count as done before the other one is there."""
    link(sqlite, "z1", body=table)
    link(sqlite, "b2", "z1", body=COUNT_UP)
    link(sqlite, "c2", "z1", body=REQUIRES)
    link(sqlite, "d3", ("b2", "c2"))
    told = "'count_up' runs after revision b2, which is not applied, and revision c2 requires it"
    refused = sqlite.alembic("upgrade", "c2", check=False)
    assert refused.returncode != 0
    assert told in refused.stdout
    assert "Traceback" not in refused.stderr
    upgraded = sqlite.backfill("upgrade", "c2")
    assert upgraded.returncode == 1
    assert f"{told}. Let that come first: `depends_on = 'b2'` in revision c2" in upgraded.stderr
    assert "z1" in sqlite.alembic("current").stdout
    assert [one["status"] for one in document(sqlite, "list")] == ["pending"]

    link(sqlite, "c2", "z1", body=REQUIRES, depends_on="b2")
    assert sqlite.backfill("upgrade", "c2").returncode == 0
    assert sqlite.backfill("upgrade").returncode == 0
    assert sqlite.backfill("run").returncode == 0
    with sa.create_engine(f"sqlite:///{sqlite.directory.parent / 'graph.sqlite3'}").connect() as c:
        assert not c.execute(sa.text("SELECT count(*) FROM items WHERE a IS NOT 1")).scalar()


@pytest.mark.parametrize("links", ["a merge", "depends_on"])
def test_gate_behind_another_branch_in_one_command(sqlite: AlembicProject, links: str) -> None:
    """The steps before it in the same transaction count as applied."""
    link(sqlite, "z1", body=TABLE.replace("21)", "1)"))
    link(sqlite, "b2", "z1", body=COUNT_UP)
    if links == "a merge":
        link(sqlite, "c2", "z1")
        link(sqlite, "d3", ("b2", "c2"), body=REQUIRES)
    else:
        link(sqlite, "c2", "z1", body=REQUIRES, depends_on="b2")
        link(sqlite, "d3", ("b2", "c2"))
    sqlite.alembic("upgrade", "head")
    assert document(sqlite, "check")[0]["complete"] is True


def test_gate_whose_backfill_lost_its_revision(sqlite: AlembicProject) -> None:
    """Squashed: the data say what there is to say."""
    link(sqlite, "z1", body=TABLE.replace("21)", "1)"))
    body = "import backfill\n\ndef upgrade():\n    op.require_backfill('fill_a')\n"
    link(sqlite, "c2", "z1", body=body)
    sqlite.write("migrations/backfills/a.py", declaration("a", "z9"))
    sqlite.alembic("upgrade", "head")


def test_gate_in_the_revision_of_its_backfill(sqlite: AlembicProject) -> None:
    link(sqlite, "z1", body=TABLE.replace("21)", "1)"))
    link(sqlite, "b2", "z1", body=COUNT_UP + REQUIRES)
    sqlite.alembic("upgrade", "head")


def test_one_that_does_not_fit_stops_no_other(sqlite: AlembicProject) -> None:
    """Nobody has gated it, and a later revision has dropped its column."""
    link(sqlite, "z1", body=TABLE)
    link(sqlite, "b2", "z1", body=declaration("b"))
    link(sqlite, "c3", "b2", body=declaration("c", more='depends_on = ["fill_b"]'))
    link(sqlite, "a4", "c3", body=declaration("a"))
    drop = "\ndef upgrade():\n    op.execute('ALTER TABLE items DROP COLUMN b')\n"
    link(sqlite, "b5", "a4", body=drop)
    sqlite.alembic("upgrade", "head")
    ran = sqlite.backfill("run")
    assert ran.returncode == 1
    assert "fill_b: " in ran.stderr
    assert "'b'" in ran.stderr
    assert "fill_c: waits for `depends_on` 'fill_b'" in ran.stderr
    assert "fill_a: complete, 20 rows changed" in ran.stderr
