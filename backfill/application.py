"""The Flask application that a Flask-Migrate project's env.py stands in; Flask is optional."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from backfill import kinds, settings
from backfill.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from alembic.config import Config
    from flask import Flask


def is_entered() -> bool:
    """Whether an application's context is active, as it is below `flask`."""
    flask = sys.modules.get("flask")
    return flask is not None and bool(flask.has_app_context())


def is_possible() -> bool:
    """Whether Flask-Migrate is installed."""
    return find_spec("flask_migrate") is not None


def enter(import_path: str | None, stack: ExitStack) -> None:
    """Load the application as `flask` would, and enter its context until the stack is closed.

    `import_path` is that of `flask --app`, without it `$FLASK_APP`, else `wsgi.py` or `app.py`.
    Raises ConfigurationError if there is none, or it cannot be loaded.
    """
    stack.enter_context(_load(import_path).app_context())


def _load(import_path: str | None) -> Flask:
    from flask.cli import NoAppException, ScriptInfo, load_dotenv

    load_dotenv()
    try:
        return ScriptInfo(import_path or settings.flask_app()).load_app()
    except NoAppException as error:
        raise ConfigurationError(error.format_message()) from error
    except Exception as error:
        raise ConfigurationError(kinds.masked(f"{type(error).__name__}: {error}")) from error


def migrate_config(directory: str | None, x: Sequence[str]) -> Config | None:
    """Return the active application's configuration of Alembic, as `flask db` makes it.

    `directory` is the one of the revisions, by default what the application itself says;
    None: it has no Flask-Migrate.
    """
    from flask import current_app

    found = current_app.extensions.get("migrate")
    if found is None:
        return None
    config: Config = found.migrate.get_config(directory, x_arg=list(x))
    return config
