"""Settings, and the layers that they come from.

Defaults < `[tool.backfill]` of pyproject.toml < `[backfill]` of alembic.ini < environment
(`BACKFILL_CHUNK_SIZE`) < attributes of the class < command line. Times are seconds everywhere.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from backfill import kinds
from backfill.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from backfill.kinds import Kind


COMMAND_LINE = "The command line"
"""The origin of options, for messages."""


def setting(default: Any, kind: Kind, *, in_flight: bool = False, is_watched: bool = False) -> Any:
    """Declare a setting: its default, what it can be, and whether `backfill set` may change it
    while a run lasts. One whose default is None can be set to None, too."""
    metadata = {"kind": kind, "in_flight": in_flight, "is_watched": is_watched}
    return field(default=default, metadata=metadata)


def _limit(default: Any, kind: Kind) -> Any:
    """Declare the limit of a signal: a number, which may be changed while a run lasts."""
    return setting(default, kind, in_flight=True, is_watched=True)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a backfill is run; each can be set in every layer."""

    chunk_size: int | None = setting(None, kinds.WHOLE, in_flight=True)
    """Rows a chunk writes at most; without it the size follows `target_seconds`."""
    chunk_bytes: int | None = setting(None, kinds.WHOLE, in_flight=True)
    """Bytes that the rows of a chunk come to at most, as far as one can tell, where its size
    follows `target_seconds`. Without it 8 MiB; 32 MiB on SQLite."""
    target_seconds: float | None = setting(None, kinds.SECONDS, in_flight=True)
    """How long a chunk may hold its locks: statement and commit. Without it 0.05; while others are
    at work 0.0015; 0.15 on SQLite, where who waits looks only every 0.1 s."""
    nice: float | None = setting(None, kinds.RATIO, in_flight=True)
    """Seconds of rest for each second that a chunk took: 1 works half of the time. Without it 0
    alone, and while others are at work 1, on MariaDB and MySQL 5."""
    rows_per_second: float | None = setting(None, kinds.RATE, in_flight=True)
    """Rows that the run changes in a second at most, by all its workers on all machines."""
    window: str | None = setting(None, kinds.WINDOW, in_flight=True)
    """Hours of the day outside of which nothing is written, like `22:00-06:00 Europe/Berlin`;
    without a zone they are in UTC. By the clock of the machine that runs it."""
    vacuum_every: int | None = setting(None, kinds.WHOLE, in_flight=True)
    """Rows that the run changes between two VACUUMs of its own, on PostgreSQL; without it none:
    autovacuum comes when a fifth of the table is dead. NixOS' hydra took 5,000,000."""
    analyze: bool = setting(True, kinds.SWITCH)
    """Mend the planner's statistics after a run that has made them wrong."""
    state_schema: str | None = setting(None, kinds.TEXT)
    """The schema of the five tables `backfill_*`, which has to exist: a schema of PostgreSQL, a
    database of MariaDB or MySQL on the same server. Without it they are where the connection looks
    for tables. For the whole project, so not in a class."""
    gate: str = setting("refuse", kinds.GATE)
    """What `op.require_backfill` does where rows are left: refuse, or do them inline, on the
    migration's own connection: for development, tests and small remainders."""
    inline_rows: int = setting(10_000, kinds.COUNT)
    """The most that are done inline; where more are left the gate refuses."""
    workers: int = setting(1, kinds.WHOLE)
    """Threads of this command that walk key ranges side by side."""
    processes: int = setting(1, kinds.WHOLE)
    """Processes that do so, with so many threads each: for transforms that compute much."""
    lock_timeout: float = setting(0.02, kinds.PATIENCE)
    """How long a chunk waits for a row of the application before it gives way. Must stay far
    below PostgreSQL's `deadlock_timeout` (1 s), so that the application never loses."""
    statement_timeout: float = setting(5.0, kinds.SECONDS)
    """How long one statement of ours may take."""
    idle_timeout: float = setting(5.0, kinds.SECONDS)
    """After how long the server ends a transaction of ours that does nothing."""
    lease_seconds: float = setting(30.0, kinds.SECONDS)
    """How long a silent runner keeps its key range. Three times the sum of the two
    timeouts above, so that the server has ended a stopped runner's transaction before."""
    retry_seconds: float = setting(900.0, kinds.SECONDS)
    """How long to try without progress before the run is paused or failed."""
    max_failures: int = setting(100, kinds.COUNT, in_flight=True)
    """More quarantined rows than this stop the run as failed."""
    max_passes: int = setting(10, kinds.WHOLE, in_flight=True)
    """How often the table is swept for rows that are still, or again, pending."""

    max_blocked_seconds: float = _limit(0.25, kinds.PATIENCE)
    """How long sessions may wait for locks of ours, all of them together. Of this and the limits
    below, 0 switches the signal off."""
    max_replica_lag: float = _limit(10.0, kinds.PATIENCE)
    """How far a replica may be behind, in seconds."""
    replicas: tuple[str, ...] = setting((), kinds.TEXTS)
    """The replicas to watch: `host`, `host:port` (the rest as for the primary) or URLs. Without
    it PostgreSQL's primary is asked for its standbys, and MariaDB's and MySQL's are not watched."""
    max_retained_wal: int = _limit(4 * 1024**3, kinds.COUNT)
    """PostgreSQL: bytes of WAL that a standby or a replication slot may be behind."""
    max_archive_queue: int = _limit(42, kinds.COUNT)
    """PostgreSQL: WAL segments that may wait to be archived (GitLab's limit)."""
    max_wal_rate: int = _limit(0, kinds.COUNT)
    """PostgreSQL: bytes of WAL that the whole server may write in a second."""
    max_active_sessions: int | None = _limit(None, kinds.COUNT)
    """Sessions of others at work. Without it 4 a processor where the server is on this machine,
    else 25 (pt-online-schema-change's limit)."""
    max_dead_rows: float = _limit(20.0, kinds.RATIO)
    """PostgreSQL: dead rows of the table, as a multiple of those that call autovacuum."""
    max_snapshot_age: float = _limit(3600.0, kinds.PATIENCE)
    """PostgreSQL: age of the oldest transaction that keeps VACUUM from removing dead rows."""
    max_history_length: int = _limit(1_000_000, kinds.COUNT)
    """MariaDB, MySQL: length of InnoDB's history list, which waits to be purged."""
    max_redo_fill: float = _limit(0.98, kinds.RATIO)
    """MariaDB, MySQL: how full the redo log may be; when it is full every writer waits. InnoDB
    flushes in a hurry from 7/8 on, so that much less would leave it idle. It is no matter where
    surely nobody else is at work."""
    min_free_disk: int = _limit(512 * 1024**2, kinds.COUNT)
    """Bytes that must stay free where the data are, if they are on this machine."""
    throttle_file: str | None = setting(None, kinds.TEXT)
    """Nothing is written while there is a file of this name."""
    throttle_url: str | None = setting(None, kinds.TEXT)
    """Nothing is written while this web address does not answer with 200."""
    throttle_query: str | None = setting(None, kinds.TEXT)
    """SQL that returns one number between 0 (free) and 1 (stop); a truth value, or text that is
    such a number, is one. Nothing is written while it returns anything else, or fails."""
    max_added_latency: float = _limit(0.0, kinds.PATIENCE)
    """Seconds that our writing may add to the latency of others, at the 95th percentile. A probe
    measures it: `probe_query`, or a read of the table and a tiny write of our own."""
    probe_query: str | None = setting(None, kinds.TEXT)
    """SQL whose latency is what matters, for `max_added_latency`."""

    @property
    def walkers(self) -> int:
        """How many key ranges are walked at a time."""
        return self.workers * self.processes

    def recorded(self) -> dict[str, Any]:
        """Return all of them as they are kept with a run: no password is among them."""
        given = asdict(self)
        return given | {name: "given" for name in _MAY_HOLD_SECRETS if given[name]}


_MAY_HOLD_SECRETS = ("replicas", "throttle_url", "throttle_query", "probe_query")
_FIELDS = {one.name: one for one in fields(Settings)}
NAMES = frozenset(_FIELDS)
IN_FLIGHT = frozenset(name for name, one in _FIELDS.items() if one.metadata["in_flight"])
"""What `backfill set` changes."""
WATCHED = frozenset(name for name, one in _FIELDS.items() if one.metadata["is_watched"])
"""Limits of signals."""


def resolve(*layers: tuple[str, Mapping[str, Any]], base: Settings | None = None) -> Settings:
    """Put the layers on top of the defaults (or of `base`), the last one winning.

    Each layer is its origin (for messages) and a mapping of setting to value or text.
    Raises ConfigurationError for an unknown name or an impossible value.
    """
    settings = base or Settings()
    for origin, values in layers:
        settings = replace(settings, **{k: _parse(origin, k, v) for k, v in values.items()})
    return settings


def changes(given: Mapping[str, str]) -> dict[str, Any]:
    """Return what `backfill set` was given as values; None for one that is taken back.

    Raises ConfigurationError for what cannot be, or cannot be changed while a run lasts.
    """
    fixed = sorted(given.keys() & NAMES - IN_FLIGHT)
    if fixed:
        raise ConfigurationError(
            f"{fixed[0]} cannot be changed while a run lasts; stop the run, and start it again with"
            f" another. What can be: {', '.join(sorted(IN_FLIGHT))}."
        )
    for name in given:
        _refuse_unknown(COMMAND_LINE, name)
    return {k: _parse(COMMAND_LINE, k, v) if v.strip() else None for k, v in given.items()}


def _refuse_unknown(origin: str, name: str) -> None:
    if name not in _FIELDS:
        raise ConfigurationError(
            f"{origin} has an unknown setting {name!r}. Known are: {', '.join(sorted(NAMES))}."
        )


def _parse(origin: str, name: str, value: Any) -> Any:
    _refuse_unknown(origin, name)
    if value is None and _FIELDS[name].default is None:
        return None
    kind: Kind = _FIELDS[name].metadata["kind"]
    try:
        return kind.parse(value)
    except ValueError as error:
        shown = kinds.masked(repr(value))
        wrong = str(error) or f"it must be {kind.is_like}"
        raise ConfigurationError(f"{origin} sets {name} to {shown}; {wrong}.") from error


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


def urls_in_environment() -> list[str]:
    """Return the values in the environment that look like URLs: env.py may take its own there."""
    return [value for value in os.environ.values() if "://" in value]


def config_path() -> str | None:
    """Return the Alembic configuration file that the environment names, if it does."""
    return os.environ.get("ALEMBIC_CONFIG")


def flask_app() -> str | None:
    """Return the Flask application that the environment names, if it does."""
    return os.environ.get("FLASK_APP")
