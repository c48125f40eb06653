"""What our operations need of the migration that runs them, and what it keeps if one refuses."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from alembic.util import CommandError

from backfill import store
from backfill.configuration import state_schema
from backfill.discovery import discover, named
from backfill.errors import BackfillError
from backfill.project import applied

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import Connection

    from backfill import placement
    from backfill.declaration import Backfill
    from backfill.discovery import Declared

OFFLINE = "; triggers of `sync` are not removed by this script: `backfill cancel {name}`"
"""Behind what an operation writes into an offline script, for a person."""


def declaration_of(context: MigrationContext, name: str) -> type[Backfill]:
    """Return the class of that name. Raises UnknownBackfill."""
    (declared,) = named(declared_in(context), [name])
    return declared.declaration


def declared_in(context: MigrationContext) -> Sequence[Declared]:
    """Return the project's backfills, wherever in its history each one stands."""
    return discover(_script_of(context), frozenset())


def applied_in(context: MigrationContext) -> frozenset[str]:
    """Return the revisions that the database has been through before this step: those of the same
    command are in the version table already."""
    return applied(_script_of(context), context.get_current_heads())


def _script_of(context: MigrationContext) -> ScriptDirectory:
    environment = context.environment_context
    assert environment is not None
    return environment.script


def connection_of(context: MigrationContext) -> Connection:
    """Return the migration's own connection, which finds our tables from now on."""
    assert context.connection is not None
    return store.keep_in(context.connection, state_schema(context.config))


@contextmanager
def told_by_alembic(
    context: MigrationContext, stands: placement.Placement | None = None
) -> Iterator[None]:
    """Turn our errors into Alembic's, which it shows in one line; keep what was done before."""
    try:
        yield
    except BackfillError as error:
        trouble = _keep_earlier_revisions(context, stands)
        raise CommandError(f"{error}{trouble}") from error


def _keep_earlier_revisions(context: MigrationContext, stands: placement.Placement | None) -> str:
    """Commit the revisions before this one, with their stamps; what is to be said if not.

    An upgrade in one transaction would roll back the column that the backfill is to fill, so
    that it could never start. Leaving an empty autocommit block commits what precedes it.
    """
    if stands is not None and stands.preceding is not None:
        return _move_to_top(stands, is_undone=context.impl.transactional_ddl)
    if context._in_external_transaction:
        is_undone = context.impl.transactional_ddl
        return _upgrade_first(stands, is_undone=is_undone) if stands is not None else ""
    if context._transaction is not None:
        with context.autocommit_block():
            pass
    return ""


def _move_to_top(stands: placement.Placement, *, is_undone: bool) -> str:
    """Something comes before the gate in its own revision."""
    return (
        f" Besides, the gate has to be the first operation of revision {stands.revision}: line"
        f" {stands.preceding} of its file comes before it, and"
        + (
            " is rolled back now, with all that this upgrade did. Move the gate to the top."
            if is_undone
            else " is done already. Undo that by hand, and move the gate to the top."
        )
    )


def _upgrade_first(stands: placement.Placement, *, is_undone: bool) -> str:
    """Only env.py could commit the revisions before."""
    if stands.down_revision is None:
        return ""
    begun = " Besides, env.py has begun the transaction itself, so"
    if is_undone:
        return (
            f"{begun} the revisions before {stands.revision} are rolled back with it, if this"
            f" upgrade applied any: `alembic upgrade {stands.down_revision}` first."
        )
    return (
        f"{begun} that the revisions before {stands.revision} are applied may not be recorded,"
        " though this database keeps their tables: where `alembic current` says so, see what is"
        f" there, then `alembic stamp {stands.down_revision}`."
    )


def commit(context: MigrationContext) -> None:
    """Let go of a table's lock before anything else is waited for, where the transaction is
    Alembic's own: an empty autocommit block commits what precedes it."""
    is_own = context._transaction is not None and not context._in_external_transaction
    if is_own and context.impl.transactional_ddl:
        with context.autocommit_block():
            pass
