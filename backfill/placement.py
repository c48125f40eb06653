"""Where in a revision an operation stands: what its file says above the line that calls it, and
which gates it says below."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

    Block = Sequence[ast.stmt]

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
    return filter(_is_of_revision, _frames())


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_of_revision(frame: FrameType) -> bool:
    return {"revision", "down_revision"} <= frame.f_globals.keys()


def _source(frame: FrameType) -> tuple[ast.Module, int]:
    """Return the source of what is called, and the line in it. Raises OSError or SyntaxError where
    it is gone."""
    lines, first = inspect.getsourcelines(frame.f_code)
    return ast.parse(textwrap.dedent("".join(lines))), frame.f_lineno - first + 1


def _preceding(frame: FrameType) -> int | str | None:
    """Return the line that does something first, or why nobody can tell."""
    try:
        tree, line = _source(frame)
    except (OSError, SyntaxError):
        return "the source is gone"
    found = first_change(tree, before=line)
    return None if found is None else found + frame.f_lineno - line


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


# -- the gates that follow -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gate:
    """`op.require_backfill(…)` as a source says it."""

    name: str
    options: Mapping[str, Any]


def gates_behind() -> list[Gate]:
    """Return the gates that the running revision comes to behind the line that called us, as far
    as its source and that of its helpers tell their names."""
    frames = list(_frames())
    ours = [i for i, frame in enumerate(frames) if _is_of_revision(frame)]
    found: list[Gate] = []
    for frame in frames[: max(ours, default=-1) + 1]:
        with suppress(OSError, SyntaxError):
            tree, line = _source(frame)
            known = {**frame.f_globals, **frame.f_locals}
            found += gates_after(tree.body, line, known)
    return found


def gates_after(block: Block, line: int, known: Mapping[str, Any]) -> Iterator[Gate]:
    """Give the gates behind a line that is being run; `known` is what names stand for there.

    Those under a condition may never be come to, and are left out, unless it holds already.
    """
    for one in block:
        if _end(one) < line:
            continue
        is_around = one.lineno <= line
        if isinstance(one, ast.Expr) and not is_around:
            yield from _gate(one.value, known)
        elif isinstance(one, ast.For):
            yield from _gates_of_loop(one, line, known)
        else:
            for inner in _inner(one):
                if isinstance(one, (ast.With, ast.Try)) or _is_in(line, inner):
                    yield from gates_after(inner, line, known)


def _gates_of_loop(loop: ast.For, line: int, known: Mapping[str, Any]) -> Iterator[Gate]:
    """Give the rest of this round, and the rounds that follow, where one sees what it goes over."""
    variable = ast.unparse(loop.target)
    values = _value(loop.iter, known)
    left = list(values) if isinstance(values, (tuple, list)) else []
    if _is_in(line, loop.body):
        yield from gates_after(loop.body, line, known)
        here = known.get(variable)
        left = left[left.index(here) + 1 :] if here in left else []
    for value in left:
        yield from gates_after(loop.body, 0, {**known, variable: value})


def _gate(call: ast.expr, known: Mapping[str, Any]) -> Iterator[Gate]:
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return
    if call.func.attr != "require_backfill":
        return
    options = {one.arg: _value(one.value, known) for one in call.keywords if one.arg}
    name = _value(call.args[0], known) if call.args else options.pop("name", None)
    if isinstance(name, str):
        yield Gate(name, options)


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Return what an expression is: a constant, a name or a row of them; None: nobody can tell."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, (ast.Tuple, ast.List)):
        return [_value(one, known) for one in node.elts]
    return None


def _inner(statement: ast.stmt) -> Iterator[Block]:
    for field in ("body", "orelse", "finalbody"):
        yield getattr(statement, field, [])


def _is_in(line: int, block: Block) -> bool:
    return bool(block) and block[0].lineno <= line <= _end(block[-1])


def _end(statement: ast.stmt) -> int:
    return statement.end_lineno or statement.lineno
