"""Nothing that comes from outside is run or unpacked as code; no URL is shown with its secrets."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import backfill
from backfill import kinds

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(backfill.__path__[0])
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNPACKS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}
UNPACKS |= {"yaml", "joblib", "copyreg"}
STARTS = {"subprocess", "pty", "popen2", "commands"}
# Pipes between a command and the workers that it has started itself, as multiprocessing makes them:
# it pickles what goes through, and nobody else can write into them.
OWN_PIPES = {"multiprocessing": {"budget.py", "processes.py"}}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in PACKAGE.rglob("*.py"):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def calls(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_nothing_is_unpacked_or_started() -> None:
    found = {(name, one) for name, tree in trees() for one in imports(tree)}
    assert {pair for pair in found if pair[1] in UNPACKS | STARTS} == set()
    for module, users in OWN_PIPES.items():
        assert {name for name, one in found if one == module} <= users


def test_nothing_is_run_as_code() -> None:
    """But what a person declares: modules of the project, and expressions in its classes."""
    found = {
        (name, call)
        for name, tree in trees()
        for call in calls(tree)
        if call in RUNS_CODE or call in {"os.system", "os.popen", "importlib.import_module"}
    }
    assert found == set()


URLS = [
    ("postgresql://app:hush@db/shop", "postgresql://app:***@db/shop"),
    ("postgresql://db/shop?user=a&password=hush", "postgresql://db/shop?user=a&password=***"),
    ("mysql://a@b/c?ssl_password=hush&x=1", "mysql://a@b/c?ssl_password=***&x=1"),
    ("https://h/health?token=hush", "https://h/health?token=***"),
    ("https://h/health?client_secret=hush;a=b", "https://h/health?client_secret=***;a=b"),
    ("https://h:8080/a@b?x=1", "https://h:8080/a@b?x=1"),
]


@pytest.mark.parametrize(("url", "shown"), URLS)
def test_urls_are_shown_without_their_secrets(url: str, shown: str) -> None:
    assert kinds.masked(f"cannot reach {url}") == f"cannot reach {shown}"


def test_parts_of_a_password_that_was_not_quoted() -> None:
    found = kinds.secrets_of("postgresql://app:s3cret@place/of:mine@db:5432/shop")
    assert found == ["s3cret@place/of:mine", "s3cret", "place", "mine"]
    assert kinds.secrets_of("sqlite:///shop.sqlite3") == []
    assert kinds.secrets_of("postgresql://app@db/shop") == []
    assert kinds.secrets_of("") == []
