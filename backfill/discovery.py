"""Finds the declared backfills: in the revision files, and in `backfills/` beside them."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alembic.script.revision import RevisionError
from alembic.util import CommandError

from backfill.declaration import Backfill
from backfill.errors import (
    BackfillError,
    ConfigurationError,
    DeclarationError,
    UnknownBackfill,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

    from alembic.script import Script, ScriptDirectory

FOLDER = "backfills"
_STEPS = re.compile(r"[+-]\d+$")


@dataclass(frozen=True, slots=True)
class Declared:
    """A backfill class, where it stands, and whether its revision is applied."""

    declaration: type[Backfill]
    revision: str
    path: Path
    is_applied: bool
    is_known: bool = True
    """Whether the project has its revision: one that was squashed or deleted it has not."""

    @property
    def name(self) -> str:
        return self.declaration.name

    @property
    def depends_on(self) -> tuple[str, ...]:
        return tuple(self.declaration.depends_on)


def discover(script: ScriptDirectory, applied: frozenset[str]) -> list[Declared]:
    """Return all declared backfills in the order in which they run.

    That is the order of the revision graph, on one revision that of their declaration, and each
    after those that it depends on. Those of an unknown revision come last.
    Raises DeclarationError for a class that is wrong, one name twice, or `depends_on` that names
    nothing or goes in a circle.
    """
    revisions = revisions_of(script)
    order = {revision.revision: i for i, revision in enumerate(revisions)}
    found = [
        _declared(declaration, revision, path, script, applied)
        for declaration, revision, path in (*_in_revisions(revisions), *_in_folders(script))
    ]
    _refuse_same_names(found)
    found.sort(key=lambda declared: order.get(declared.revision, len(order)))
    return _dependencies_first(found)


def named(declared: Sequence[Declared], names: Iterable[str]) -> list[Declared]:
    """Return the backfills of these names, in their own order; all if there is no name.

    Raises UnknownBackfill, with names that are close.
    """
    wanted = list(names)
    known = {one.name for one in declared}
    for name in wanted:
        if name not in known:
            raise UnknownBackfill(name, difflib.get_close_matches(name, sorted(known)))
    return [one for one in declared if not wanted or one.name in wanted]


def in_database(
    declared: Iterable[Declared], database: str, databases: Sequence[str]
) -> list[Declared]:
    """Return the backfills of one of the databases that env.py migrates.

    One that names none belongs to the only one, or to Flask's default bind, which has no name.
    Raises DeclarationError where that leaves none.
    """
    default = databases[0] if len(databases) == 1 else ""
    found = []
    for one in declared:
        wanted = default if one.declaration.database is None else one.declaration.database
        if wanted not in databases:
            raise DeclarationError(_which_database(one, databases))
        if wanted == database:
            found.append(one)
    return found


def _which_database(one: Declared, databases: Sequence[str]) -> str:
    said, known = one.declaration.database, [name for name in databases if name]
    if not known:
        return f"{one.path}: {one.name} names the database {said!r}, but env.py knows only one."
    problem = "does not say which database it fills" if said is None else f"fills {said!r}"
    return (
        f"{one.path}: {one.name} {problem}; env.py migrates {', '.join(known)}. Name one of them:"
        f' database = "{known[0]}".'
    )


def files(script: ScriptDirectory) -> tuple[list[Path], list[Path]]:
    """Return the files in which revisions may be, and those of the folders for backfills."""
    deep = "**/*.py" if script.recursive_version_locations else "*.py"
    locations = _locations(script)
    versions = {path for location in locations for path in location.glob(deep)}
    folders = {path for one in locations for path in (one.parent / FOLDER).glob("*.py")}
    return sorted(versions), sorted(folders)


def revisions_of(script: ScriptDirectory) -> list[Script]:
    """Return all revisions, first ones first. Raises DeclarationError where a class in one of the
    files is wrong, and ConfigurationError where Alembic cannot read them."""
    try:
        return list(script.walk_revisions())[::-1]
    except BackfillError as error:
        raise DeclarationError(f"{_innermost_file(error, script)}: {error}") from error
    except CommandError as error:
        raise ConfigurationError(f"Alembic cannot read {script.dir}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a file raises when it is imported
        raise ConfigurationError(
            f"The revisions in {script.dir} cannot be loaded: {type(error).__name__}: {error}. Let"
            " `alembic history` work first."
        ) from error


def _innermost_file(error: BaseException, script: ScriptDirectory) -> str:
    """Return the revision file in which an error was raised."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    ours = Path(__file__).parent
    return next(
        (f for f in reversed(files) if f.endswith(".py") and Path(f).parent != ours),
        str(script.dir),
    )


def _in_revisions(revisions: Sequence[Script]) -> list[tuple[type[Backfill], str | None, Path]]:
    return [
        (declaration, revision.revision, Path(revision.path))
        for revision in revisions
        for declaration in _classes(revision.module)
    ]


def folder_beside(script: ScriptDirectory, revision: Path) -> Path:
    """Return where classes are looked for that run after a revision in this file."""
    holding = [one for one in _locations(script) if revision.is_relative_to(one)]
    return (holding[0] if holding else revision.parent).parent / FOLDER


def _locations(script: ScriptDirectory) -> list[Path]:
    return [Path(location).resolve() for location in script._version_locations]


def _in_folders(script: ScriptDirectory) -> list[tuple[type[Backfill], str | None, Path]]:
    folders = {location.parent / FOLDER for location in _locations(script)}
    return [
        (declaration, None, path)
        for folder in sorted(folders)
        for path in sorted(folder.glob("*.py"))
        for declaration in _classes(_load(path))
    ]


def _load(path: Path) -> ModuleType:
    """Import a file by its path, under a name of its own."""
    name = f"_backfill_declarations.{path.parent.parent.name}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BackfillError as error:
        raise DeclarationError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        raise DeclarationError(
            f"{path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module


def _classes(module: ModuleType) -> list[type[Backfill]]:
    """Return the concrete declarations that a module itself makes, in their order."""
    found = (
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Backfill)
        and value.__module__ == module.__name__
        and hasattr(value, "level")
    )
    return list(dict.fromkeys(found))  # a class may have two names there


def _declared(
    declaration: type[Backfill],
    inferred: str | None,
    path: Path,
    script: ScriptDirectory,
    applied: frozenset[str],
) -> Declared:
    wanted = declaration.revision or inferred
    if wanted is None:
        raise DeclarationError(
            f"{path}: {declaration.__name__} does not say after which revision it runs; a class in"
            f' `{FOLDER}/` names it: revision = "8f2c1a".'
        )
    found = resolved(script, wanted)
    if found is not None and not _is_fixed(wanted, found):
        raise DeclarationError(
            f"{path}: {declaration.__name__} names the revision {wanted!r}, which is another one"
            f" with each new revision. Name it by its id: {found.revision!r}."
        )
    revision = wanted if found is None else found.revision
    declaration.revision = revision
    return Declared(declaration, revision, path, revision in applied, is_known=found is not None)


def resolved(script: ScriptDirectory, wanted: str) -> Script | None:
    """Return the revision that an id, the beginning of one, a branch's label, or one of these
    with steps from it (`head-1`) stands for; None if there is none, or more than one."""
    with suppress(CommandError):
        return script.get_revision(wanted)
    if _STEPS.search(wanted):
        with suppress(CommandError, RevisionError):
            return next(iter(script.walk_revisions("base", wanted)), None)
    return None


def _is_fixed(wanted: str, found: Script) -> bool:
    """Whether it will stand for the same revision tomorrow, as `head` does not."""
    return wanted in found.branch_labels or found.revision.startswith(wanted.rpartition("@")[2])


def unknown_revision(one: Declared, script: ScriptDirectory) -> str:
    """Say what to do about a backfill whose revision the project has not."""
    return (
        f"{one.path}: {one.declaration.__name__} names the revision {one.revision!r}, which is not"
        f" in {script.dir}. If it was squashed, name the one that took its place, or delete the"
        f" class. Known heads: {', '.join(script.get_heads()) or 'none'}."
    )


def _dependencies_first(found: Sequence[Declared]) -> list[Declared]:
    """Return the backfills in their order, but each after those that it depends on."""
    by_name = {one.name: one for one in found}
    ordered: dict[str, Declared] = {}

    def add(one: Declared, waiting: tuple[str, ...]) -> None:
        if one.name in waiting:
            circle = " -> ".join((*waiting[waiting.index(one.name) :], one.name))
            raise DeclarationError(
                f"{one.path}: {one.name} waits for itself: {circle}. Take one of these out of"
                " `depends_on`."
            )
        for name in one.depends_on:
            if name not in by_name:
                close = difflib.get_close_matches(name, sorted(by_name))
                raise DeclarationError(f"{one.path}: `depends_on`: {UnknownBackfill(name, close)}")
            add(by_name[name], (*waiting, one.name))
        ordered.setdefault(one.name, one)

    for one in found:
        add(one, ())
    return list(ordered.values())


def _refuse_same_names(found: Sequence[Declared]) -> None:
    seen: dict[str, Declared] = {}
    for declared in found:
        other = seen.setdefault(declared.name, declared)
        if other is not declared:
            raise DeclarationError(
                f"Two classes are called {declared.name!r}: {other.declaration.__name__} in"
                f" {other.path} and {declared.declaration.__name__} in {declared.path}. The name"
                ' is the identity in the state tables; give one of them another: name = "…".'
            )
