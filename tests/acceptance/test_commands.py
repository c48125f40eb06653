"""Every command as a script uses it: documents, exit codes, options, and errors in one line."""

from __future__ import annotations

import json
import re
from signal import SIGINT
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.acceptance.counting import (
    PATIENCE_SECONDS,
    PYTHON,
    events,
    prepare,
    start_and_wait_for_a_chunk,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from subprocess import CompletedProcess

    from tests.databases import Database
    from tests.projects import AlembicProject

pytestmark = pytest.mark.by_turns

ROWS = 100
BAD = 30  # the row that no transform can do

FIRST = '''
from backfill import Backfill


def upgrade():
    items = op.create_table(
        "items",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("amount", sa.Integer, nullable=False),
        sa.Column("doubled", sa.Integer),
        sa.Column("half", sa.Integer),
    )
    op.bulk_insert(items, [{"id": i, "amount": i} for i in range(1, 101)])


class FillDoubled(Backfill):
    """Double the amounts."""

    table = "items"
    where = "doubled IS NULL"
    values = {"doubled": "amount * 2"}
'''
SECOND = '''
from backfill import Backfill


class Halve(Backfill):
    """Halve the amounts."""

    table = "items"
    where = "half IS NULL"
    reads = ["amount"]
    writes = ["half"]

    def transform(self, row):
        if row.amount == 30:
            raise ValueError(f"secret {row.amount}")
        return {"half": row.amount // 2}
'''
WAITING = '''
from backfill import Backfill


class Later(Backfill):
    """Wait for a revision that is not applied."""

    table = "items"
    values = {"doubled": "0"}
'''
NUMBER, TEXT, NOTHING = (int, float), str, type(None)
STATUS_TYPES = {
    "name": TEXT,
    "revision": TEXT,
    "status": TEXT,
    "rows_scanned": int,
    "rows_changed": int,
    "rows_estimated": (int, NOTHING),
    "rows_per_second": NUMBER,
    "seconds_left": (int, float, NOTHING),
    "failures": int,
    "throttled": (TEXT, NOTHING),
    "set": dict,
    "sync": bool,
    "problem": (TEXT, NOTHING),
    "ranges": list,
}
RANGE_TYPES = {
    "lower": (list, NOTHING),
    "upper": (list, NOTHING),
    "cursor": (list, NOTHING),
    "rows_scanned": int,
    "rows_changed": int,
    "owner": (TEXT, NOTHING),
    "lease_expires": (TEXT, NOTHING),
    "seconds_quiet": (int, float, NOTHING),
}


@pytest.fixture
def declared(project: AlembicProject) -> AlembicProject:
    """Three backfills, two of them due; file names that sort against the revisions' order."""
    project.revision("zz1", body=FIRST)
    project.revision("mm2", down="zz1", body=SECOND)
    project.revision("aa3", down="mm2", body=WAITING)
    project.alembic("upgrade", "mm2")
    return project


def test_documents_before_the_first_run(declared: AlembicProject, engine: sa.Engine) -> None:
    """Reading commands need no state tables, and make none."""
    assert documents(declared, "list") == [
        listed("fill_doubled", "zz1", "Double the amounts."),
        listed("halve", "mm2", "Halve the amounts."),
        listed("later", "aa3", "Wait for a revision that is not applied.", applied=False),
    ]
    found = documents(declared, "status")
    assert [one["status"] for one in found] == ["pending"] * 3
    for one in found:
        assert_types(one, STATUS_TYPES)
    assert documents(declared, "failures") == []
    assert documents(declared, "verify", code=1) == [
        {"name": "fill_doubled", "pending": ROWS},
        {"name": "halve", "pending": ROWS},
    ]
    assert set(sa.inspect(engine).get_table_names()) == {"items", "alembic_version"}


def test_documents_with_a_quarantined_row(declared: AlembicProject) -> None:
    done = declared.backfill("run", "--json", "halve", "fill_doubled")
    assert done.returncode == 5, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"started", "chunk", "quarantined", "finished"} <= {line["event"] for line in lines}
    started = [line["name"] for line in lines if line["event"] == "started"]
    assert started == ["fill_doubled", "halve"], "the revision graph gives the order"
    assert f"secret {BAD}" not in done.stdout + done.stderr  # the code is shown, no value

    first, second, third = documents(declared, "status")
    for one in (first, second, third):
        assert_types(one, STATUS_TYPES)
        for part in one["ranges"]:
            assert_types(part, RANGE_TYPES)
    assert (first["status"], first["rows_scanned"], first["rows_changed"]) == (
        "succeeded",
        ROWS,
        ROWS,
    )
    assert (second["rows_changed"], second["failures"]) == (ROWS - 1, 1)
    assert (third["status"], third["ranges"]) == ("pending", [])
    assert second["ranges"][0]["cursor"] == [ROWS]

    (failure,) = documents(declared, "failures", "halve")
    assert_types(failure, {"name": TEXT, "key": list, "error": TEXT, "attempts": int})
    assert (failure["name"], failure["key"], failure["attempts"]) == ("halve", [BAD], 1)
    assert documents(declared, "verify", "halve", code=1) == [{"name": "halve", "pending": 1}]
    checked = documents(declared, "check", code=1)
    assert [(one["name"], one["complete"]) for one in checked] == [
        ("fill_doubled", True),
        ("halve", False),
    ]
    for one in checked:
        assert_types(one, {"name": TEXT, "complete": bool, "reason": (TEXT, NOTHING)})

    declared.revision("mm2", down="zz1", body=SECOND.replace("== 30", "== -1"))
    retry_beside_a_flag(declared)
    assert documents(declared, "failures") == []
    assert [one["complete"] for one in documents(declared, "check")] == [True, True]
    assert documents(declared, "status", "halve")[0]["rows_changed"] == ROWS


def retry_beside_a_flag(project: AlembicProject) -> None:
    """What lets a run wait lets this wait, too: here a flag, until it is taken away."""
    flag = project.directory / "flag"
    flag.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACKFILL_THROTTLE_FILE", str(flag))
        retrying = project.start("failures", "--retry", "halve")
    wait_until(lambda: "waits: flag file" in retrying.read_stderr(), retrying)
    assert len(documents(project, "failures")) == 1
    flag.unlink()
    assert retrying.wait(PATIENCE_SECONDS) == 0, retrying.read_stderr()


def test_forecasts_change_nothing(declared: AlembicProject, engine: sa.Engine) -> None:
    before = rows(engine)
    shown = declared.backfill("plan", "fill_doubled")
    assert shown.returncode == 0, shown.stderr
    without_labels = re.sub(r" /\*.*?\*/", "", shown.stdout)
    assert "UPDATE items SET doubled" in without_labels
    for command in (("plan",), ("run", "--dry-run")):
        found = documents(declared, *command)
        assert [one["name"] for one in found] == ["fill_doubled", "halve"]
        assert rows(engine) == before
    assert set(sa.inspect(engine).get_table_names()) == {"items", "alembic_version"}


def test_plan_of_what_is_complete_warns_of_nothing(declared: AlembicProject) -> None:
    assert declared.backfill("run", "fill_doubled").returncode == 0
    first, second = documents(declared, "plan")
    assert (first["complete"], first["warnings"], first["chunk_rows"]) == (True, [], 0)
    assert (second["complete"], second["chunk_rows"] > 0) == (False, True)


def test_backfill_of_a_waiting_revision(declared: AlembicProject, engine: sa.Engine) -> None:
    """Without its name it is not due; with it, the way out is told."""
    assert_one_line_error(declared.backfill("run", "later"), "later", "alembic upgrade aa3")
    done = declared.backfill("run")
    assert done.returncode == 5, done.stderr
    assert all(doubled == 2 * amount for _, amount, doubled, _ in rows(engine))


def test_exit_codes(
    project: AlembicProject, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 to 4 here; 5 is in test_documents_with_a_quarantined_row."""
    prepare(project, engine, PYTHON, 1_000)
    assert project.backfill("check").returncode == 1
    assert project.backfill("run", "--no-such-option").returncode == 2
    assert project.backfill("run", "--limit=10").returncode == 3
    monkeypatch.setenv("ROW_SECONDS", "0.05")  # it is stopped long before its end
    runner = start_and_wait_for_a_chunk(project, "--chunk-size=20")
    assert project.backfill("run").returncode == 4
    runner.send_signal(SIGINT)
    assert runner.wait(PATIENCE_SECONDS) == 3
    assert events(runner)[-1]["event"] == "finished"
    monkeypatch.delenv("ROW_SECONDS")
    assert project.backfill("run").returncode == 0
    assert project.backfill("verify").returncode == 0


def test_new_writes_a_class_that_runs_when_edited(declared: AlembicProject) -> None:
    done = declared.backfill("new", "fill_anew", "--revision=mm2", "--table=items")
    assert done.returncode == 0, done.stderr
    file = declared.directory / "migrations/backfills/fill_anew.py"
    assert str(file) in done.stdout
    again = declared.backfill("new", "fill_anew", "--revision=mm2", "--table=items")
    assert_one_line_error(again, "is called 'fill_anew' already")
    unknown = declared.backfill("new", "other", "--revision=nowhere", "--table=items")
    assert_one_line_error(unknown, "nowhere")
    edited = file.read_text().replace("new_column", "doubled").replace("lower(old_column)", "7")
    file.write_text(edited)
    ran = declared.backfill("run", "fill_anew")
    assert ran.returncode == 0, ran.stderr
    names = [one["name"] for one in documents(declared, "list")]
    assert set(names) == {"fill_doubled", "halve", "fill_anew", "later"}
    assert names[-1] == "later"


def test_new_takes_no_name_that_is_taken(declared: AlembicProject) -> None:
    refused = declared.backfill("new", "fill_doubled", "--revision=mm2", "--table=items")
    assert refused.returncode == 1
    assert "A backfill is called 'fill_doubled' already" in refused.stderr
    assert declared.backfill("list").returncode == 0


def test_a_watched_status_ends_quietly(declared: AlembicProject) -> None:
    """As people see it, and as a program reads it: an array a line."""
    for options, lines in (((), 2), (("--json",), 1)):
        watching = declared.start("status", "--watch", *options)
        wait_until(lambda: watching.read_stdout().count("\n") >= 2 * lines, watching)  # noqa: B023
        watching.send_signal(SIGINT)
        assert watching.wait(PATIENCE_SECONDS) == 0
        assert watching.read_stderr() == ""
        if "--json" in options:
            for line in watching.read_stdout().splitlines():
                assert json.loads(line)[0]["name"] == "fill_doubled"


def test_unknown_name_is_told_with_close_ones(declared: AlembicProject) -> None:
    for command in ("run", "status"):
        done = declared.backfill(command, "fill_dubled")
        assert_one_line_error(done, "Did you mean fill_doubled?", code=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "--nice", "-1"], "nice"),
        (["run", "--workers", "0"], "workers"),
        (["run", "--dry-run", "--rows-per-second", "0"], "rows_per_second"),
        (["run", "--window", "22-6"], "window"),
        (["run", "--max-failures", "-1"], "max_failures"),
        (["upgrade", "--processes", "0"], "processes"),
        (["plan", "--chunk-size", "0"], "chunk_size"),
        (["set", "fill_doubled", "nice=x"], "nice"),
        (["set", "fill_doubled", "workers=2"], "cannot be changed while a run lasts"),
        (["set", "fill_doubled", "no_such_setting=2"], "unknown setting"),
    ],
)
def test_impossible_values_on_the_command_line_are_usage_errors(
    declared: AlembicProject, engine: sa.Engine, arguments: list[str], told: str
) -> None:
    assert_one_line_error(declared.backfill(*arguments), told, code=2)
    assert not any(doubled for _, _, doubled, _ in rows(engine))


def test_impossible_values_in_the_environment_are_no_usage_errors(
    declared: AlembicProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKFILL_NICE", "-1")
    assert_one_line_error(declared.backfill("run"), "The environment sets nice", code=1)


def test_steering_twice_is_calm(declared: AlembicProject) -> None:
    """The second pause finds what it wants; what cannot be is refused with the way on."""
    assert declared.backfill("run", "--limit=10", "fill_doubled").returncode == 3
    for command, words in (
        ("pause", "is paused already"),
        ("resume", "is not paused"),
        ("cancel", "is cancelled already"),
    ):
        assert declared.backfill(command, "fill_doubled").returncode == 0
        again = declared.backfill(command, "fill_doubled")
        assert (again.returncode, again.stderr) == (0, "")
        assert words in again.stdout
    refused = declared.backfill("pause", "fill_doubled")
    assert_one_line_error(
        refused, "is cancelled and cannot be paused", "`backfill run fill_doubled`"
    )


def test_config_and_url_and_x_options(
    declared: AlembicProject, database: Database, tmp_path: Path
) -> None:
    ini = declared.directory / "alembic.ini"
    elsewhere = ini.rename(declared.directory / "other.ini")
    assert_one_line_error(declared.backfill("list"), "alembic.ini", "-c")
    assert names_with(declared, "-c", str(elsewhere)) == ["fill_doubled", "halve"]

    elsewhere.rename(ini)
    declared.set_url(f"sqlite:///{tmp_path / 'nowhere' / 'none.sqlite3'}")
    assert names_with(declared, "--url", database.url) == ["fill_doubled", "halve"]

    env = declared.directory / "migrations/env.py"
    text = env.read_text()
    insert = (
        'config.set_main_option("sqlalchemy.url", '
        'context.get_x_argument(as_dictionary=True)["db"].replace("%", "%%"))'
    )
    assert "config = context.config\n" in text
    env.write_text(
        text.replace("config = context.config\n", f"config = context.config\n{insert}\n")
    )
    assert names_with(declared, "-x", f"db={database.url}") == ["fill_doubled", "halve"]


def test_url_wins_over_an_environment_that_ignores_the_configuration(
    declared: AlembicProject, database: Database, engine: sa.Engine, tmp_path: Path
) -> None:
    """Many projects build their engine from settings of their own."""
    env = declared.directory / "migrations/env.py"
    own = f'create_engine("sqlite:///{tmp_path / "own.sqlite3"}")'
    text = env.read_text()
    start = text.index("engine_from_config(")
    end = text.index(")\n\n    with connectable", start) + 1
    env.write_text(
        text[:start].replace("import engine_from_config", "import create_engine") + own + text[end:]
    )
    assert declared.backfill("--url", database.url, "run", "fill_doubled").returncode == 0
    assert all(doubled == 2 * amount for _, amount, doubled, _ in rows(engine))


@pytest.mark.requires("server")
@pytest.mark.parametrize("way", ["configuration", "option"])
def test_unusable_databases_are_told_in_one_line(
    declared: AlembicProject, database: Database, way: str
) -> None:
    right = sa.make_url(database.url)
    wrong = {
        "wrong password": right.set(password="hush%:/secret"),
        "nobody listens": right.set(port=1, password="hush%:/secret"),
    }
    for url in wrong.values():
        text = url.render_as_string(hide_password=False)
        if way == "option":
            done = declared.backfill("--url", text, "run")
        else:
            declared.set_url(text)
            done = declared.backfill("run")
        assert_one_line_error(done)
        for secret in ("hush", str(right.password)):
            assert secret not in done.stdout + done.stderr


def test_missing_database_file_is_told_in_one_line(
    declared: AlembicProject, tmp_path: Path
) -> None:
    done = declared.backfill("--url", f"sqlite:///{tmp_path / 'no' / 'folder.db'}", "run")
    assert_one_line_error(done, "unable to open database file")
    assert_one_line_error(declared.backfill("--url", "no-such-driver://x:hush@y/z", "run"))


def documents(
    project: AlembicProject, command: str, *arguments: str, code: int = 0
) -> list[dict[str, Any]]:
    """What a command prints with --json: always one array of objects."""
    done = project.backfill(command, *arguments, "--json")
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, list)
    assert all(isinstance(one, dict) for one in document)
    return document


def listed(
    name: str, revision: str, description: str, *, applied: bool = True
) -> Mapping[str, object]:
    return {
        "name": name,
        "revision": revision,
        "applied": applied,
        "status": "pending",
        "description": description,
        "problem": None,
    }


def names_with(project: AlembicProject, *options: str) -> list[str]:
    """The applied backfills, as a command with these options before it sees them."""
    done = project.backfill(*options, "list", "--json")
    assert done.returncode == 0, done.stderr
    return [one["name"] for one in json.loads(done.stdout) if one["applied"]]


def rows(engine: sa.Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        query = sa.text("SELECT id, amount, doubled, half FROM items ORDER BY id")
        return [tuple(row) for row in connection.execute(query)]


def assert_types(document: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """The promised names with their types; further names are allowed."""
    assert set(types) <= set(document)
    for name, kinds in types.items():
        value = document[name]
        is_right = isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))
        assert is_right, f"{name} is {value!r}"


def assert_one_line_error(done: CompletedProcess[str], *parts: str, code: int = 1) -> None:
    said = done.stderr.splitlines()
    assert (done.returncode, len(said)) == (code, 1), done.stderr
    assert said[0].startswith("Error: ")
    for part in parts:
        assert part in said[0]


def test_env_py_that_exits_is_no_success(declared: AlembicProject) -> None:
    env = declared.directory / "migrations/env.py"
    env.write_text("import sys\nsys.exit(0)\n" + env.read_text())
    done = declared.backfill("check")
    assert done.returncode == 1
    assert "env.py could not be run: SystemExit" in done.stderr


def test_a_class_may_have_two_names_in_its_file(declared: AlembicProject) -> None:
    path = declared.versions / "zz1.py"
    path.write_text(path.read_text() + "\n\nOldName = FillDoubled\n")
    assert names_with(declared) == ["fill_doubled", "halve"]
    assert declared.backfill("run", "fill_doubled").returncode == 0
