"""Finds the user's Alembic project by running its own env.py, with a step that does nothing.

So there is no second configuration and no URL typed twice: engine, heads and version table
are those that `alembic upgrade` would use.
"""

from __future__ import annotations

import logging
import traceback
from configparser import Error as ParserError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError

from backfill import kinds, store
from backfill.configuration import Origin, configuration, parser_problem, state_schema
from backfill.dialects import dialect_for, free_of_event_loops, keep_place, outside_of_loops
from backfill.errors import ConfigurationError
from backfill.settings import urls_in_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alembic.config import Config


@dataclass(frozen=True)
class Project:
    """An Alembic project and one of the databases that it migrates, mostly the only one."""

    config: Config
    script: ScriptDirectory
    engine: sa.Engine
    heads: tuple[str, ...]
    """The revisions that the database stands at."""
    database: str = ""
    """What env.py calls it, where it migrates several."""
    version_table: str = "alembic_version"
    """With its schema, if that is not the default one."""
    is_elsewhere: bool = False
    """`--url` named another database than the one that env.py leads to."""

    @cached_property
    def applied(self) -> frozenset[str]:
        """Return every revision that the database has been through, across branches."""
        return applied(self.script, self.heads)

    def has_taken_back(self, revision: str) -> bool:
        """Whether the database has gone below a revision that the project has; of one that it
        has not (squashed, deleted) nobody can tell."""
        with suppress(CommandError):
            found = self.script.get_revision(revision)
            return found is not None and found.revision not in self.applied
        return False


def applied(script: ScriptDirectory, heads: Sequence[str]) -> frozenset[str]:
    """Return every revision that a database at these heads has been through, across branches."""
    if not heads:
        return frozenset()
    try:
        revisions = list(script.iterate_revisions(tuple(heads), "base"))
    except (CommandError, RevisionError) as error:
        raise ConfigurationError(
            f"The database stands at {', '.join(heads)}, which {script.dir} does"
            f" not know: {error}. Is this the code that was deployed?"
        ) from error
    return frozenset(revision.revision for revision in revisions)


def load(
    config_file: str | None = None,
    *,
    url: str | None = None,
    x: Sequence[str] = (),
    section: str = "alembic",
) -> Project:
    """Find a project, and look at its only database.

    `config_file` is Alembic's, by default `$ALEMBIC_CONFIG` or what is here; `url` overrides the
    one in it; `x` are arguments for env.py, as `alembic -x` takes them.
    Raises ConfigurationError if there is no project, or env.py fails or migrates several.
    """
    origin = Origin((config_file,) if config_file else (), url, section, x)
    with ExitStack() as stack:
        projects = load_all(origin, stack)
    if len(projects) > 1:
        names = ", ".join(repr(one.database) for one in projects)
        raise ConfigurationError(f"{projects[0].script.dir} has several databases: {names}.")
    return projects[0]


def load_all(origin: Origin, stack: ExitStack) -> list[Project]:
    """Find the project and look at its databases: several where env.py migrates several.

    If the origin names a database it is the only one. The project, if it stands in a Flask
    application, can be used until the stack is closed.
    Raises ConfigurationError if there is no project, or env.py fails.
    """
    config, script = find(origin, stack)
    databases = _run_env(config, script)
    if origin.database is not None:
        databases = [one for one in databases if one.name == origin.database]
    schema = state_schema(config)
    databases = [replace(one, engine=store.keep_in(one.engine, schema)) for one in databases]
    if origin.url is None:
        return [one.of(config, script) for one in databases]
    if len(databases) > 1:
        raise ConfigurationError(
            f"{script.env_py_location} migrates several databases, so that one `--url` will not"
            " do; configure them as Alembic has them, and leave `--url` out."
        )
    (one,) = databases
    if one.engine.url == sa.make_url(origin.url):
        return [one.of(config, script)]
    elsewhere = _elsewhere(config, script, one, origin.url)
    return [replace(elsewhere, engine=store.keep_in(elsewhere.engine, schema))]


def find(origin: Origin, stack: ExitStack) -> tuple[Config, ScriptDirectory]:
    """Find the project, and look at no database; likewise."""
    config = configuration(origin, stack)
    if origin.url is not None:
        config.set_main_option("sqlalchemy.url", origin.url.replace("%", "%%"))
    try:
        return config, ScriptDirectory.from_config(config)
    except ParserError as error:
        raise ConfigurationError(f"{config.config_file_name}: {parser_problem(error)}") from error
    except (CommandError, ValueError) as error:
        raise ConfigurationError(f"{config.config_file_name}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Database:
    """What a call of `context.run_migrations` would have migrated."""

    name: str
    engine: sa.Engine
    heads: tuple[str, ...]
    version_table: str
    version_table_schema: str | None

    def of(self, config: Config, script: ScriptDirectory) -> Project:
        table = _qualified(self.version_table, self.version_table_schema)
        return Project(config, script, self.engine, self.heads, self.name, table)

    @classmethod
    def seen(cls, context: MigrationContext, connection: sa.Connection) -> _Database:
        return cls(
            database_name(context),
            keep_place(connection),
            tuple(context.get_current_heads()),
            context.version_table,
            context.version_table_schema,
        )


def version_table(context: MigrationContext) -> str:
    """Return the name of Alembic's own table, by which runs remember whose they are."""
    return _qualified(context.version_table, context.version_table_schema)


def _qualified(table: str, schema: str | None) -> str:
    return f"{schema}.{table}" if schema else table


def database_name(context: MigrationContext) -> str:
    """Return what env.py calls the database that it migrates now; "" where it has only one."""
    # As the templates for several databases have it: "engine1_upgrades".
    token: str = context.opts.get("upgrade_token", "")
    return token.removesuffix("upgrades").removesuffix("_")


def _run_env(config: Config, script: ScriptDirectory) -> list[_Database]:
    """Run env.py without migrating, and without letting it set up logging for us."""
    found: list[_Database] = []

    def look(heads: Any, context: MigrationContext) -> list[Any]:
        if context.connection is not None:
            found.append(_Database.seen(context, context.connection))
        return []

    try:
        with _quiet(), EnvironmentContext(config, script, fn=look, dont_mutate=True):
            outside_of_loops(script.run_env)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{script.env_py_location} could not be run: {_described(error, config)}"
        ) from error
    if not found:
        raise ConfigurationError(f"{script.env_py_location} gave Alembic no connection.")
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"{script.env_py_location} migrates {len(names)} times, and does not say by an"
            " `upgrade_token` what. Let it migrate one database or schema alone, such as by"
            " `backfill -x tenant=NAME …`."
        )
    return [replace(one, engine=let_go(one.engine)) for one in found]


def let_go(engine: sa.Engine) -> sa.Engine:
    """Close what env.py left in the pool: an advisory lock would be held as long as we run."""
    if isinstance(engine.pool, sa.QueuePool) and not engine.dialect.is_async:
        engine.dispose()
    return free_of_event_loops(engine)


@contextmanager
def _quiet() -> Iterator[None]:
    """Alembic's "Context impl …" is for its own commands."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with kept_loggers():
            yield
    finally:
        logging.disable(before)


@contextmanager
def kept_loggers() -> Iterator[None]:
    """env.py's fileConfig disables every logger that exists by then, ours and the user's."""
    off = [one for one in _loggers() if one.disabled]
    try:
        yield
    finally:
        for logger in _loggers():
            logger.disabled = logger in off


def _loggers() -> list[logging.Logger]:
    known = list(logging.root.manager.loggerDict.values())
    return [one for one in known if isinstance(one, logging.Logger)]


def _described(error: BaseException, config: Config) -> str:
    """Return what an error says, and where in the file it was raised if it is the user's own."""
    if isinstance(error, ParserError):
        return parser_problem(error)
    text = _scrubbed(error, config)
    if isinstance(error, (CommandError, ImportError, sa.exc.SQLAlchemyError)):
        return text
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == "env.py"
    ]
    return f"{type(error).__name__}: {text}" + (f" (line {lines[-1]})" if lines else "")


def _scrubbed(error: BaseException, config: Config) -> str:
    """Return an error's text without the passwords of the URLs that env.py may have taken."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    section = config.config_ini_section
    url = config.file_config.get(section, "sqlalchemy.url", raw=True, fallback="")
    for secret in kinds.secrets_of(url.replace("%%", "%"), *urls_in_environment()):
        text = text.replace(secret, "***")
    return kinds.masked(text)


def _elsewhere(config: Config, script: ScriptDirectory, instead: _Database, url: str) -> Project:
    """Look at the database of `--url`, where env.py takes its own from somewhere else."""
    options = {
        "version_table": instead.version_table,
        "version_table_schema": instead.version_table_schema,
    }

    def heads() -> tuple[str, ...]:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts=options)
            return tuple(context.get_current_heads())

    try:
        engine = free_of_event_loops(sa.create_engine(url, poolclass=sa.pool.NullPool))
        found = dialect_for(engine).call(heads)
        return replace(instead.of(config, script), engine=engine, heads=found, is_elsewhere=True)
    except (ImportError, sa.exc.SQLAlchemyError) as error:
        shown = kinds.masked(sa.make_url(url).render_as_string(hide_password=True))
        text = f"{shown} cannot be reached: {_scrubbed(error, config)}"
        raise ConfigurationError(text) from error
