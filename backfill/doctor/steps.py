"""Traps in how a revision goes on: what it commits, where its gate stands, what it demands."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from backfill.doctor.constructs import writes_of
from backfill.doctor.findings import ERROR, WARNING
from backfill.doctor.schema import created
from backfill.doctor.sources import argument, constant, last_name
from backfill.placement import is_harmless

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from backfill.doctor.findings import Finding
    from backfill.doctor.schema import Schema
    from backfill.doctor.sources import Source

GATE = "require_backfill"
_BATCH = "batch_alter_table"
"""Does nothing by itself; what stands in it is an operation, too."""
_COMMIT = re.compile(r"\s*COMMIT\b(?!\s+PREPARED)", re.IGNORECASE)
_INSTEAD_OF_COMMIT = (
    "Leave the commit out. What needs transactions of its own goes into a backfill, or into"
    " `with op.get_context().autocommit_block():`."
)
_SET_NOT_NULL = re.compile(
    r"\bALTER\s+TABLE\s+(?:ONLY\s+|IF\s+EXISTS\s+)*([\w.\"`]+)[^;]*?"
    r"\bALTER\s+(?:COLUMN\s+)?([\w\"`]+)\s+SET\s+NOT\s+NULL\b",
    re.IGNORECASE | re.DOTALL,
)
_ALWAYS_FILLED = {"Identity", "Computed"}
_THREE_STEPS = (
    "Take three steps, as `backfill revision --autogenerate` writes them: a revision that adds it"
    ' nullable, a backfill, and a later one with op.require_backfill("NAME") before the NOT NULL'
)


def commits(source: Source, schema: Schema) -> Iterator[Finding]:
    """Find `op.get_bind().commit()`: all that follows it is rolled back, the version's stamp too,
    and the exit code is 0 (python_landscape.md §5.3)."""
    for root in ("upgrade", "downgrade"):
        for call in source.calls(root):
            if _is_commit(source, call):
                yield from source.tell(
                    call,
                    "commit-in-revision",
                    ERROR,
                    f"{ast.unparse(call)} ends Alembic's own transaction: what comes after it,"
                    " the version's stamp too, may be rolled back without an error.",
                    _INSTEAD_OF_COMMIT,
                )
            elif _is_commit_as_sql(source, call):
                yield from source.tell(
                    call,
                    "commit-as-sql",
                    WARNING,
                    "COMMIT ends the transaction behind Alembic's back: when the revision fails"
                    " later, what came before stays done, and is done again by the next upgrade.",
                    _INSTEAD_OF_COMMIT,
                )


def _is_commit(source: Source, call: ast.Call) -> bool:
    """Whether a call commits on the revision's connection; an ORM session on it does not."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "commit":
        return False
    return any(_is_the_revisions_own(one) for one in source.resolved(call.func.value))


def _is_commit_as_sql(source: Source, call: ast.Call) -> bool:
    is_sent = last_name(call.func) in {"execute", "exec_driver_sql"} and bool(call.args)
    return is_sent and any(_COMMIT.match(text) for text in source.texts(call.args[0]))


def _is_the_revisions_own(node: ast.expr) -> bool:
    """Whether it is `op.get_bind()`, or what `op.get_context()` has."""
    while isinstance(node, (ast.Attribute, ast.Call)):
        if isinstance(node, ast.Attribute) and node.attr in {"get_bind", "get_context"}:
            return True
        node = node.func if isinstance(node, ast.Call) else node.value
    return False


def late_gates(source: Source, schema: Schema) -> Iterator[Finding]:
    """Find gates behind other operations: a gate that refuses commits what precedes it, without
    the version's stamp, and the next upgrade does that again."""
    found = [one for calls in source.ways("upgrade") for one in _late_gates(source, calls)]
    yield from dict.fromkeys(found)  # what several databases have in common is told once


def _late_gates(source: Source, calls: Sequence[ast.Call]) -> Iterator[Finding]:
    earlier: ast.Call | None = None
    for call in calls:
        operation = source.operation(call)
        if operation == GATE and earlier is not None:
            yield from source.tell(
                call,
                "gate-not-first",
                ERROR,
                f"The gate comes after op.{source.operation(earlier)} (line {earlier.lineno}),"
                " which stays done when the gate refuses, and is done again by the next upgrade.",
                "Make op.require_backfill the first operation of upgrade().",
            )
        elif operation is not None and not _is_harmless(source, call, operation):
            earlier = earlier or call


def _is_harmless(source: Source, call: ast.Call, operation: str) -> bool:
    texts = source.texts(call.args[0]) if call.args else []
    return operation == _BATCH or is_harmless(operation, texts)


def hasty_not_nulls(source: Source, schema: Schema) -> Iterator[Finding]:
    """Find NOT NULL on a table that may have rows, with nothing that makes sure of values: neither
    a gate nor an UPDATE before it, which is a trap of its own."""
    new, filled, is_gated = created(source), set[tuple[str | None, str]](), False
    for call in source.calls("upgrade"):
        operation = source.operation(call)
        filled |= {(w.table, name) for w in writes_of(source, call) for name in w.assignments}
        is_gated |= operation == GATE
        if operation == "add_column":
            yield from _added(source, call, new)
        elif operation == "alter_column" and not is_gated:
            yield from _altered(source, call, new, filled)
        elif operation == "execute" and call.args and not is_gated:
            yield from _altered_by_sql(source, call, new, filled)


def _added(source: Source, call: ast.Call, new: set[str]) -> Iterator[Finding]:
    table = source.table_of(call)
    for column in (one for one in source.arguments_of(call) if isinstance(one, ast.Call)):
        given = {k.arg: k.value for k in column.keywords}
        kinds = {last_name(getattr(one, "func", one)) for one in column.args}
        has_values = not _is(given.get("server_default"), None) or kinds & _ALWAYS_FILLED
        if table in new or not _is(given.get("nullable", ast.Constant(True)), False) or has_values:
            continue
        name = constant(argument(column, 0, "name"))
        yield from source.tell(
            call,
            "not-null-in-one-step",
            ERROR,
            f"{table}.{name} is added NOT NULL without a server_default, which fails on a table"
            " with rows.",
            f"{_THREE_STEPS}.",
        )


def _altered(
    source: Source, call: ast.Call, new: set[str], filled: Collection[tuple[str | None, str]]
) -> Iterator[Finding]:
    table = source.table_of(call)
    given = {k.arg: k.value for k in call.keywords}
    is_not_null = "nullable" in given and _is(given["nullable"], False)
    was_not_null = "existing_nullable" in given and _is(given["existing_nullable"], False)
    arguments = source.arguments_of(call)
    name = constant(arguments[0] if arguments else given.get("column_name"))
    is_filled = table in new or (table, name) in filled
    if is_not_null and not was_not_null and not is_filled:
        yield from _told(source, call, f"{table}.{name} becomes NOT NULL")


def _altered_by_sql(
    source: Source, call: ast.Call, new: set[str], filled: Collection[tuple[str | None, str]]
) -> Iterator[Finding]:
    found = [one for text in source.texts(call.args[0]) for one in _SET_NOT_NULL.findall(text)]
    for table, name in ((_unquoted(table), _unquoted(name)) for table, name in found):
        if table not in new and (table, name) not in filled:
            yield from _told(source, call, f"{table}.{name} becomes NOT NULL")


def _unquoted(name: str) -> str:
    return re.sub(r"[\"`]", "", name)


def _told(source: Source, call: ast.Call, what: str) -> Iterator[Finding]:
    yield from source.tell(
        call,
        "not-null-without-gate",
        ERROR,
        f"{what}, and nothing makes sure that no row is without a value: one fails the upgrade.",
        'Begin the revision with op.require_backfill("NAME") of the backfill that fills it.',
    )


def _is(node: ast.expr | None, value: object) -> bool:
    """Whether a node is this constant; nothing given counts as None."""
    if node is None:
        return value is None
    return isinstance(node, ast.Constant) and node.value is value
