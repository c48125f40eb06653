"""What the README shows is what the project does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import op

from backfill import Backfill, cli, cli_base, settings

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
CLASSES = [block for block in PYTHON_BLOCKS if "(Backfill)" in block]


def table_after(head: str) -> list[str]:
    """Return the first cells of the table under a head."""
    rows = README.split(head, 1)[1].split("\n\n", 1)[0].splitlines()
    return [row.split("|")[1] for row in rows if row.startswith("|") and "---" not in row]


def test_every_command_is_in_the_table_and_no_other() -> None:
    shown = {
        name
        for cell in table_after("| command | does |")
        for name in re.findall(r"`([a-z]+)|, `([a-z]+)", cell)[0:9]
        for name in name
        if name
    }
    assert shown == set(cli.cli.commands)


def test_every_setting_is_in_the_table_and_no_other() -> None:
    shown = {name for cell in table_after("| name | default | |") for name in quoted(cell)}
    assert shown == settings.NAMES


def test_defaults_are_those_of_the_table() -> None:
    defaults = settings.Settings()
    for row in README.split("| name | default | |", 1)[1].split("\n\n", 1)[0].splitlines():
        cells = row.split("|")
        number = re.match(r"\s*([\d.]+)", cells[2]) if len(cells) > 2 else None
        for name in quoted(cells[1]) if number else ():
            assert getattr(defaults, name) == float(number.group(1)), name


def test_exit_codes_are_those_of_the_table() -> None:
    shown = {int(cell) for cell in table_after("| exit code | means |")}
    assert shown == {v for k, v in vars(cli_base).items() if k.startswith("EXIT_")}


@pytest.mark.parametrize("block", CLASSES)
def test_each_class_is_a_declaration(block: str) -> None:
    names: dict[str, Any] = {"Backfill": Backfill, "sa": sa, "op": op}
    exec(compile(block, "README.md", "exec"), names)
    made = [v for v in names.values() if isinstance(v, type) and issubclass(v, Backfill)]
    assert any(hasattr(declaration, "level") for declaration in made)


def quoted(text: str) -> list[str]:
    return re.findall(r"`([a-z_]+)`", text)
