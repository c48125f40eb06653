"""`backfill new`: a commented class beside its revision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from backfill.discovery import folder_beside, resolved
from backfill.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import ModuleType

    from alembic.script import Script, ScriptDirectory

    from backfill.steps import Fill

_TEMPLATE = '''\
"""Backfill {name}, after revision {revision}."""

from backfill import Backfill


class {class_name}(Backfill):
    """Say in one line what this does; `backfill list` shows it."""

    name = "{name}"
    revision = "{revision}"
    table = {table}

    # Rows that are still to do. Complete means that no row matches it any more.
    where = "new_column IS NULL"

    # Either the database does the work ...
    values = {{"new_column": "lower(old_column)"}}

    # ... or Python does, outside any transaction (then remove `values`):
    #
    # reads = ["old_column"]
    # writes = ["new_column"]
    #
    # def transform(self, row):
    #     return {{"new_column": row.old_column.lower()}}
'''
_FILL = '''\
"""Backfill {name}, after revision {revision}."""

from backfill import Backfill


class {class_name}(Backfill):
    """Fill {table}.{column}."""

    name = "{name}"
    revision = "{revision}"
    {place}
    where = {where}
{comment}    values = {{{key}: {value}}}
'''
_UNDECIDED = """
    # TODO: write the value in place of the dots, in SQL: "lower(login)", or "'none'"
    # for a constant. Nothing runs before that. Where only Python can compute it, write
    # `reads`, `writes` and `transform` instead of `values`.
"""
_SYNC = """\
    sync = True  # triggers follow the code that still writes the old column
"""
_IMPORT = "import backfill  # noqa: F401  (keeps its tables out of autogenerate)\n"


def write_class(
    script: ScriptDirectory, name: str, revision: str, table: str, taken: Collection[str] = ()
) -> list[Path]:
    """Write the class into `backfills/`, and let its revision import us if none does.

    `taken` are the names of backfills that are there already. Returns the files written. Raises
    ConfigurationError if the revision is unknown, or the name or the file is there already.
    """
    found = resolved(script, revision)
    if found is None:
        raise ConfigurationError(
            f"There is no revision {revision!r}, or not only one; see `alembic history`."
        )
    if name in taken:
        raise ConfigurationError(f"A backfill is called {name!r} already; choose another name.")
    if not name.isidentifier() or not _class_name(name):
        raise ConfigurationError(f"{name!r} is no name; take letters, digits and underscores.")
    source = Path(found.path)
    path = folder_beside(script, source.resolve()) / f"{name}.py"
    if path.exists():
        raise ConfigurationError(f"{path} is there already; choose another name.")
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        _TEMPLATE.format(
            name=name, class_name=_class_name(name), revision=found.revision, table=_quoted(table)
        ),
        encoding="utf-8",
    )
    return [path, *_import_us(script, source)]


def write_fill(script: ScriptDirectory, fill: Fill, revision: Script) -> Path:
    """Write the class that fills a column after this revision; the file.

    Where nobody knows the value yet there are dots, with which it refuses to run.
    """
    path = folder_beside(script, Path(revision.path).resolve()) / f"{fill.name}.py"
    place = [f"table = {_quoted(fill.table)}"]
    if fill.schema is not None:
        place.append(f"schema = {_quoted(fill.schema)}")
    if fill.database:
        place.append(f"database = {_quoted(fill.database)}")
    comment = _UNDECIDED + (f"    # {fill.hint}\n" if fill.hint else "")
    text = _FILL.format(
        name=fill.name,
        class_name=_class_name(fill.name),
        revision=revision.revision,
        table=fill.table,
        column=fill.column,
        key=_quoted(fill.column),
        place="\n    ".join(place),
        where=_quoted(fill.where),
        comment=comment if fill.value is None else "",
        value="..." if fill.value is None else _quoted(fill.value),
    )
    if fill.sync:
        text += _SYNC
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _quoted(text: str) -> str:
    """Return a string as a careful person writes it: in double quotes, where it has none."""
    return json.dumps(text, ensure_ascii=False) if '"' not in text else repr(text)


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _imports_us(module: ModuleType) -> bool:
    ours = ("backfill", "backfill.declaration")
    return any(
        getattr(value, "__module__", getattr(value, "__name__", None)) in ours
        for value in vars(module).values()
    )


def _import_us(script: ScriptDirectory, source: Path) -> list[Path]:
    """Alembic's own commands load the revisions and nothing else of ours."""
    if any(_imports_us(revision.module) for revision in script.walk_revisions()):
        return []
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    place = next(
        (i for i, line in enumerate(lines) if line.startswith("from alembic import")), None
    )
    if place is None:
        return []
    lines.insert(place + 1, _IMPORT)
    source.write_text("".join(lines), encoding="utf-8")
    return [source]
