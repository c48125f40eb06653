"""Live models in what has to work for ever: they move on, and an old migration breaks."""

from __future__ import annotations

import ast
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from backfill.doctor.findings import WARNING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backfill.doctor.findings import Finding
    from backfill.doctor.sources import Source

_NAMED_SO = {"models", "model", "entities", "orm"}
_BASES = {"Base", "Model", "SQLModel", "DeclarativeBase", "MappedAsDataclass"}
_MAKERS = {"SQLAlchemy", "declarative_base", "automap_base"}


def of_backfills(source: Source) -> Iterator[Finding]:
    """Find live models imported where a backfill is declared."""
    if source.declarations:
        for node, dotted, _ in source.imports:
            if is_live(dotted):
                yield from _told(source, node, dotted, "The file of a backfill")


def of_revisions(source: Source, *_: object) -> Iterator[Finding]:
    """Find live models that an upgrade uses."""
    if source.declarations:
        return
    used = {node.id for node in source.reached("upgrade") if isinstance(node, ast.Name)}
    for node, dotted, name in source.imports:
        if name in used and is_live(dotted):
            yield from _told(source, node, dotted, "upgrade()")


def _told(source: Source, node: ast.stmt, dotted: str, user: str) -> Iterator[Finding]:
    yield from source.tell(
        node,
        "live-models",
        WARNING,
        f"{user} uses {dotted}, a live model, which will have moved on when"
        " this runs on another database.",
        'Name tables by their names: table = "users", or sa.table("users", sa.column("id")).',
    )


def is_live(dotted: str) -> bool:
    """Whether a dotted name leads to the application's mapped classes. Imports nothing."""
    top, *rest = dotted.split(".")
    if top in sys.stdlib_module_names or top in {"alembic", "backfill", "sqlalchemy"}:
        return False
    found = _file(top, rest)
    if found is None:
        return _is_missing(top) and not _NAMED_SO.isdisjoint([top, *rest][:-1] or [top])
    path, names = found
    if "site-packages" in path.parts or "dist-packages" in path.parts:
        return False
    return _defines_models(path, names[0] if names else None) or (
        not _NAMED_SO.isdisjoint([top, *rest]) and path.name == "__init__.py"
    )


def _is_missing(top: str) -> bool:
    return PathFinder.find_spec(top, sys.path) is None


def _file(top: str, rest: list[str]) -> tuple[Path, list[str]] | None:
    """Return the file that a dotted name leads into, and the names that are left."""
    spec = PathFinder.find_spec(top, sys.path)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    while rest and path.name == "__init__.py":
        here = path.parent / rest[0]
        following = [p for p in (here.with_suffix(".py"), here / "__init__.py") if p.is_file()]
        if not following:
            break
        path, rest = following[0], rest[1:]
    return (path, rest) if path.suffix == ".py" else None


def _defines_models(path: Path, name: str | None) -> bool:
    """Whether a module maps the class of this name, or any; or makes what such classes hang on."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return False
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and name in (None, "*", node.name) and _is_mapped(node):
            return True
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            is_it = name in {getattr(target, "id", None) for target in node.targets}
            if is_it and _last(node.value.func) in _MAKERS:
                return True
    return False


def _is_mapped(node: ast.ClassDef) -> bool:
    attributes = {
        getattr(target, "id", None)
        for one in node.body
        if isinstance(one, (ast.Assign, ast.AnnAssign))
        for target in (one.targets if isinstance(one, ast.Assign) else [one.target])
    }
    bases = {_last(base) for base in node.bases}
    return not attributes.isdisjoint({"__tablename__", "__table__"}) or not bases.isdisjoint(_BASES)


def _last(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]
