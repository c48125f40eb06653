"""What the revisions say of tables: which a revision creates or widens, and their unique keys."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backfill.doctor.sources import argument, constant, last_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backfill.doctor.sources import Source

_USUAL_KEYS = ("id", "uuid", "guid", "pk", "rowid", "ctid")
"""What a primary key is called where no revision says it."""
_CREATE = re.compile(
    r"\bCREATE\s+(?:\w+\s+){0,2}TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?([\w.\"`]+)", re.IGNORECASE
)


@dataclass
class Schema:
    """The unique keys of tables, as far as revisions create them."""

    keys: dict[str, list[frozenset[str]]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, sources: Iterable[Source]) -> Schema:
        schema = cls()
        for source in sources:
            for call in source.calls("upgrade"):
                schema._learn(source, call)
        return schema

    def _learn(self, source: Source, call: ast.Call) -> None:
        operation = source.operation(call)
        if operation == "create_table":
            table = constant(argument(call, 0, "table_name"))
            self.keys[table or ""] += _keys_of(call)
        elif operation in {"create_unique_constraint", "create_primary_key", "create_index"}:
            if operation == "create_index" and not _is_true(call, "unique"):
                return
            table = constant(argument(call, 1, "table_name"))
            self.keys[table or ""].append(_names(call.args[2:3]))

    def is_narrow(self, table: str | None, columns: frozenset[str]) -> bool:
        """Whether given values of these columns leave a row, or a short list of rows."""
        known = [key for key in self.keys.get(table or "", ()) if key]
        usual = () if known else (frozenset({name}) for name in _USUAL_KEYS)
        return any(key <= columns for key in (*known, *usual))


def created(source: Source) -> set[str]:
    """Return the tables that a revision creates: nobody else uses them yet."""
    found = set()
    for call in source.calls("upgrade"):
        operation = source.operation(call)
        if operation == "create_table":
            schema = next((constant(k.value) for k in call.keywords if k.arg == "schema"), None)
            name = constant(argument(call, 0, "table_name")) or ""
            found |= {name, f"{schema}.{name}" if schema else name}
        elif operation == "execute" and call.args:
            texts = source.texts(call.args[0])
            found |= {re.sub(r"[\"`]", "", name) for t in texts for name in _CREATE.findall(t)}
    return found


def added(source: Source) -> set[str]:
    """Return the columns that a revision adds: NULL in every row there was."""
    found = set()
    for call in source.calls("upgrade"):
        if source.operation(call) == "add_column":
            columns = [a for a in source.arguments_of(call) if isinstance(a, ast.Call)]
            found |= {constant(argument(column, 0, "name")) or "" for column in columns}
    return found


def _keys_of(call: ast.Call) -> list[frozenset[str]]:
    keys = []
    primary = set()
    for given in (one for one in call.args if isinstance(one, ast.Call)):
        kind = last_name(given.func)
        name = constant(argument(given, 0, "name")) or ""
        if kind == "Column" and _is_true(given, "primary_key"):
            primary.add(name)
        elif kind == "Column" and _is_true(given, "unique"):
            keys.append(frozenset({name}))
        elif kind in {"PrimaryKeyConstraint", "UniqueConstraint"}:
            keys.append(frozenset(filter(None, map(constant, given.args))))
    return [*keys, *([frozenset(primary)] if primary else [])]


def _is_true(call: ast.Call, name: str) -> bool:
    value = next((k.value for k in call.keywords if k.arg == name), None)
    return isinstance(value, ast.Constant) and value.value is True


def _names(nodes: list[ast.expr]) -> frozenset[str]:
    return frozenset(
        text for node in nodes for one in ast.walk(node) if (text := constant(one)) is not None
    )
