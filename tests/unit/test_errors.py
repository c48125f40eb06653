"""The tree of exceptions, drawn in the docstring of errors.py."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import backfill
from backfill import errors
from backfill.errors import BackfillError


def import_all() -> None:
    for module in pkgutil.walk_packages(backfill.__path__, "backfill."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def below(kind: type[BackfillError]) -> list[type[BackfillError]]:
    """This class and all that derive from it in the package, parents first."""
    children = [one for one in kind.__subclasses__() if one.__module__.startswith("backfill.")]
    return [kind, *(found for child in children for found in below(child))]


def drawn() -> dict[str, str | None]:
    """Each name in the drawing with its parent's."""
    assert errors.__doc__ is not None
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"([│├└─ ]*)([A-Z]\w+)  +\S|([│├└─ ]*)([A-Z]\w+)$", line)
        if found is None:
            continue
        indent, name = found.group(1, 2) if found.group(2) else found.group(3, 4)
        del path[len(indent) // 3 :]
        parents[name] = path[-1] if path else None
        path.append(name)
    return parents


def test_tree_is_as_drawn() -> None:
    import_all()
    real = {
        kind.__name__: None if kind is BackfillError else kind.__bases__[0].__name__
        for kind in below(BackfillError)
    }
    assert drawn() == real


def test_every_error_is_in_one_module() -> None:
    import_all()
    assert {kind.__module__ for kind in below(BackfillError)} == {"backfill.errors"}


@pytest.mark.parametrize("kind", below(BackfillError), ids=lambda kind: kind.__name__)
def test_every_error_is_raised_or_a_parent(kind: type[BackfillError]) -> None:
    if kind.__subclasses__():
        return
    package = Path(backfill.__path__[0])
    names = (
        node.func.id
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    )
    assert kind.__name__ in set(names)


def test_every_error_says_what_it_is() -> None:
    assert all(kind.__doc__ for kind in below(BackfillError))


EXAMPLES = [
    errors.UnknownBackfill("fil", ["fill"]),
    errors.InvalidTransition("fill", "running", "paused"),
    errors.DeclarationChanged("fill"),
    errors.LeaseHeld("fill", "host (process 7)"),
    errors.LeaseLost(7),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_attributes_are_in_the_message(error: BackfillError) -> None:
    for value in vars(error).values():
        for part in value if isinstance(value, list) else [value]:
            assert str(part) in str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_message_is_a_sentence_or_more(error: BackfillError) -> None:
    assert str(error).rstrip("`").endswith((".", "?"))


def test_unknown_backfill_without_a_close_name() -> None:
    assert "backfill list" in str(errors.UnknownBackfill("x", []))


def test_transition_that_is_not_allowed_is_told_with_the_way_on() -> None:
    error = errors.InvalidTransition("fill", "paused", "running")
    assert str(error) == (
        "Backfill 'fill' is paused and cannot be run: first `backfill resume fill`, then"
        " `backfill run fill`."
    )
