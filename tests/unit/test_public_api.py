"""What a user may import, and what that costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import backfill
from tests.projects import REPOSITORY


def test_public_names() -> None:
    assert sorted(backfill.__all__) == [
        "Backfill",
        "BackfillError",
        "DeclarationWarning",
        "__version__",
        "is_complete",
    ]
    assert all(hasattr(backfill, name) for name in backfill.__all__)


def test_public_methods_of_a_declaration() -> None:
    """A user's own helper of a name that we take later would be called instead of ours."""
    names = {name for name in vars(backfill.Backfill) if not name.startswith("_")}
    assert names - set(backfill.Backfill.__annotations__) == {
        "transform",
        "transform_chunk",
        "apply",
        "throttle",
        "description",
        "tuning",
        "fingerprint",
    }


def test_version_is_the_one_of_the_package() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{backfill.__version__}"\n' in text


def modules_after(statement: str) -> set[str]:
    """The modules in a fresh interpreter after a statement."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import backfill", "from backfill import Backfill"])
def test_import_is_light(statement: str) -> None:
    """It happens in every revision file, and so in each of Alembic's own commands."""
    heavy = {"tqdm", "tenacity", "click", "psycopg", "pymysql", "backfill.cli", "backfill.runner"}
    assert not heavy & modules_after(statement)


def test_import_registers_the_gate() -> None:
    loaded = modules_after("import backfill; from alembic import op; op.require_backfill")
    assert "backfill.operations" in loaded


def test_types_are_shipped() -> None:
    assert files("backfill").joinpath("py.typed").is_file()


def test_every_module_says_what_it_is_for() -> None:
    for path in Path(backfill.__path__[0]).rglob("*.py"):
        assert path.read_text(encoding="utf-8").startswith('"""'), path
