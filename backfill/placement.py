"""Where in a revision an operation stands: what its file says above the line that calls it."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_CHANGES_NOTHING = frozenset(
    {
        *("require_backfill", "stop_backfill_sync"),
        *("get_bind", "get_context", "f", "inline_literal"),
    }
)


@dataclass(frozen=True, slots=True)
class Placement:
    """A revision, and what it does before a line."""

    revision: str
    down_revision: str | None
    """The one before, where there is only one."""
    preceding: int | None
    """The line of its file that does something first; None: nothing does."""


def of_caller() -> Placement | None:
    """Return where the revision stands that is being run; None: no revision called us."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not {"revision", "down_revision"} <= frame.f_globals.keys():
        frame = frame.f_back
    if frame is None:
        return None
    down = frame.f_globals["down_revision"]
    return Placement(
        revision=str(frame.f_globals["revision"]),
        down_revision=down if isinstance(down, str) else None,
        preceding=_preceding(frame),
    )


def _preceding(frame: FrameType) -> int | None:
    try:
        lines, first = inspect.getsourcelines(frame.f_code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):
        return None  # the source is gone, and with it what we could say of it
    found = first_change(tree, before=frame.f_lineno - first + 1)
    return None if found is None else found + first - 1


def first_change(tree: ast.AST, *, before: int | None = None) -> int | None:
    """Return the first line at which revision code changes something, above a line if given:
    an operation of Alembic's, or a statement that is executed."""
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (before is None or node.lineno < before)
        if _changes_something(node.func)
    ]
    return min(lines, default=None)


def _changes_something(function: ast.expr) -> bool:
    if not isinstance(function, ast.Attribute):
        return False
    is_op = isinstance(function.value, ast.Name) and function.value.id == "op"
    return function.attr == "execute" or (is_op and function.attr not in _CHANGES_NOTHING)
