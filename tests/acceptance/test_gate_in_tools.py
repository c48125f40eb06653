"""The gate in what stands around Alembic: autogenerate, and the tests of pytest-alembic."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import alembic.command
import pytest
import pytest_alembic
import sqlalchemy as sa
from alembic.config import Config
from pytest_alembic.tests import default as builtin

from backfill.gate import RequireBackfill
from tests.acceptance.test_gate import (
    ADD_COLUMN,
    CREATE_ITEMS,
    DECLARATION,
    GATE,
    WITH_ROWS,
    use_models,
)
from tests.projects import AlembicProject

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DROP = "\n\ndef downgrade():\n    {}\n"


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[AlembicProject]:
    url = f"sqlite:///{tmp_path / 'tools.sqlite3'}"
    with AlembicProject.create(tmp_path / "project", url) as project:
        yield project


def declare(project: AlembicProject, items: str, gate: str = GATE) -> None:
    project.revision("a1", body=items + DROP.format('op.drop_table("items")'))
    column = DROP.format('op.drop_column("items", "doubled")')
    project.revision("b2", down="a1", body=ADD_COLUMN + column + DECLARATION)
    project.revision("c3", down="b2", body=gate + DROP.format('op.drop_table("later")'))


@pytest.mark.parametrize(
    "test",
    [
        builtin.test_single_head_revision,
        builtin.test_upgrade,
        builtin.test_up_down_consistency,
        builtin.test_model_definitions_match_ddl,
    ],
    ids=lambda test: test.__name__,
)
def test_of_pytest_alembic(
    sqlite: AlembicProject, test: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whose migrations run in one process, from the base to the head, and down again."""
    import_from(sqlite, monkeypatch)
    declare(sqlite, CREATE_ITEMS)
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'tools.sqlite3'}")
    config = pytest_alembic.Config(config_options={"file": str(sqlite.ini)})
    with pytest_alembic.runner(config, engine) as runner:
        test(runner)
    engine.dispose()


@pytest.mark.parametrize("inline", [None, True, False])
def test_gate_that_a_hook_of_autogenerate_adds(
    sqlite: AlembicProject, inline: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is rendered with its import, taken back on the way down, and works as it was meant."""
    import_from(sqlite, monkeypatch)
    declare(sqlite, WITH_ROWS)
    (sqlite.versions / "c3.py").unlink()
    sqlite.alembic("upgrade", "b2")

    def add_gate(context: Any, revision: Any, directives: list[Any]) -> None:
        (script,) = directives
        script.upgrade_ops.ops.insert(0, RequireBackfill("fill_doubled", inline=inline))
        assert script.upgrade_ops.as_diffs()[0] == ("require_backfill", "fill_doubled")
        script.upgrade_ops.reverse_into(script.downgrade_ops)

    with (sqlite.directory / "out").open("w") as out:
        alembic.command.revision(
            Config(sqlite.ini, stdout=out),
            autogenerate=True,
            rev_id="c3",
            process_revision_directives=add_gate,
        )
    written = next(sqlite.versions.glob("c3*.py")).read_text()
    said = "" if inline is None else f", inline={inline}"
    assert f"    op.require_backfill('fill_doubled'{said})\n    op.create_table(" in written
    assert "    op.stop_backfill_sync('fill_doubled')\n" in written
    assert "import backfill  # noqa: F401" in written
    done = sqlite.alembic("upgrade", "head", check=False)
    assert (done.returncode == 0) is (inline is True), done.stderr


def import_from(project: AlembicProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let env.py find the project's models, though it runs in this process."""
    use_models(project)
    monkeypatch.syspath_prepend(project.directory)
    monkeypatch.delitem(sys.modules, "models", raising=False)
