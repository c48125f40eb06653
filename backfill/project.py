"""Finds the user's Alembic project by running its own env.py, with a step that does nothing.

So there is no second configuration and no URL typed twice: engine, heads and version table
are those that `alembic upgrade` would use.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from backfill import settings
from backfill.dialects import free_of_event_loops
from backfill.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the project is: what the command line said of it."""

    config_file: str | None = None
    url: str | None = None
    section: str = "alembic"
    x: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Project:
    """An Alembic project and the database that it migrates."""

    config: Config
    script: ScriptDirectory
    engine: sa.Engine
    heads: tuple[str, ...]
    """The revisions that the database stands at."""

    @property
    def applied(self) -> frozenset[str]:
        """Return every revision that the database has been through, across branches."""
        if not self.heads:
            return frozenset()
        try:
            revisions = list(self.script.iterate_revisions(self.heads, "base"))
        except CommandError as error:
            raise ConfigurationError(
                f"The database stands at {', '.join(self.heads)}, which {self.script.versions} does"
                f" not know: {error}. Is this the code that was deployed?"
            ) from error
        return frozenset(revision.revision for revision in revisions)

    @property
    def settings_layer(self) -> dict[str, Any]:
        """Return the settings of `[tool.backfill]` and, over them, of `[backfill]`."""
        found = settings.from_pyproject(Path("pyproject.toml"))
        if self.config.config_file_name is not None:
            found |= self.config.get_section("backfill", {}) or {}
            found.pop("here", None)
        return found


def load(
    config_file: str | None = None,
    *,
    url: str | None = None,
    x: Sequence[str] = (),
    section: str = "alembic",
) -> Project:
    """Find the project and look at its database.

    `config_file` is Alembic's, by default `$ALEMBIC_CONFIG` or `alembic.ini` here; `url`
    overrides the one in it; `x` are arguments for env.py, as `alembic -x` takes them.
    Raises ConfigurationError if there is no project, or env.py fails.
    """
    config = _config(config_file, section, x)
    if url is not None:
        config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    try:
        script = ScriptDirectory.from_config(config)
    except CommandError as error:
        raise ConfigurationError(f"{config.config_file_name}: {error}") from error
    context = _run_env(config, script)
    engine = context.connection.engine if context.connection is not None else None
    if engine is None:
        raise ConfigurationError(f"{script.env_py_location} gave Alembic no connection.")
    if url is not None and engine.url != sa.make_url(url):
        return _elsewhere(config, script, context, url)
    return Project(config, script, free_of_event_loops(engine), context.heads)


@dataclass(slots=True)
class _Captured:
    connection: sa.Connection | None = None
    heads: tuple[str, ...] = ()
    version_table: str = "alembic_version"
    version_table_schema: str | None = None


def _config(config_file: str | None, section: str, x: Sequence[str]) -> Config:
    path = Path(config_file or settings.config_path() or "alembic.ini")
    if not path.is_file():
        raise ConfigurationError(
            f"There is no {path} here. Go to the folder of your Alembic project, or name its"
            " configuration: `backfill -c path/to/alembic.ini …`."
        )
    return Config(str(path), ini_section=section, cmd_opts=Namespace(x=list(x) or None))


def _run_env(config: Config, script: ScriptDirectory) -> _Captured:
    """Run env.py without migrating, and without letting it set up logging for us."""
    captured = _Captured()

    def look(heads: Any, context: MigrationContext) -> list[Any]:
        captured.connection = context.connection
        captured.heads = tuple(context.get_current_heads())
        captured.version_table = context.version_table
        captured.version_table_schema = context.version_table_schema
        return []

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # Alembic's "Context impl …" is for its own commands
    try:
        with EnvironmentContext(config, script, fn=look, dont_mutate=True):
            script.run_env()
    except (CommandError, ImportError, sa.exc.SQLAlchemyError) as error:
        raise ConfigurationError(
            f"{script.env_py_location} could not be run: {_scrubbed(error, config)}"
        ) from error
    finally:
        logging.disable(before)
        _enable_our_loggers()
    return captured


def _enable_our_loggers() -> None:
    """env.py's fileConfig disables every logger that exists already."""
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] == "backfill":
            logger.disabled = False


def _scrubbed(error: Exception, config: Config) -> str:
    """Return an error's text without the password of the configured URL."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    try:
        password = sa.make_url(config.get_main_option("sqlalchemy.url") or "").password
    except (sa.exc.ArgumentError, ValueError):
        return text
    return text.replace(str(password), "***") if password else text


def _elsewhere(config: Config, script: ScriptDirectory, captured: _Captured, url: str) -> Project:
    """Look at the database of `--url`, where env.py takes its own from somewhere else."""
    try:
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection,
                opts={
                    "version_table": captured.version_table,
                    "version_table_schema": captured.version_table_schema,
                },
            )
            return Project(config, script, engine, tuple(context.get_current_heads()))
    except (ImportError, sa.exc.SQLAlchemyError) as error:
        shown = sa.make_url(url).render_as_string(hide_password=True)
        text = f"{shown} cannot be reached: {_scrubbed(error, config)}"
        raise ConfigurationError(text) from error
