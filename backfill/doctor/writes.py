"""Traps in what a revision does to rows: all of it happens in one transaction, before the deploy
can go on, with every lock held to its end."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from backfill.doctor.constructs import is_insert, reads_rows, tables_read, writes_of
from backfill.doctor.findings import WARNING
from backfill.doctor.offers import instead_of, instead_of_loop, sets_its_row
from backfill.doctor.schema import added, created
from backfill.doctor.sources import last_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill.doctor.findings import Finding
    from backfill.doctor.schema import Schema
    from backfill.doctor.sources import Source
    from backfill.doctor.sql import Write

    Loop = ast.For | ast.AsyncFor | ast.While

_INSTEAD = "Let a backfill do it in small transactions, after the revision"
_SAVES = {"add", "add_all", "merge", "delete", "bulk_save_objects", "bulk_update_mappings"}


def row_loops(source: Source, schema: Schema) -> Iterator[Finding]:
    """Find loops over rows that write: each row is fetched, and the locks last as long as all."""
    for loop in _row_loops(source):
        writes, inserts, saves = _done_in(source, loop)
        new = created(source)
        if tables_read(source, loop.iter) & new or not (writes or inserts or saves):
            continue
        if writes and not inserts and all(write.table in new for write in writes):
            continue
        write = next(iter(writes), None)
        read = sorted(tables_read(source, loop.iter))
        yield from source.tell(
            loop,
            "row-loop",
            WARNING,
            f"A Python loop writes{_table(write)} row by row inside the revision.",
            f"{_INSTEAD}; a class for this:",
            instead_of_loop(write, read[0] if len(read) == 1 else None, loop, added(source)),
        )


def batch_loops(source: Source, schema: Schema) -> Iterator[Finding]:
    """Find loops over batches which are no batches, since one transaction holds them all."""
    for loop in source.reached("upgrade"):
        if not isinstance(loop, ast.While) or _is_autocommitted(source, loop):
            continue
        writes = [w for one in _calls(source, loop) for w in writes_of(source, one)]
        limited = [w for w in writes if w.has_limit or schema.is_narrow(w.table, w.narrowed)]
        if limited and not all(write.table in created(source) for write in limited):
            yield from source.tell(
                loop,
                "batch-loop",
                WARNING,
                f"A loop writes{_table(limited[0])} in batches, but all of them are one"
                " transaction, whose locks last until the revision's end.",
                *_advice(instead_of(limited[0], added(source))),
            )


def unbatched_writes(source: Source, schema: Schema) -> Iterator[Finding]:
    """Find an UPDATE or DELETE of as many rows as the table has, in one transaction."""
    inside = {id(call) for loop in _row_loops(source) for call in _calls(source, loop)}
    new, columns = created(source), added(source)
    for call in source.calls("upgrade"):
        if id(call) in inside:
            continue
        for write in writes_of(source, call):
            is_computed = len(call.args) > 1 and reads_rows(source, call.args[1])
            is_small = write.has_limit or schema.is_narrow(write.table, write.narrowed)
            if write.table in new or (is_small and not is_computed):
                continue
            yield from source.tell(
                call,
                "unbatched-write",
                WARNING,
                f"{write.verb} of {write.table or 'a table'}: all its rows in one transaction,"
                " however many they are.",
                *_advice(instead_of(write, columns)),
            )


def _advice(offer: str | None) -> tuple[str, str | None]:
    how = "a class for this:" if offer else "`backfill new NAME` writes a class."
    return f"{_INSTEAD}; {how}", offer


def _row_loops(source: Source) -> list[ast.For | ast.AsyncFor]:
    return [
        node
        for node in source.reached("upgrade")
        if isinstance(node, (ast.For, ast.AsyncFor))
        and not _is_autocommitted(source, node)
        and reads_rows(source, node.iter)
    ]


def _done_in(source: Source, loop: ast.For | ast.AsyncFor) -> tuple[list[Write], bool, bool]:
    """Return what a loop's body changes, and whether it inserts, or saves objects of the ORM's."""
    calls = _calls(source, loop)
    writes = [write for call in calls for write in writes_of(source, call)]
    inserts = any(is_insert(source, call) for call in calls)
    sessions = {"session", "Session"}
    saves = any(
        isinstance(call.func, ast.Attribute)
        and call.func.attr in _SAVES
        and "session" in last_name(call.func.value).lower()
        for call in calls
    )
    is_orm = any(name in source.text for name in sessions)
    return writes, inserts, saves or (is_orm and sets_its_row(loop))


def _calls(source: Source, loop: Loop) -> list[ast.Call]:
    nodes = [node for statement in loop.body for node in source.used(statement)]
    direct = [s.value for s in loop.body if isinstance(s, ast.Expr)]
    return [node for node in (*direct, *nodes) if isinstance(node, ast.Call)]


def _is_autocommitted(source: Source, node: ast.AST) -> bool:
    """Whether each statement is a transaction of its own there."""
    return any(
        isinstance(one, ast.With)
        and any("autocommit_block" in ast.unparse(item.context_expr) for item in one.items)
        for one in source.above(node)
    )


def _table(write: Write | None) -> str:
    return "" if write is None or write.table is None else f" {write.table}"
