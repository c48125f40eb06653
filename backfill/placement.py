"""Where in a revision an operation stands: what its file says above the line that calls it."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

_CHANGES_NOTHING = frozenset(
    {
        *("require_backfill", "stop_backfill_sync"),
        *("get_bind", "get_context", "f", "inline_literal"),
    }
)
_SENDS = frozenset(
    {
        *("execute", "exec_driver_sql", "executemany", "scalar", "scalars", "run_sync", "flush"),
        *("create", "create_all", "drop", "drop_all", "bulk_save_objects", "commit"),
    }
)
"""Methods that send something to the database, or may: of connections, sessions, cursors, tables,
types and metadata."""
_SETTING = re.compile(r"\s*(?:SET|SHOW|PRAGMA|RESET)\b", re.IGNORECASE)
"""No SELECT: it may call a function that changes something."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A revision, and what it does before a line."""

    revision: str
    down_revision: str | None
    """The one before, where there is only one."""
    preceding: int | None
    """The line of its file that does something first; None: nothing does, as far as one sees."""
    is_first: bool
    """Whether it is certain that nothing does."""


def of_caller() -> Placement | None:
    """Return where the revision stands that is being run; None: no revision called us."""
    frames = list(_frames_of_revision())
    if not frames:
        return None
    said = frames[0].f_globals
    down = said["down_revision"]
    found = [_preceding(frame) for frame in frames]
    return Placement(
        revision=str(said["revision"]),
        down_revision=down if isinstance(down, str) else None,
        preceding=next((line for line in found if isinstance(line, int)), None),
        is_first=not any(found),
    )


def _frames_of_revision() -> Iterator[FrameType]:
    """Give the calls that led here from a revision's `upgrade()` on, that one last."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if {"revision", "down_revision"} <= frame.f_globals.keys():
            yield frame
        frame = frame.f_back


def _preceding(frame: FrameType) -> int | str | None:
    """Return the line that does something first, or why nobody can tell."""
    try:
        lines, first = inspect.getsourcelines(frame.f_code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):
        return "the source is gone"
    found = first_change(tree, before=frame.f_lineno - first + 1)
    return None if found is None else found + first - 1


def is_harmless(operation: str, texts: Sequence[str]) -> bool:
    """Whether an operation may stand before a gate: it changes nothing, or nothing that could not
    be done again. `texts` are what `execute` sends, as far as that is known."""
    if operation in _SENDS:
        return bool(texts) and all(_SETTING.match(text) for text in texts)
    return operation in _CHANGES_NOTHING


def first_change(tree: ast.AST, *, before: int) -> int | None:
    """Return the first line, above another one, at which revision code changes something: an
    operation of Alembic's, or a statement that is executed."""
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.lineno < before and _changes_something(node)
    ]
    return min(lines, default=None)


def _changes_something(call: ast.Call) -> bool:
    function = call.func
    if not isinstance(function, ast.Attribute):
        return False
    is_op = isinstance(function.value, ast.Name) and function.value.id == "op"
    is_operation = is_op or function.attr in _SENDS
    return is_operation and not is_harmless(function.attr, _texts(call))


def _texts(call: ast.Call) -> list[str]:
    """Return the SQL text of `execute("…")`, or of `execute(text("…"))`."""
    given = call.args[:1]
    if given and isinstance(given[0], ast.Call):
        given = given[0].args[:1]
    return [
        one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]
