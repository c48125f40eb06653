"""A database for one test, and in it the schema of a revision, by the project's own migrations."""

from __future__ import annotations

import logging
import secrets
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.runtime.environment import EnvironmentContext

from backfill.configuration import Origin
from backfill.dialects import dialect_for
from backfill.errors import ConfigurationError
from backfill.project import load_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from alembic.runtime.migration import MigrationContext

    from backfill.project import Project

_KEPT = (
    *("target_metadata", "version_table", "version_table_schema", "version_table_pk"),
    *("transaction_per_migration", "render_as_batch", "user_module_prefix"),
)
"""What env.py said to Alembic that holds for another database, too."""
_NAME = "backfill_test_{}"


@contextmanager
def fresh_database(url: str | None, directory: Path) -> Iterator[sa.URL]:
    """Give the URL of an empty database, which is removed afterwards.

    Without a `url` it is an SQLite file in the directory. With one, it is another database on
    that server, and the user in the URL has to be allowed to create it; the one that the URL
    names is connected to, and not touched.
    """
    name = _NAME.format(secrets.token_hex(6))
    given = sa.make_url(url or "sqlite://")
    if given.get_backend_name() == "sqlite":
        file = directory / f"{name}.sqlite3"
        yield given.set(database=str(file))
        file.unlink(missing_ok=True)
        return
    _execute(given, "CREATE DATABASE", name)
    try:
        yield given.set(database=name)
    finally:
        _execute(given, "DROP DATABASE", name)


def load_for(config_file: str | None, url: sa.URL, stack: ExitStack) -> Project:
    """Find the project, for another database; it can be used until the stack is closed.

    Raises ConfigurationError.
    """
    with _undisturbed():
        try:
            return _load(config_file, url, stack)
        except ConfigurationError as error:
            is_wrong_driver = isinstance(error.__cause__, sa.exc.InvalidRequestError)
            if not is_wrong_driver or url.drivername != "sqlite":
                raise
            url = url.set(drivername="sqlite+aiosqlite")  # env.py is asynchronous
            return _load(config_file, url, stack)


def _load(config_file: str | None, url: sa.URL, stack: ExitStack) -> Project:
    files = (config_file,) if config_file is not None else ()
    (project,) = load_all(Origin(files, url.render_as_string(hide_password=False)), stack)
    return project


def _execute(url: sa.URL, what: str, name: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")

    def execute() -> None:
        with engine.connect() as connection:
            quoted = engine.dialect.identifier_preparer.quote(name)
            connection.exec_driver_sql(f"{what} {quoted}")

    dialect_for(engine).call(execute)


def upgrade(project: Project, revision: str) -> str:
    """Migrate the project's database to a revision; the name of the version table.

    By env.py, where that follows the URL that it is given. An env.py that takes its URL from
    somewhere else leads to a database which is none of the test's: then it is only asked for its
    options, and the revisions are run without it.
    """
    with _undisturbed():
        seen = _look(project)
        if seen.is_ours:
            with _migrating(project, revision):
                project.script.run_env()
        else:
            dialect_for(project.engine).call(_without_env, project, revision, seen)
        return seen.version_table


@dataclass(slots=True)
class _Seen:
    """What env.py tells Alembic."""

    is_ours: bool = False
    """It leads to the project's database."""
    options: dict[str, Any] = field(default_factory=dict)
    version_table: str = "alembic_version"


def _look(project: Project) -> _Seen:
    """Run env.py without migrating: Alembic would make its version table wherever that leads."""
    seen = _Seen()

    def look(heads: Any, context: MigrationContext) -> Any:
        url = context.connection.engine.url if context.connection is not None else None
        seen.is_ours = seen.is_ours or (url is not None and _is_of(project, url))
        seen.options = {k: v for k, v in context.opts.items() if k in _KEPT}
        seen.version_table = context.version_table
        return []

    with EnvironmentContext(project.config, project.script, fn=look, dont_mutate=True):
        project.script.run_env()
    return seen


def _is_of(project: Project, url: sa.URL) -> bool:
    """Whether a URL is the project's, by whatever driver: an asynchronous one, or its brother."""
    ours = project.engine.url
    return url.set(drivername=url.get_backend_name()) == ours.set(
        drivername=ours.get_backend_name()
    )


def _migrating(project: Project, revision: str) -> EnvironmentContext:
    """Return a context in which migrations go to a revision, of the project's database only."""

    def steps(heads: Any, context: MigrationContext) -> Any:
        is_ours = context.connection is not None and _is_of(project, context.connection.engine.url)
        return project.script._upgrade_revs(revision, heads) if is_ours else []

    return EnvironmentContext(project.config, project.script, fn=steps, destination_rev=revision)


def _without_env(project: Project, revision: str, seen: _Seen) -> None:
    with _migrating(project, revision) as environment, project.engine.connect() as connection:
        environment.configure(connection=connection, **seen.options)
        with environment.begin_transaction():
            environment.run_migrations()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Run env.py as Alembic's own command would: there, what is deprecated stops nobody.

    Be quiet, and undo what its fileConfig does to all loggers and to pytest's handlers.
    """
    root = logging.root
    known = [one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    before = [
        (one, list(one.handlers), one.level, one.propagate, one.disabled) for one in [root, *known]
    ]
    manager = root.manager
    off = manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        manager.disable = off
        for one, handlers, level, propagate, disabled in before:
            one.handlers[:] = handlers
            one.setLevel(level)
            one.propagate, one.disabled = propagate, disabled
