"""What the commands have in common: exit codes, how errors are told, options."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy.exc import SQLAlchemyError

from backfill import settings
from backfill.errors import BackfillError, ConfigurationError, UnknownBackfill
from backfill.runs import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

EXIT_COMPLETE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 3
EXIT_HELD = 4
EXIT_QUARANTINED = 5

_EXITS = {
    Outcome.COMPLETE: EXIT_COMPLETE,
    Outcome.FAILED: EXIT_FAILED,
    Outcome.STOPPED: EXIT_STOPPED,
    Outcome.HELD: EXIT_HELD,
    Outcome.QUARANTINED: EXIT_QUARANTINED,
}
_WORST_FIRST = (EXIT_FAILED, EXIT_HELD, EXIT_STOPPED, EXIT_QUARANTINED, EXIT_COMPLETE)


class _Failure(click.ClickException):
    exit_code = EXIT_FAILED


class _Misused(click.ClickException):
    exit_code = EXIT_USAGE


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn our errors into one line and an exit code."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UnknownBackfill as error:
            raise _Misused(str(error)) from error
        except BackfillError as error:
            raise _Failure(str(error)) from error
        except SQLAlchemyError as error:
            raise _Failure(f"The database: {_database_error(error)}.") from error

    return wrapped


def resumable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let Ctrl-C stop a run that has not begun, as it stops one that has."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            name = click.get_current_context().info_name
            click.echo(f"Stopped before it began; `backfill {name}` goes on.", err=True)
            sys.exit(EXIT_STOPPED)

    return wrapped


def _database_error(error: SQLAlchemyError) -> str:
    """Return the server's code and, of a failed connection, its text; else it may hold values."""
    original = getattr(error, "orig", None)
    code = getattr(original, "sqlstate", None) or (original.args[:1] if original else "")
    text = "" if getattr(error, "statement", None) else f" {original or error}"
    return f"{type(original or error).__name__} {code or ''}{text}".strip()


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def worst(outcomes: Iterable[Outcome]) -> int:
    """Return the exit code that says most of these."""
    codes = {EXIT_COMPLETE, *(_EXITS[outcome] for outcome in outcomes)}
    return next(code for code in _WORST_FIRST if code in codes)


def print_json(document: Any, *, on_one_line: bool = False) -> None:
    """Print one document."""
    click.echo(json.dumps(document, indent=None if on_one_line else 2))


@contextmanager
def told_as_usage() -> Iterator[None]:
    """Turn the refusal of a setting from the command line into a usage error."""
    try:
        yield
    except ConfigurationError as error:
        raise _Misused(str(error)) from error


def setting_option(name: str, **kwargs: Any) -> Callable[..., Any]:
    """Return an option that is a setting, and refused at once where the setting cannot be so."""
    return click.option(name, callback=_possible, **kwargs)


def _possible(_context: click.Context, option: click.Parameter, value: Any) -> Any:
    if value is not None:
        with told_as_usage():
            settings.resolve((settings.COMMAND_LINE, {str(option.name): value}))
    return value


_RUN_OPTIONS = (
    setting_option("--chunk-size", type=int, help="Rows a chunk writes at most; fixed."),
    setting_option("--target-seconds", type=float, help="How long a chunk may hold its locks."),
    setting_option("--nice", type=float, help="Seconds of rest a second of work."),
    setting_option("--rows-per-second", type=float, help="Change no more, all workers together."),
    setting_option(
        "--window", metavar="HOURS", help='Write only then: "22:00-06:00 Europe/Berlin".'
    ),
    setting_option("--workers", type=int, help="Threads that walk key ranges side by side."),
    setting_option("--processes", type=int, help="Processes that do so, for heavy transforms."),
    click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Change so many."),
    click.option("--max-seconds", type=click.FloatRange(min=0), help="Stop after so long."),
    setting_option("--max-failures", type=int, help="Quarantine so many rows at most."),
    click.option("--dry-run", is_flag=True, help="Show the plan of what is due; change nothing."),
    click.option("--accept-change", is_flag=True, help="Go on although the class was changed."),
    click.option("--json", "as_json", is_flag=True, help="Print a line of JSON an event."),
)


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `run`."""
    for option in reversed(_RUN_OPTIONS):
        function = option(function)
    return function
