"""`backfill doctor`: finds the known traps of a project before they bite.

What files say is told without running them, so that one which cannot be imported hides nothing;
then the project is loaded, and its databases are asked. `# backfill: ok` on a statement says that
it is meant so.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from backfill import project
from backfill.discovery import files
from backfill.doctor.databases import Examination
from backfill.doctor.findings import ERROR, Finding
from backfill.doctor.graph import hopeless_gates, several_heads
from backfill.doctor.revisions import Files
from backfill.errors import BackfillError, DeclarationError
from backfill.kinds import masked

if TYPE_CHECKING:
    from backfill.context import Call, Context

__all__ = ["Finding", "examine"]


def examine(call: Call, *, everything: bool = False) -> list[Finding]:
    """Return what was found: first in the files, then in the databases.

    Revisions that every database has been through, and backfills that are complete, are left out
    unless `everything` is asked for. Raises ConfigurationError if there is no project.
    """
    with redirect_stdout(sys.stderr):  # what an application prints is no finding
        _, script = project.find(call.origin, call.stack)
    read = Files.of(*files(script), Path(script.env_py_location))
    unreachable: list[Finding] = []
    contexts = _contexts(call, unreachable)
    applied = [context.project.applied for context in contexts]
    is_all = everything or not applied
    history: frozenset[str] = frozenset() if is_all else frozenset.intersection(*applied)
    found = read.findings(history)
    found += several_heads(read.revisions)
    if contexts:
        declared = {one.name: one.revision for here in contexts for one in here.declared}
        found += hopeless_gates(read.revisions, history, declared)
    for context in contexts:
        here = Examination(context, read.place, everything)
        found += context.dialect.call(here.findings)
    return [*unreachable, *found]


def _contexts(call: Call, unreachable: list[Finding]) -> list[Context]:
    """Return the databases, and tell why they cannot be had; what files say needs none."""
    try:
        return call.contexts
    except BackfillError as error:
        unreachable.append(_why_not(error))
    except Exception as error:  # a revision that cannot be imported raises anything
        text = f"The project cannot be loaded: {type(error).__name__}: {masked(str(error))}"
        advice = "Let `alembic history` work first; only files were looked at."
        unreachable.append(Finding("project", ERROR, "project", None, text, advice))
    return []


def _why_not(error: BackfillError) -> Finding:
    cause = error.__cause__
    if isinstance(error, DeclarationError):
        advice = "Mend the class; only files were looked at."
        return Finding("declaration", ERROR, "project", None, str(error), advice)
    if isinstance(cause, ImportError) and cause.name in _EXTRAS:
        advice = f"pip install {_EXTRAS[cause.name]}; only files were looked at."
        return Finding("driver-missing", ERROR, "database", None, str(error), advice)
    if cause is not None and not isinstance(cause, (SQLAlchemyError, OSError)):
        advice = "Let `alembic history` work first; only files were looked at."
        return Finding("project", ERROR, "project", None, str(error), advice)
    advice = "Let `alembic current` work first, or name it by --url; only files were looked at."
    return Finding("database", ERROR, "database", None, str(error), advice)


_EXTRAS = {
    "psycopg": "'backfill[postgresql]'",
    "psycopg2": "psycopg2-binary",
    "asyncpg": "asyncpg 'backfill[asyncio]'",
    "pymysql": "'backfill[mysql]'",
    "MySQLdb": "mysqlclient",
    "mariadb": "mariadb",
    "aiosqlite": "aiosqlite 'backfill[asyncio]'",
    "greenlet": "'backfill[asyncio]'",
}
