"""Projects as their tool's own `init` makes them, each with a table to count up."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alembic.config
import pytest
import sqlalchemy as sa

from tests.acceptance.counting import values_of_n
from tests.projects import REVISION, TIMEOUT_SECONDS, AlembicProject

if TYPE_CHECKING:
    from subprocess import CompletedProcess

ROWS = 40

CREATE_COUNTERS = f"""
from backfill import Backfill


def upgrade(**engine_name):
    table = op.create_table(
        "counters",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer, nullable=False),
    )
    op.bulk_insert(table, [{{"id": i, "n": 0}} for i in range({ROWS})])


"""
COUNT_UP = '''
class CountUp(Backfill):
    """Add one to every row."""

    table = "counters"
    values = {"n": "n + 1"}
'''
BODY = CREATE_COUNTERS + COUNT_UP
GATE = """
import backfill


def upgrade():
    op.require_backfill("count_up")
"""


def alembic_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", alembic.__version__)[:2])


needs_pyproject = pytest.mark.skipif(
    alembic_version() < (1, 16), reason="Alembic reads pyproject.toml since 1.16"
)


def revision(name: str, body: str, *, depends_on: str | None = None) -> str:
    """The text of a first revision."""
    head = REVISION.format(message="A test.", revision=name, down=None)
    return f"{head}\ndepends_on = {depends_on!r}\n{body}"


def alembic_init(directory: Path, template: str, url: str | None = None) -> AlembicProject:
    """What `alembic init -t TEMPLATE migrations` makes in an empty directory."""
    directory.mkdir(parents=True)
    project = AlembicProject(directory)
    before = Path.cwd()
    os.chdir(directory)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            alembic.config.main(["init", "-t", template, "migrations"])
    finally:
        os.chdir(before)
    if url is not None:
        project.set_url(url)
    return project


def edit(path: Path, *replacements: tuple[str, str]) -> None:
    """Replace what stands in a file exactly once."""
    text = path.read_text()
    for old, new in replacements:
        assert text.count(old) == 1, (old, text)
        text = text.replace(old, new)
    path.write_text(text)


def edit_env(project: AlembicProject, *replacements: tuple[str, str]) -> None:
    edit(project.directory / "migrations" / "env.py", *replacements)


APPLICATION = """
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
migrate = Migrate()


def create_app():
    app = Flask(__name__)
    app.config.update({config!r})
    db.init_app(app)
    migrate.init_app(app, db, directory={directory!r})
    return app
"""


class FlaskProject(AlembicProject):
    """What `flask db init` makes beside a user's package `shop` with an app factory."""

    def flask(self, *arguments: str) -> CompletedProcess[str]:
        """Run `flask` to its end, whatever its exit code."""
        return self._run("flask", arguments, TIMEOUT_SECONDS)


def flask_init(
    directory: Path, config: dict[str, Any], *options: str, migrations: str = "migrations"
) -> FlaskProject:
    """Write the application, and do `flask --app shop db init`."""
    directory.mkdir(parents=True)
    project = FlaskProject(directory)
    text = APPLICATION.format(config=config, directory=migrations)
    project.write("shop/__init__.py", text)
    succeeds(project.flask("--app", "shop", "db", "init", *options))
    return project


def succeeds(done: CompletedProcess[str]) -> CompletedProcess[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def assert_filled(url: str, counted: int = 1) -> None:
    """Every row was counted so often."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    assert values_of_n(engine) == {counted: ROWS}


def assert_runs(project: AlembicProject, url: str, *options: str) -> None:
    """From an empty database to a filled one; `url` is of a synchronous driver."""
    project.alembic(*options, "upgrade", "head")
    done = project.backfill(*options, "run")
    assert done.returncode == 0, done.stderr
    assert f"complete, {ROWS} rows changed" in done.stderr
    assert_filled(url)
