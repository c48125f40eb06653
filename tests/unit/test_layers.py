"""The house's rules on imports, checked on the syntax trees."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import backfill

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(backfill.__path__[0])

# Top to bottom: a module imports from the layers below its own only. `dialects` and `writers`
# are one name each, the modules of `speed` stand by their own names; inside packages, and
# between any two modules, there is no cycle.
LAYERS = [
    {"__init__", "__main__"},
    {"flask"},
    {"cli"},
    {"cli_alembic"},
    {"cli_base", "revising", "upgrading"},
    {"splitting"},
    {"retyping"},
    {"table_changes"},
    {"contracting", "facts", "steps"},
    {"completion", "operations", "testing"},
    {"gate"},
    {"sync_end"},
    {"migrating"},
    {"running", "doctor"},
    {"context", "quarantine", "runner"},
    {"opening", "proving"},
    {"short_reads"},
    {"processes"},
    {"threads"},
    {"workers"},
    {"committing"},
    {"isolation", "waiting"},
    {"chunk_size", "holding", "sessions"},
    {"budget", "speed.pacing", "speed.collector"},
    {"planner", "overview", "scaffold", "inline", "downgrades"},
    {"aftercare", "sync"},
    {
        *(
            "proof",
            "project",
            "discovery",
            "ranges",
            "speed.sizing",
            "sweeps",
            "speed.loggate",
            "retries",
            "reporters",
            "writers",
        ),
        *("speed.signals", "speed.probing", "speed.glances"),
    },
    {"configuration"},
    {"application"},
    {"presentation"},
    {"failures", "trail", "walk"},
    {"scans", "strides", "survey"},
    {"chunks", "companion", "store", "targets"},
    {"connections", "declaration", "pages"},
    {"keys", "runs", "tables", "dialects", "owners", "statements"},
    {"settings"},
    {"errors", "kinds", "savepoints", "speed.throttles", "type_changes"},
    {
        *("speed.windows", "speed.steering", "speed.widths", "speed.readings", "speed"),
        *("speed.brink", "speed.overhead", "placement"),
    },
]

SINGLE_OWNERS = {
    "click": {"cli", "cli_alembic", "cli_base", "flask"},
    "flask": {"application", "flask"},
    "tqdm": {"reporters"},
    "tenacity": {"retries"},
    "alembic": {
        "configuration",
        "contracting",
        "project",
        *("operations", "gate", "sync_end", "migrating"),
        "discovery",
        "downgrades",
        "retyping",
        "revising",
        "splitting",
        "table_changes",
        "testing.schema",
        "upgrading",
    },
}

# Who may import the definitions of our own tables: SQL on them is the store's.
READERS_OF_TABLES = {"store", "operations", "testing"}


@dataclass(frozen=True)
class Import:
    """`importer` loads `imported` (a module of ours, without the package, or a foreign one)."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@cache
def trees() -> dict[str, ast.Module]:
    """The modules by their names in the package: `keys`, `dialects.base`, `dialects`."""
    return {
        name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")
    }


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def layer_name(module: str) -> str:
    """A module's own name where that is in the layers, else its package's."""
    known = any(module in layer for layer in LAYERS)
    return module if known else module.partition(".")[0]


def nodes_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree without what stands under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking(child.test):
            for other in child.orelse:
                yield from nodes_at_run_time(other)
        else:
            yield from nodes_at_run_time(child)


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports_of(module: str, *, foreign: bool = False) -> Iterator[Import]:
    """Imports at run time, also those inside functions."""
    for node in nodes_at_run_time(trees()[module]):
        for name in imported_names(node):
            is_ours = name == "backfill" or name.startswith("backfill.")
            if is_ours != foreign:
                yield Import(module, ours(name) if is_ours else name, node.lineno)  # type: ignore[attr-defined]


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not used here"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def ours(name: str) -> str:
    """The module that a dotted name leads to: a name in `backfill/__init__` is `__init__`."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in trees():
        parts.pop()
    return ".".join(parts) or "__init__"


def all_imports(*, foreign: bool = False) -> list[Import]:
    return [found for module in trees() for found in imports_of(module, foreign=foreign)]


def test_every_module_has_a_layer() -> None:
    known = [name for layer in LAYERS for name in layer]
    assert len(known) == len(set(known))
    assert {layer_name(module) for module in trees()} <= set(known)


def test_imports_point_downwards() -> None:
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        str(found)
        for found in all_imports()
        if layer_name(found.importer) != layer_name(found.imported)
        and not is_version(found)
        and rank[layer_name(found.importer)] >= rank[layer_name(found.imported)]
    ]
    assert wrong == []


def is_version(found: Import) -> bool:
    """`from backfill import __version__` takes a name that is there before any cycle."""
    return (found.importer, found.imported) == ("cli", "__init__")


def test_the_command_takes_nothing_but_the_version_from_the_top() -> None:
    taken = {
        alias.name
        for node in nodes_at_run_time(trees()["cli"])
        if isinstance(node, ast.ImportFrom) and node.module == "backfill"
        for alias in node.names
        if alias.name not in trees()
    }
    assert taken <= {"__version__"}


def test_there_is_no_cycle() -> None:
    graph = {
        module: {found.imported for found in imports_of(module) if not is_version(found)}
        for module in trees()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("library", SINGLE_OWNERS)
def test_library_has_its_owners(library: str) -> None:
    users = {
        found.importer
        for found in all_imports(foreign=True)
        if found.imported.split(".")[0] == library
    }
    assert users == SINGLE_OWNERS[library]


def test_environment_is_read_in_settings_only() -> None:
    readers = {
        module
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if reads_environment(node)
    }
    assert readers == {"settings"}


def reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom) and node.module == "os":
        return any(alias.name in {"environ", "getenv"} for alias in node.names)
    return isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}


def test_our_tables_are_queried_in_the_store_only() -> None:
    users = {layer_name(found.importer) for found in all_imports() if found.imported == "tables"}
    assert users <= READERS_OF_TABLES


def test_name_of_a_dialect_is_asked_for_in_dialects_only() -> None:
    askers = {
        module
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("dialect.name")
    }
    assert askers == {"dialects"}


@pytest.mark.parametrize("name", ["pickle", "marshal", "shelve", "dill"])
def test_nothing_is_pickled(name: str) -> None:
    assert not [str(found) for found in all_imports(foreign=True) if found.imported == name]
