"""Finds Alembic's configuration as Alembic's own command does, or as Flask-Migrate does."""

from __future__ import annotations

import inspect
from configparser import Error as ParserError
from configparser import InterpolationError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import __version__ as alembic_version
from alembic.config import CommandLine, Config
from alembic.util import CommandError

from backfill import application, settings
from backfill.errors import ConfigurationError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from contextlib import ExitStack

    from backfill.declaration import Backfill
    from backfill.settings import Settings

_INI = "alembic.ini"
_TOML = "pyproject.toml"
_SECTION = "alembic"
_FOLDER = "script_location"

_WHAT_TO_DO = (
    "Go to the folder of your Alembic project, or name its configuration:"
    " `backfill -c path/to/alembic.ini …`."
)
_NOR_FLASK = "Nor is this a project of Flask-Migrate:"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the project is: what the command line said of it."""

    config_files: Sequence[str] = ()
    """Alembic's: an ini file, a pyproject.toml, or both."""
    url: str | None = None
    section: str = _SECTION
    x: Sequence[str] = ()
    app: str | None = None
    """The import path of `flask --app`."""
    database: str | None = None
    """Which one, where env.py migrates several."""


def configuration(origin: Origin, stack: ExitStack) -> Config:
    """Return the configuration with which env.py is to be run.

    Where that needs a Flask application its context is entered, until the stack is closed.
    Raises ConfigurationError if there is no configuration, or it cannot be read.
    """
    if application.is_entered() and not origin.config_files:
        found = application.migrate_config(None, origin.x)
        if found is not None:
            return _in_its_only_section(found, origin)
    config = _as_alembic(origin)
    return config if _says_where(config) else _of_flask(origin, config, stack)


def settings_layer(config: Config) -> dict[str, Any]:
    """Return the settings of `[tool.backfill]` and, over them, of `[backfill]`."""
    toml = getattr(config, "toml_file_name", None) or _TOML
    found = settings.from_pyproject(Path(toml))
    try:
        section = config.get_section("backfill", {}) or {}
    except ParserError as error:
        raise ConfigurationError(parser_problem(error)) from error
    foreign = config.file_config.defaults().keys() - settings.NAMES  # of [DEFAULT]
    return found | {k: v for k, v in section.items() if k not in foreign}


def parser_problem(error: Exception) -> str:
    """Return what is wrong with an ini file, without the value, which may be a URL."""
    if isinstance(error, InterpolationError):
        return (
            f"The value of {error.option!r} in [{error.section}] cannot be read: a percent sign in"
            " it is to be written twice."
        )
    return f"The configuration cannot be read: {error}"


def settings_of(
    config: Config, declaration: type[Backfill], given: tuple[str, dict[str, Any]]
) -> Settings:
    """Return the settings of a backfill, all layers on top of each other; what is `given`, and
    where, comes last. Raises ConfigurationError."""
    return settings.resolve(
        ("The configuration", settings_layer(config)),
        ("The environment", settings.from_environment()),
        (declaration.__name__, declaration.tuning()),
        given,
    )


def state_schema(config: Config | None = None) -> str | None:
    """Return the schema of our own tables, as the configuration and the environment say it: one
    for the whole project. Raises ConfigurationError."""
    layers = (
        ("The configuration", settings_layer(config) if config is not None else {}),
        ("The environment", settings.from_environment()),
    )
    name = "state_schema"
    said = [(origin, {name: layer[name]}) for origin, layer in layers if name in layer]
    return settings.resolve(*said).state_schema


# -- Alembic -------------------------------------------------------------------------------


def _as_alembic(origin: Origin) -> Config:
    ini, toml = _files(origin)
    if "toml_file" in inspect.signature(Config).parameters:
        return Config(ini, toml, ini_section=origin.section, cmd_opts=_options(origin))
    if toml in origin.config_files:
        raise ConfigurationError(
            f"Alembic {alembic_version} does not read {toml}; that needs 1.16. Name an ini file."
        )
    return Config(ini, ini_section=origin.section, cmd_opts=_options(origin))


def _files(origin: Origin) -> tuple[str, str]:
    """Return the ini file and the pyproject.toml; only one that was named must be there."""
    ini, toml = _INI, _TOML
    for name in origin.config_files or filter(None, [settings.config_path()]):
        if not Path(name).is_file():
            raise ConfigurationError(f"There is no {name} here. {_WHAT_TO_DO}")
        if Path(name).name == _TOML:
            toml = name
        else:
            ini = name
    return ini, toml


def _options(origin: Origin) -> Namespace:
    """Return what env.py would see of the command line of `alembic current`."""
    x = [f"-x{one}" for one in origin.x]
    return CommandLine("alembic").parser.parse_args([f"-n{origin.section}", *x, "current"])


def _says_where(config: Config) -> bool:
    """Whether a configuration names the folder of the revisions; Flask-Migrate's does not."""
    try:
        if config.file_config.has_option(config.config_ini_section, _FOLDER):
            return True
        return _FOLDER in getattr(config, "toml_alembic_config", {})
    except ParserError as error:
        raise ConfigurationError(parser_problem(error)) from error
    except (ValueError, CommandError) as error:
        raise ConfigurationError(f"Alembic's configuration cannot be read: {error}") from error


# -- Flask-Migrate -------------------------------------------------------------------------


def _of_flask(origin: Origin, config: Config, stack: ExitStack) -> Config:
    problem = _problem(config)
    if not application.is_possible():
        raise ConfigurationError(f"{problem} {_WHAT_TO_DO}")
    try:
        if not application.is_entered():
            application.enter(origin.app, stack)
        folder = str(Path(origin.config_files[0]).parent) if origin.config_files else None
        found = application.migrate_config(folder, origin.x)
        if found is None:
            raise ConfigurationError("the application was not given to Flask-Migrate.")
    except ConfigurationError as error:
        raise ConfigurationError(f"{problem} {_WHAT_TO_DO} {_NOR_FLASK} {error}") from error
    return _in_its_only_section(found, origin)


def _problem(config: Config) -> str:
    if Path(str(config.config_file_name)).is_file():
        name, section = config.config_file_name, config.config_ini_section
        return f"{name} has no {_FOLDER} in its section [{section}]."
    return f"There is no {_INI} here, and no {_TOML} with {_FOLDER} in [tool.alembic]."


def _in_its_only_section(config: Config, origin: Origin) -> Config:
    if origin.section != _SECTION:
        raise ConfigurationError(f"Flask-Migrate reads [{_SECTION}] only; leave out `-n`.")
    return config
