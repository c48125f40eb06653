"""The class to write instead of a statement, as text that a person finishes."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from backfill.doctor.sources import constant
from backfill.doctor.sql import one_line

if TYPE_CHECKING:
    from collections.abc import Collection

    from backfill.doctor.sql import Write

    Loop = ast.For | ast.AsyncFor

_NOT_KNOWN = (
    '# where = "…"  # rows that are still to do: must be false of a row once it is done.',
    "# Without it every row is done once, and nothing can be proved or swept.",
)
_MAY_STAY = "# Must be false of a row once it is done; else add what makes it so."


def instead_of(write: Write, new_columns: Collection[str]) -> str | None:
    """Return the class for a statement; None where it could not be read.

    `new_columns` are those that the same revision adds: NULL says that a row is still to do.
    """
    is_cut_delete = write.verb == "DELETE" and write.has_limit  # of which rows nobody can tell
    if write.table is None or not write.is_plain or is_cut_delete:
        return None
    if write.verb == "DELETE":
        return _class(write, f"Delete{_camel(write.table)}", [*_where(write), *_DELETING])
    where = _pending(write, new_columns)
    values = ", ".join(f'"{name}": {_value(write, e)}' for name, e in write.assignments.items())
    first = _camel(next(iter(write.assignments)))
    return _class(write, f"Fill{_camel(write.table)}{first}", [*where, f"values = {{{values}}}"])


_DELETING = (
    "",
    "def apply(self, connection, chunk):",
    "    connection.execute(chunk.delete())",
)


def instead_of_loop(
    write: Write | None, table: str | None, loop: Loop, new_columns: Collection[str]
) -> str:
    """Return the class for a loop over rows, with a marked place for what it computes."""
    row, body = name_of_row(loop), loop.body
    reads = _attributes(row, body) - {"id"}
    table = (write and write.table) or table or "the_table"
    writes = sorted(write.assignments if write else _assigned(row, body)) or ["new_column"]
    reads -= {"new_column", *(() if write else writes)}
    computed = ", ".join(f'"{name}": ...' for name in writes)
    lines = [
        *_is_null([name for name in writes if name in new_columns]),
        f"reads = {_listed(sorted(reads) or ['old_column'])}",
        f"writes = {_listed(writes)}",
        "",
        "def transform(self, row):",
        f"    return {{{computed}}}  # what the loop computes, of one row",
    ]
    return _text(f"Fill{_camel(table)}{_camel(writes[0])}", table, lines)


def _class(write: Write, name: str, lines: list[str]) -> str:
    assert write.table is not None
    return _text(name, write.table, lines, write.definition)


def _text(name: str, table: str, lines: list[str], definition: str | None = None) -> str:
    uses_sqlalchemy = definition or any(re.search(r"\bsa\.", line) for line in lines)
    head = ["import sqlalchemy as sa"] if uses_sqlalchemy else []
    head += ["from backfill import Backfill", ""]
    head += [definition, ""] if definition else []
    body = [f'"""{_said(name)}."""', "", f'table = "{table}"', *lines]
    return "\n".join(
        [*head, "", f"class {name}(Backfill):", *(f"    {line}".rstrip() for line in body)]
    )


def _said(name: str) -> str:
    return re.sub(r"(?<=.)(?=[A-Z])", " ", name).capitalize()


def _camel(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"\W|_", name))


def _listed(names: list[str]) -> str:
    return f"[{', '.join(_quoted(name) for name in names)}]"


def _quoted(text: str) -> str:
    """Return a text as Python writes it, in double quotes where that needs no escapes."""
    return f'"{text}"' if not {'"', "\\", "\n"} & set(text) else repr(text)


# -- `where` and `values` --------------------------------------------------------------------


def _value(write: Write, expression: str) -> str:
    if write.is_python:
        return expression
    if write.others:
        expression = f"(SELECT {expression} FROM {write.others}{_condition(write)})"
    return _quoted(one_line(expression))


def _condition(write: Write) -> str:
    return f" WHERE {write.where}" if write.where else ""


def _where(write: Write) -> list[str]:
    """Return the line with the rows that the statement is about. One that cuts its own chunks is
    about other rows each time."""
    if (write.where is None and not write.others) or write.has_limit:
        return []
    if write.is_python:
        return [f"where = {write.where}"]
    text = str(write.where)
    if write.others:
        text = f"EXISTS (SELECT 1 FROM {write.others}{_condition(write)})"
    return [f"where = {_quoted(one_line(text))}"]


def _pending(write: Write, new_columns: Collection[str]) -> list[str]:
    """Return the lines with the rows that are still to do."""
    lines = _where(write)
    new = [name for name in write.assignments if name in new_columns]
    if lines and any(_mentions(write, name) for name in write.assignments):
        return lines
    if new and not write.is_python:
        before = f"{lines[0].removeprefix('where = ')[1:-1]} AND " if lines else ""
        return [f"where = {_quoted(f'{before}{new[0]} IS NULL')}"]
    return [_MAY_STAY, *lines] if lines else _is_null(new)


def _is_null(new: list[str]) -> list[str]:
    """Return the lines for rows that have no value in a new column yet, if there is one."""
    return [f'where = "{new[0]} IS NULL"'] if new else list(_NOT_KNOWN)


def _mentions(write: Write, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", str(write.where)) is not None


# -- loops -----------------------------------------------------------------------------------


def _attributes(row: str | None, body: list[ast.stmt]) -> set[str]:
    """Return the columns that a loop reads of its row."""
    found = set()
    for node in (one for statement in body for one in ast.walk(statement)):
        if isinstance(node, ast.Attribute) and _is_row(node.value, row):
            found.add(node.attr)
        if isinstance(node, ast.Subscript) and _is_row(node.value, row):
            found.add(constant(node.slice) or "")
    return found - {"", "_mapping", "keys", "items"}


def _assigned(row: str | None, body: list[ast.stmt]) -> set[str]:
    """Return the columns that a loop sets on its row, an object of the ORM's."""
    return {
        target.attr
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, (ast.Assign, ast.AugAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and _is_row(target.value, row)
    }


def sets_its_row(loop: Loop) -> bool:
    """Whether a loop sets attributes of what it walks over."""
    return bool(_assigned(name_of_row(loop), loop.body))


def name_of_row(loop: Loop) -> str | None:
    """Return what a loop calls its row."""
    return loop.target.id if isinstance(loop.target, ast.Name) else None


def _is_row(node: ast.expr, row: str | None) -> bool:
    return isinstance(node, ast.Name) and node.id == row
