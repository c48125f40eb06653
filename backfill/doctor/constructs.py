"""What a revision sends to the database: SQL text, or SQLAlchemy's constructs, read alike."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from backfill.doctor.sources import argument, constant, last_name
from backfill.doctor.sql import Write, writes_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill.doctor.sources import Source

_SENDS = {"execute", "executemany", "exec_driver_sql", "scalar", "scalars"}
_READS = {"execute", "exec_driver_sql", "scalars", "query", "stream", "stream_scalars"}
_VERBS = {"update": "UPDATE", "delete": "DELETE"}
_FILTERS = {"where", "filter", "filter_by"}
_INSERT = re.compile(r"\s*(?:INSERT|REPLACE)\b", re.IGNORECASE)
_FROM = re.compile(r"\bFROM\s+([\w.\"`]+)", re.IGNORECASE)
_TABLES = {"table", "Table", "create_table"}
_BETWEEN = 3
_DEEPEST = 4

Chain = list[tuple[str, ast.Call]]


def writes_of(source: Source, call: ast.Call) -> list[Write]:
    """Return the UPDATE and DELETE that a call sends."""
    if last_name(call.func) in _SENDS and call.args:
        texts = source.texts(call.args[0])
        if texts:
            return [write for text in texts for write in writes_in(text)]
        found = [_construct(source, node) for node in source.resolved(call.args[0])]
        return [write for write in found if write is not None]
    by_query = _by_query(source, call)
    return [by_query] if by_query is not None else []


def is_insert(source: Source, call: ast.Call) -> bool:
    """Whether a call sends an INSERT."""
    if last_name(call.func) not in _SENDS or not call.args:
        return False
    if any(_INSERT.match(text) for text in source.texts(call.args[0])):
        return True
    for node in source.resolved(call.args[0]):
        chain, base = _chain(source, node)
        if "insert" in {name for name, _ in chain} or last_name(base) == "insert":
            return True
    return False


def reads_rows(source: Source, node: ast.expr, depth: int = 0) -> bool:
    """Whether an expression gives the rows of a query."""
    if depth > _DEEPEST:
        return False
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and last_name(one.func) in _READS:
            return not (writes_of(source, one) or is_insert(source, one))
        if isinstance(one, ast.Attribute) and one.attr == "query":
            return True
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load):
            values = [value for value in source.resolved(one) if value is not one]
            if any(reads_rows(source, value, depth + 1) for value in values):
                return True
    return False


def tables_read(source: Source, node: ast.expr) -> set[str]:
    """Return the tables of the queries in an expression, as far as they are told by text."""
    found: set[str] = set()
    for value in source.resolved(node):
        for one in ast.walk(value):
            if isinstance(one, ast.Name):
                name = _table(source, one)
                found |= {name} if name else set()
            if isinstance(one, ast.Call) and last_name(one.func) in _READS:
                for argued in one.args:
                    found |= {_unquoted(t) for s in source.texts(argued) for t in _FROM.findall(s)}
                    found |= tables_read(source, argued) if argued is not node else set()
    return found


def _unquoted(name: str) -> str:
    return re.sub(r"[\"`]", "", name)


# -- constructs ----------------------------------------------------------------------------


def _chain(source: Source, node: ast.expr) -> tuple[Chain, ast.expr]:
    """Take `a.b(…).c(…)` apart: the calls from the first on, also those of what a name stands
    for, and what they begin with."""
    calls: Chain = []
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        calls.insert(0, (node.func.attr, node))
        node = node.func.value
    if isinstance(node, ast.Call):
        calls.insert(0, (last_name(node.func), node))
    value = source.resolved(node)[0]
    if value is not node:
        before, base = _chain(source, value)
        return [*before, *calls], base
    return calls, node


def _construct(source: Source, node: ast.expr) -> Write | None:
    """Read `sa.update(table).where(…).values(…)` or `table.update()…`."""
    chain, base = _chain(source, node)
    for place, (name, call) in enumerate(chain):
        if name not in _VERBS:
            continue
        is_of_table = isinstance(call.func, ast.Attribute) and not call.args
        table = call.func.value if is_of_table else (call.args or [base])[0]  # type: ignore[attr-defined]
        return _read(source, _VERBS[name], table, chain[place + 1 :])
    return None


def _by_query(source: Source, call: ast.Call) -> Write | None:
    """Read `session.query(Model).filter(…).update({…})`."""
    chain, base = _chain(source, call)
    names = [name for name, _ in chain]
    dotted = {node.attr for node in ast.walk(base) if isinstance(node, ast.Attribute)}
    if not names or names[-1] not in _VERBS or "query" not in {*names[:-1], *dotted}:
        return None
    values = [("values", call)] if call.args else []
    model = next((c.args[0] for name, c in chain if name == "query" and c.args), base)
    return _read(source, _VERBS[names[-1]], model, [*chain[:-1], *values])


def _read(source: Source, verb: str, table: ast.expr, chain: Chain) -> Write:
    conditions = [c for name, call in chain if name in _FILTERS for c in _conditions(call)]
    values: dict[str, str] = {}
    for _, call in (one for one in chain if one[0] == "values"):
        values |= _values(call)
    shown = [ast.unparse(condition) for condition in conditions]
    where = shown[0] if len(shown) == 1 else f"sa.and_({', '.join(shown)})" if shown else None
    return Write(
        verb,
        _table(source, table),
        values,
        where,
        is_plain=verb == "DELETE" or bool(values),
        has_limit=any(_has_limit(c) for _, c in chain),
        narrowed=frozenset(n for c in conditions for n in _narrowed(source, c)),
        is_python=True,
        definition=_definition(source, table),
    )


def _conditions(call: ast.Call) -> list[ast.expr]:
    """Return what has to be true, each part of an `and_` for itself."""
    named = [ast.Compare(ast.Name(k.arg), [ast.Eq()], [k.value]) for k in call.keywords if k.arg]
    return [part for given in (*call.args, *named) for part in _flat(given)]


def _flat(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        yield from (*_flat(node.left), *_flat(node.right))
    elif isinstance(node, ast.Call) and last_name(node.func) == "and_":
        for given in node.args:
            yield from _flat(given)
    else:
        yield node


def _values(call: ast.Call) -> dict[str, str]:
    """Return column to expression, of `values(a=…)` and `values({"a": …})`."""
    found = {k.arg: _expression(k.value) for k in call.keywords if k.arg}
    given = call.args[0] if call.args else None
    if isinstance(given, ast.Dict):
        for key, value in zip(given.keys, given.values, strict=True):
            name = constant(key) or (key is not None and _column(key))
            if name:
                found[name] = _expression(value)
    found.pop("synchronize_session", None)
    return found


def _expression(node: ast.expr) -> str:
    text = ast.unparse(node)
    return (
        f"sa.literal({text})"
        if isinstance(node, ast.Constant) and node.value is not None
        else ("sa.null()" if isinstance(node, ast.Constant) else text)
    )


def _has_limit(call: ast.Call) -> bool:
    names = {last_name(n.func) for n in ast.walk(call) if isinstance(n, ast.Call)}
    return not names.isdisjoint({"limit", "fetch"})


def _narrowed(source: Source, condition: ast.expr) -> Iterator[str]:
    """Give the column that has to be a constant: `t.c.id == 5`, `t.c.id.in_([…])`, `between`."""
    if isinstance(condition, ast.Compare) and isinstance(condition.ops[0], ast.Eq):
        name = _column(condition.left)
        if name and _is_constant(source, condition.comparators[0]):
            yield name
    if not isinstance(condition, ast.Call):
        return
    if isinstance(condition.func, ast.Attribute):
        name, how = _column(condition.func.value), condition.func.attr
        is_known = all(_is_constant(source, given) for given in condition.args)
        if name and how in {"in_", "between"} and is_known:
            yield name
    if last_name(condition.func) == "between" and len(condition.args) == _BETWEEN:
        name = _column(condition.args[0])
        yield from [name] if name else []


def _column(node: ast.expr) -> str | None:
    """Return the column's name: of `t.c.id`, `t.c["id"]`, `Model.id`, `sa.column("id")`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript):
        return constant(node.slice)
    if isinstance(node, ast.Call) and last_name(node.func) in {"column", "literal_column"}:
        return constant(argument(node, 0, "text"))
    return node.id if isinstance(node, ast.Name) else None


def _is_constant(source: Source, node: ast.expr) -> bool:
    """Whether an expression is a value of Python's, not a column or a query."""
    for value in source.resolved(node):
        for one in ast.walk(value):
            is_column = isinstance(one, ast.Attribute) and (
                one.attr == "c" or ast.unparse(one.value)[:1].isupper()
            )
            if is_column or last_name(getattr(one, "func", ast.Constant(0))) in {
                "select",
                "exists",
            }:
                return False
    return True


# -- tables --------------------------------------------------------------------------------


def _table(source: Source, node: ast.expr) -> str | None:
    """Return the name of the table that an expression stands for."""
    for value in source.resolved(node):
        if isinstance(value, ast.Call) and last_name(value.func) in {
            "table",
            "Table",
            "create_table",
        }:
            name = constant(argument(value, 0, "name"))
            schema = constant(next((k.value for k in value.keywords if k.arg == "schema"), None))
            return f"{schema}.{name}" if name and schema else name
        if isinstance(value, ast.Subscript):
            return constant(value.slice)
        if isinstance(value, ast.Name):
            return _of_model(source, value.id)
    return None


def _of_model(source: Source, name: str) -> str | None:
    """Return the table of a mapped class that stands in the file itself."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            for one in node.body:
                if isinstance(one, ast.Assign) and last_name(one.targets[0]) == "__tablename__":
                    return constant(one.value)
    return None


def _definition(source: Source, node: ast.expr) -> str | None:
    """Return the assignment of a table that a statement names."""
    values = source.resolved(node)
    if not isinstance(node, ast.Name) or not isinstance(values[0], ast.Call):
        return None
    if last_name(values[0].func) not in {"table", "Table"}:
        return None
    return f"{node.id} = {ast.unparse(values[0])}"
