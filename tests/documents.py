"""Markdown pages whose commands are run as a reader would run them, in order, in one shell.

A block of the language `console` holds commands after `$ ` (a line that ends in a backslash goes
on), each with what it prints, or with nothing where that does not matter. A line `...` stands for
any lines, `...` within a line for any text; times, rates and estimates may differ. A command has to
succeed: a page which shows that one fails says so, as in `backfill check || echo "exit code $?"`.
A block with a title is the file of that name.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

from tests.forked import REPOSITORY, write_shims
from tests.projects import environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

PAGES = REPOSITORY / "docs" / "pages"
PROJECTS = REPOSITORY / "docs" / "projects"

COMMANDS = "console"
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    flags=re.DOTALL | re.MULTILINE,
)
FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", flags=re.DOTALL | re.MULTILINE)
TITLE = re.compile(r'\btitle="([^"]+)"')
PATIENCE_SECONDS = 120.0  # for one command, on a busy machine

VARIES = re.compile(r"\d[\d,.]*(?= ?(?:s|ms|min|rows/s|rows in)\b)|(?<=about )\d[\d,]*")
"""Times, rates and estimates."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command of a page, and what the page says that it prints."""

    text: str
    shown: str
    line: int


@dataclass(frozen=True)
class Page:
    """A page, with the settings in its front matter."""

    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def settings(self) -> Mapping[str, str]:
        """`project`: a folder of docs/projects which is copied; `prepare`: a command run there;
        `database`: another kind than SQLite, whose URL is in DATABASE_URL."""
        found = FRONT_MATTER.match(self.text)
        lines = found.group(1).splitlines() if found else []
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def blocks(self) -> Iterator[Block]:
        text = self.text
        for found in FENCE.finditer(text):
            title = TITLE.search(found["options"])
            yield Block(
                language=found["language"],
                title=title.group(1) if title else None,
                text=dedent(found["text"]),
                line=text.count("\n", 0, found.start("text")) + 1,
            )

    def follow(self, directory: Path, **variables: str) -> None:
        """Do what the page says: write its files, run its commands, compare what they print.

        Raises AssertionError at the first command which fails, or prints something else.
        """
        if "project" in self.settings:
            shutil.copytree(PROJECTS / self.settings["project"], directory, dirs_exist_ok=True)
        with Shell(directory, variables) as shell:
            if "prepare" in self.settings:
                self.obey(shell, Command(self.settings["prepare"], "", 1))
            for block in self.blocks():
                if block.language == COMMANDS:
                    for command in commands(block):
                        self.obey(shell, command)
                elif block.title:
                    file = directory / block.title
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(block.text, encoding="utf-8")

    def obey(self, shell: Shell, command: Command) -> None:
        """Run a command of this page and compare; raises AssertionError."""
        code, printed = shell.run(command.text)
        place = f"{self.path.relative_to(REPOSITORY)}:{command.line}: {command.text}\n"
        assert code == 0, f"{place}exit code {code}\n{printed}"
        assert not command.shown or matches(command.shown, printed), (
            f"{place}The page shows:\n{command.shown}\nIt printed:\n{printed}"
        )


def commands(block: Block) -> Iterator[Command]:
    """Give the commands of a block, each with the output below it."""
    text: list[str] = []
    shown: list[str] = []
    start = block.line
    for number, line in enumerate(block.text.splitlines(), block.line):
        if line.startswith("$ "):
            if text:
                yield Command("\n".join(text), "\n".join(shown), start)
            text, shown, start = [line[2:]], [], number
        elif not text:
            raise ValueError(f"line {number}: a console block begins with `$ `")
        elif text[-1].endswith("\\"):
            text.append(line)
        else:
            shown.append(line)
    if text:
        yield Command("\n".join(text), "\n".join(shown), start)


def matches(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed."""
    pattern = ""
    for line in comparable(shown):
        if line == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(map(re.escape, line.split("..."))) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in comparable(printed))) is not None


def comparable(text: str) -> list[str]:
    return [VARIES.sub("0", line.rstrip()) for line in text.strip().splitlines()]


class Shell:
    """A bash in a directory, so that what one command exports is there for the next."""

    END = "-- end of command --"
    TELL = f"echo '{END}'"

    def __init__(self, directory: Path, variables: Mapping[str, str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        ours = environment()
        programs = Path(sys.executable).parent
        self._shims = tempfile.TemporaryDirectory(prefix="backfill-shims-")
        write_shims(Path(self._shims.name))
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env={
                **ours,
                "PATH": f"{self._shims.name}:{programs}:{ours['PATH']}",
                "PIP_NO_INDEX": "1",  # what a page installs is here already
                **variables,
            },
        )

    def run(self, command: str) -> tuple[int, str]:
        """Return a command's exit code, and what it printed on both streams."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{{ {command}\n}} </dev/null; code=$?; echo; {self.TELL} $code\n")
        self._bash.stdin.flush()
        impatience = threading.Timer(PATIENCE_SECONDS, self._bash.kill)
        impatience.start()
        printed = []
        for line in self._bash.stdout:
            if line.startswith(self.END):
                impatience.cancel()
                return int(line.removeprefix(self.END)), "".join(printed)
            printed.append(line)
        impatience.cancel()
        raise AssertionError(f"{command}: the shell has ended\n{''.join(printed)}")

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bash.kill()
        self._bash.communicate()
        self._shims.cleanup()
