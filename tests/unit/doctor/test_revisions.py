"""The doctor on revision files: each trap is marked at its line, and nothing else is found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from backfill.doctor.revisions import Files

REVISIONS = sorted((Path(__file__).parent / "revisions").glob("*.py"))


def files(*paths: Path) -> Files:
    return Files.of(paths, [], Path(__file__))


def marked(path: Path) -> list[tuple[int, str]]:
    """The lines that carry `# <- code`."""
    return [
        (number, code)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for code in re.findall(r"# <- ([\w-]+)", line)
    ]


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_finds_what_is_marked_and_nothing_else(path: Path) -> None:
    options = path.with_name("options.py")
    found = [one for one in files(path, options).findings() if one.where.endswith(path.name)]
    assert [(one.line, one.code) for one in found] == marked(path)


def test_every_class_that_is_offered_is_a_right_declaration() -> None:
    offers = [one.offer for one in files(*REVISIONS).findings() if one.offer]
    assert len(offers) > 20
    for offer in offers:
        exec(compile(offer, "offer", "exec"), {})


def test_sql_is_offered_as_the_database_gets_it(tmp_path: Path) -> None:
    """Without text()'s escapes, on one line, and with its strings as they are."""
    revision = tmp_path / "a1.py"
    revision.write_text(
        "from alembic import op\nrevision = 'a1'\ndown_revision = None\n"
        'def upgrade():\n    op.execute(r"""UPDATE t\n'
        "SET opens = '8\\:00',  -- with\n  note = /* a */ 'two  spaces'\n"
        "WHERE opens = '--  \\:x'\n" + '""")\n'
    )
    (found,) = [one for one in files(revision).findings() if one.offer]
    made: dict[str, Any] = {}
    exec(compile(str(found.offer), "offer", "exec"), made)
    assert made["FillTOpens"].values == {"opens": "'8:00'", "note": "'two  spaces'"}
    assert made["FillTOpens"].where == "opens = '--  :x'"


def test_what_cuts_its_own_chunks_is_offered_without_their_bound(tmp_path: Path) -> None:
    """It would find other rows each time, and a DELETE without it all of them."""
    revision = tmp_path / "a1.py"
    some = "WHERE id IN (SELECT id FROM t WHERE n IS NULL LIMIT 1000)"
    revision.write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = 'a1'\ndown_revision = None\n"
        "def upgrade():\n    while True:\n"
        f"        op.execute('UPDATE t SET n = 1 {some}')\n"
        f"        op.execute('DELETE FROM t {some}')\n"
    )
    offers = [str(one.offer) for one in files(revision).findings() if one.offer]
    assert all("LIMIT" not in offer and "delete()" not in offer for offer in offers)


def test_a_file_that_is_no_python_is_told_of(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("revision = 'a1'\ndef upgrade(:\n")
    update = REVISIONS[0].with_name("several_databases.py")
    first, second = sorted(files(broken, update).findings(), key=lambda one: one.code)
    assert (second.code, second.where, second.line) == ("unreadable", str(broken), 2)
    assert first.code == "unbatched-write"
