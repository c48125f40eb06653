"""How a database is asked for its plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ClauseElement, Executable

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.sql.compiler import SQLCompiler


@dataclass(frozen=True, slots=True)
class Explanation:
    """The database's own plan for a walk."""

    lines: tuple[str, ...]
    is_index_range: bool


class Explain(Executable, ClauseElement):
    """`EXPLAIN` of a statement, with its parameters bound as usual."""

    inherit_cache = False

    def __init__(self, prefix: str, statement: sa.Select[Any]) -> None:
        self.prefix = prefix
        self.statement = statement


@compiles(Explain)
def _compile_explain(element: Explain, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{element.prefix} {compiler.process(element.statement, **kw)}"
