"""Settings, and the layers that they come from.

Defaults < `[tool.backfill]` of pyproject.toml < `[backfill]` of alembic.ini < environment
(`BACKFILL_CHUNK_SIZE`) < attributes of the class < command line. Times are seconds everywhere.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from backfill.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """How a backfill is run; each can be set in every layer."""

    chunk_size: int | None = None
    """Rows a chunk writes at most; without it the size follows `target_seconds`."""
    target_seconds: float | None = None
    """How long a chunk may hold its locks: statement and commit. Without it 0.05; 0.15 on SQLite,
    where whoever waits looks only every 0.1 s."""
    workers: int = 1
    """Threads of this command that walk key ranges side by side."""
    processes: int = 1
    """Processes that do so, with so many threads each: for transforms that compute much."""
    lock_timeout: float = 0.02
    """How long a chunk waits for a row of the application before it gives way. Must stay far
    below PostgreSQL's `deadlock_timeout` (1 s), so that the application never loses."""
    statement_timeout: float = 5.0
    """How long one statement of ours may take."""
    idle_timeout: float = 5.0
    """After how long the server ends a transaction of ours that does nothing."""
    lease_seconds: float = 30.0
    """How long a silent runner keeps its key range. Three times the sum of the two
    timeouts above, so that the server has ended a stopped runner's transaction before."""
    retry_seconds: float = 900.0
    """How long to try without progress before the run is paused or failed."""
    max_failures: int = 100
    """More quarantined rows than this stop the run as failed."""
    max_passes: int = 10
    """How often the table is swept for rows that are still, or again, pending."""

    @property
    def walkers(self) -> int:
        """How many key ranges are walked at a time."""
        return self.workers * self.processes


_TYPES: dict[str, type] = {
    field.name: float if "float" in str(field.type) else int for field in fields(Settings)
}
NAMES = frozenset(_TYPES)
_MAY_BE_NONE = {"chunk_size", "target_seconds"}
_MAY_BE_ZERO = {"max_failures", "lock_timeout"}


def resolve(*layers: tuple[str, Mapping[str, Any]]) -> Settings:
    """Put the layers on top of the defaults, the last one winning.

    Each layer is its origin (for messages) and a mapping of setting to value or text.
    Raises ConfigurationError for an unknown name or an impossible value.
    """
    settings = Settings()
    for origin, values in layers:
        settings = replace(settings, **{k: _parse(origin, k, v) for k, v in values.items()})
    return settings


def _parse(origin: str, name: str, value: Any) -> Any:
    if name not in _TYPES:
        raise ConfigurationError(
            f"{origin} has an unknown setting {name!r}. Known are: {', '.join(sorted(NAMES))}."
        )
    if value is None and name in _MAY_BE_NONE:
        return None
    number = _number(_TYPES[name], value)
    lowest = "0 or more" if name in _MAY_BE_ZERO else "above 0"
    if number is None or number < 0 or (number == 0 and name not in _MAY_BE_ZERO):
        kind = "a whole number" if _TYPES[name] is int else "a number of seconds"
        raise ConfigurationError(f"{origin} sets {name} to {value!r}; it must be {kind}, {lowest}.")
    return number


def _number(wanted: type, value: Any) -> float | None:
    """Return a number of the wanted type; None for what is none, or not exactly one."""
    if isinstance(value, bool):
        return None
    try:
        number: float = wanted(value)
        return number if math.isfinite(number) and not _was_cut(number, value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _was_cut(number: float, value: Any) -> bool:
    return isinstance(value, float) and value != number


def from_environment() -> dict[str, str]:
    """Return the settings that `BACKFILL_*` variables give."""
    found = {}
    for name in NAMES:
        value = os.environ.get(f"BACKFILL_{name.upper()}")
        if value is not None:
            found[name] = value
    return found


def from_pyproject(path: Path) -> dict[str, Any]:
    """Return the table `[tool.backfill]` of a pyproject.toml, empty where there is none."""
    if not path.is_file():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigurationError(f"{path} is not valid TOML: {error}.") from error
    tools: Any = document.get("tool", {})
    section: Any = tools.get("backfill", {}) if isinstance(tools, dict) else None
    if not isinstance(section, dict):
        raise ConfigurationError(f"{path}: [tool.backfill] must be a table of settings.")
    return section


def config_path() -> str | None:
    """Return the Alembic configuration file that the environment names, if it does."""
    return os.environ.get("ALEMBIC_CONFIG")
