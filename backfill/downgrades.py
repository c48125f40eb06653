"""Watches Alembic's downgrades, with no hook in env.py: what they take back makes a run stale.

Alembic's own hook, `on_version_apply`, has to be named in env.py, and comes when the columns are
gone already. So each step of a downgrade is wrapped as it is made: it is refused while somebody
works on what it takes back, and records in its own transaction what it has made stale.
"""

from __future__ import annotations

import logging
from functools import wraps
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic import op
from alembic.runtime.migration import MigrationStep
from alembic.util import CommandError

from backfill import owners, store
from backfill.configuration import state_schema
from backfill.dialects import ErrorKind, dialect_for
from backfill.errors import BackfillError, ConfigurationError, RunFailed
from backfill.project import version_table
from backfill.savepoints import savepoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.runtime.migration import RevisionStep
    from alembic.script import Script
    from alembic.script.revision import RevisionMap

    from backfill.dialects import Dialect

logger = logging.getLogger(__name__)


def watch() -> None:
    """Let every downgrade of this process be watched, from now on."""
    made = MigrationStep.downgrade_from_script
    if hasattr(made, "__wrapped__"):
        return

    @wraps(made)
    def watched(revision_map: RevisionMap, script: Script) -> RevisionStep:
        step = made(revision_map, script)
        step.migration_fn = _watched(step.migration_fn, script.revision)
        return step

    MigrationStep.downgrade_from_script = staticmethod(watched)  # type: ignore[method-assign]


def _watched(downgrade: Callable[..., Any], revision: str) -> Callable[..., Any]:
    @wraps(downgrade)
    def step(**given: Any) -> None:
        _look(_refuse_while_running, revision)
        downgrade(**given)
        _look(store.make_stale_here, revision)

    return step


def _look(act: Callable[[sa.Connection, Dialect, str, str], None], revision: str) -> None:
    """Act on our tables, if there are any, in the step's own transaction."""
    context = op.get_context()
    if context.as_sql or context.connection is None:
        return  # `backfill run` sees it by the revision
    connection = context.connection
    try:
        dialect = dialect_for(connection.engine)
    except ConfigurationError:
        return  # a database on which nothing of ours was ever run
    store.keep_in(connection, state_schema(context.config))
    try:
        with savepoint(connection):
            if store.exists(connection):
                act(connection, dialect, revision, version_table(context))
    except BackfillError as error:
        raise CommandError(str(error)) from error
    except sa.exc.DBAPIError as error:
        if dialect.error_kind(error) is not ErrorKind.RIGHTS:
            raise
        logger.warning(
            "This user may not write to the tables backfill_*, so that this downgrade of %s is not"
            " recorded: `backfill run` will see it if it is called before the next upgrade.",
            revision,
        )


def _refuse_while_running(
    connection: sa.Connection, dialect: Dialect, revision: str, whose: str
) -> None:
    """Raise RunFailed while a runner is alive; none begins before the step has ended."""
    for run in store.runs_of(connection, dialect, revision, whose):
        for found in store.ranges_here(connection, dialect, run):
            if found.lease_is_live and not (found.owner and owners.is_dead(found.owner)):
                raise RunFailed(
                    f"Revision {revision} cannot be downgraded while backfill {run.name!r} writes"
                    f" what it would take away: {owners.shown(found.owner or 'another runner')}"
                    f" runs it. First `backfill pause {run.name}`, or cancel it."
                )
