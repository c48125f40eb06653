"""`backfill doctor` as a script uses it: exit codes, its document, and inside of Flask."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.acceptance.shapes import flask_init, revision
from tests.databases import sqlite_database
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from pathlib import Path

TRAPS = """
def upgrade():
    op.get_bind().commit()
    op.execute("UPDATE users SET email = lower(email) WHERE email <> lower(email)")
"""
OFFER = '''\
from backfill import Backfill


class FillUsersEmail(Backfill):
    """Fill users email."""

    table = "users"
    where = "email <> lower(email)"
    values = {"email": "lower(email)"}'''


def test_findings_and_exit_codes(tmp_path: Path) -> None:
    with AlembicProject.create(tmp_path / "project", sqlite_database(tmp_path).url) as project:
        clean = project.backfill("doctor")
        assert (clean.returncode, clean.stdout) == (0, "Nothing found.\n")

        path = project.revision("a1", body=TRAPS)
        done = project.backfill("doctor", "--json")
        assert done.returncode == 1
        commit, update = json.loads(done.stdout)
        names = ["code", "severity", "where", "line", "message", "advice", "offer"]
        assert list(commit) == list(update) == names
        assert (commit["code"], commit["severity"]) == ("commit-in-revision", "error")
        where = str(path.relative_to(project.directory))
        assert (update["where"], update["severity"], update["offer"]) == (where, "warning", OFFER)
        assert path.read_text().splitlines()[update["line"] - 1].startswith("    op.execute(")

        shown = project.backfill("doctor")
        assert shown.returncode == 1
        assert f"{where}:{commit['line']}: error: " in shown.stdout
        assert '        values = {"email": "lower(email)"}' in shown.stdout  # to be copied
        assert shown.stdout.endswith("2 found.\n")

        text = path.read_text().replace("    op.execute", "    # backfill: ok\n    op.execute")
        path.write_text(text)
        meant = project.backfill("doctor", "--json", "--ignore=commit-in-revision")
        assert (meant.returncode, meant.stdout) == (0, "[]\n")


def test_inside_of_flask(tmp_path: Path) -> None:
    config = {"SQLALCHEMY_DATABASE_URI": sqlite_database(tmp_path).url}
    project = flask_init(tmp_path / "project", config)
    project.write("migrations/versions/a1.py", revision("a1", TRAPS))
    done = project.flask("--app", "shop", "backfill", "doctor", "--json")
    assert done.returncode == 1, done.stderr
    assert [one["code"] for one in json.loads(done.stdout)] == [
        "commit-in-revision",
        "unbatched-write",
    ]
