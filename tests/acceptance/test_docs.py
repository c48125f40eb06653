"""What the documentation shows is what happens, page by page."""

from __future__ import annotations

import contextlib
import re
import shlex
from typing import TYPE_CHECKING

import click
import pytest

from backfill import cli_base as command_line
from backfill.cli import cli
from tests.availability import give_up
from tests.databases import Unavailable
from tests.documents import COMMANDS, PAGES, Block, Command, Page, Shell, commands, matches

if TYPE_CHECKING:
    from pathlib import Path

    from tests.databases import Servers

ALL = [Page(path) for path in sorted(PAGES.rglob("*.md"))]
WITH_COMMANDS = [page for page in ALL if any(b.language == COMMANDS for b in page.blocks())]
LANGUAGES = {COMMANDS, "python", "ini", "toml", "yaml", "sql"}


def name(page: Page) -> str:
    return page.path.relative_to(PAGES).with_suffix("").as_posix()


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_page_can_be_followed(page: Page, servers: Servers, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        variables = {}
        if kind := page.settings.get("database"):
            try:
                database = stack.enter_context(servers.database(kind, tmp_path))
            except Unavailable as error:
                give_up(kind, error)
            variables["DATABASE_URL"] = database.url
        page.follow(tmp_path / "project", **variables)


@pytest.mark.parametrize("page", ALL, ids=name)
def test_blocks_are_files_or_commands(page: Page) -> None:
    for block in page.blocks():
        place = f"{page.path.name}:{block.line}"
        assert block.language in LANGUAGES, f"{place}: no test knows {block.language!r}"
        assert block.language == COMMANDS or block.title, f"{place}: say which file this is"


@pytest.mark.parametrize("page", ALL, ids=name)
def test_commands_in_the_text_exist(page: Page) -> None:
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.text)
    in_text = re.findall(r"`(?:flask )?backfill ([a-z][^`]*)`", text)
    in_files = [
        found
        for block in page.blocks()
        if block.language in ("yaml", "toml", "ini")
        for found in re.findall(r"(?:^|run: |flask |&& )backfill ([a-z].*)", block.text)
    ]
    for command in (*in_text, *in_files):
        assert_exists(command)


def assert_exists(command: str) -> None:
    """The command line is understood, with `NAME` and the like as they stand."""
    program, *arguments = [word for word in shlex.split(command) if word not in ("…", "...")]
    known = cli.commands.get(program)
    assert known is not None, f"there is no `backfill {program}`"
    options = {option for one in known.params for option in one.opts} | {"--help"}
    for word in arguments:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"backfill {program} has no {word}"
    assert isinstance(known, click.Command)


def test_exit_codes_are_those_of_the_code() -> None:
    shown = re.findall(r"(?m)^\| (\d) \|", Page(PAGES / "howto" / "operating.md").text)
    codes = {code for name, code in vars(command_line).items() if name.startswith("EXIT_")}
    assert sorted(map(int, shown)) == sorted(codes)


# -- the walker itself ------------------------------------------------------------------------


def test_what_a_page_shows_has_to_match() -> None:
    assert matches("1,000 rows changed", "1,000 rows changed\n\n")
    assert not matches("1,000 rows changed", "1,001 rows changed")
    assert matches("in 3 s, about 10 rows", "in 12.5 s, about 1,000 rows")
    assert matches("a\n...\nd ... f", "a\nb\nc\nd e f")
    assert not matches("a\n...\nd", "a\nb")


ENDS = """
import os
print(os.getpid(), flush=True)
os.kill(os.getpid(), int(os.environ["NUMBER"]))
"""


def test_commands_end_as_if_the_shell_had_started_them(tmp_path: Path) -> None:
    with Shell(tmp_path, {}) as shell:
        assert shell.run("alembic init migrations")[0] == 0
        (tmp_path / "migrations" / "env.py").write_text(ENDS)
        assert shell.run("NUMBER=15 alembic current")[0] == 128 + 15
        assert shell.run("NUMBER=9 alembic current")[0] == 128 + 9
        code, printed = shell.run("echo one; NUMBER=0 alembic current | tr 0-9 n; backfill wrong")
        assert code == 2
        assert re.match(r"one\nn+\nUsage: backfill ", printed)
        code, printed = shell.run("NUMBER=9 alembic current & wait $!; code=$?; echo $! $code")
        pid, waited, status = re.findall(r"(?m)^\d+|\d+$", printed)
        assert (waited, status) == (pid, "137")


def test_a_command_that_fails_fails_its_page(tmp_path: Path) -> None:
    page = Page(PAGES / "index.md")
    shown = Block(COMMANDS, None, "$ echo one\none\n$ export N=2 && \\\n  false\n", 7)
    assert list(commands(shown)) == [
        Command("echo one", "one", 7),
        Command("export N=2 && \\\n  false", "", 9),
    ]
    with Shell(tmp_path, {}) as shell:
        page.obey(shell, Command("export N=2", "", 1))
        page.obey(shell, Command("echo $N", "2", 2))
        with pytest.raises(AssertionError, match=r"index\.md:3: false\nexit code 1"):
            page.obey(shell, Command("false", "", 3))
        with pytest.raises(AssertionError, match="The page shows:\n3\nIt printed:\n2"):
            page.obey(shell, Command("echo $N", "3", 4))
