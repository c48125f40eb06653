"""`backfill new`: a commented class beside its revision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backfill.discovery import folder_beside, resolved
from backfill.errors import ConfigurationError

if TYPE_CHECKING:
    from types import ModuleType

    from alembic.script import ScriptDirectory

_TEMPLATE = '''\
"""Backfill {name}, after revision {revision}."""

from backfill import Backfill


class {class_name}(Backfill):
    """Say in one line what this does; `backfill list` shows it."""

    name = "{name}"
    revision = "{revision}"
    table = "{table}"

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
_IMPORT = "import backfill  # noqa: F401  (keeps its tables out of autogenerate)\n"


def write_class(script: ScriptDirectory, name: str, revision: str, table: str) -> list[Path]:
    """Write the class into `backfills/`, and let its revision import us if none does.

    Returns the files written. Raises ConfigurationError if the revision is unknown, or the
    file is there already.
    """
    found = resolved(script, revision)
    if found is None:
        raise ConfigurationError(
            f"There is no revision {revision!r}, or not only one; see `alembic history`."
        )
    if not name.isidentifier():
        raise ConfigurationError(f"{name!r} is no name; take letters, digits and underscores.")
    source = Path(found.path)
    path = folder_beside(script, source.resolve()) / f"{name}.py"
    if path.exists():
        raise ConfigurationError(f"{path} is there already; choose another name.")
    path.parent.mkdir(exist_ok=True)
    class_name = "".join(word.capitalize() for word in name.split("_"))
    path.write_text(
        _TEMPLATE.format(name=name, class_name=class_name, revision=found.revision, table=table),
        encoding="utf-8",
    )
    return [path, *_import_us(script, source)]


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
