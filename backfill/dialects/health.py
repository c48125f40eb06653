"""What signals of several databases need: disks, processors, company, and replicas of our own
choice."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.driver_errors import ErrorKind
from backfill.dialects.limits import Limits
from backfill.dialects.watchdog import CONNECT_TIMEOUTS
from backfill.errors import ConfigurationError
from backfill.kinds import masked
from backfill.speed.readings import Budget, Gradual, Reading, Unavailable, Unreadable, shown, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from backfill.dialects.base import Dialect
    from backfill.settings import Settings
    from backfill.speed.readings import Reader

SIGNAL_LIMITS = Limits(
    lock_timeout=0.5, statement_timeout=2, idle_timeout=5, label="backfill: signals"
)
"""A signal that takes longer than this is a burden itself."""
OFTEN = 0.25
"""Seconds between readings of what grows while nobody looks."""
SELDOM = 5.0
"""Seconds between readings of what changes slowly."""
COMPANY_EVERY = 1.0
_COMPANY_SECONDS = 5.0
_APART = 0.9
"""Of a time: a reading may be a little early."""
_ACTIVE_PER_CORE = 4
_ACTIVE = 25
"""Where nobody knows the processors: `--max-load` of pt-online-schema-change."""
_CONNECT_SECONDS = 3


def most_active(settings: Settings, *, is_here: bool) -> tuple[float, str]:
    """Return how many sessions may be at work, and where that comes from."""
    if settings.max_active_sessions is not None:
        return settings.max_active_sessions, ""
    cores = os.cpu_count() if is_here else None
    return (cores * _ACTIVE_PER_CORE, f" on {cores} processors") if cores else (_ACTIVE, "")


class Company:
    """Whether others are at work: seen in two seconds of the last five, and five seconds more.

    So somebody who looks in now and then, as a monitor does, is none. In the first second, when
    nobody can have been seen twice, once is enough.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: float | None = None
        self._seen: deque[float] = deque()
        self._until = 0.0

    def note(self, *, is_seen: bool) -> bool:
        """Take in whether others were at work in the last second; whether they are company."""
        now = self._clock()
        if self._began is None:
            self._began = self._until = now
        while self._seen and now - self._seen[0] > _APART * _COMPANY_SECONDS:
            self._seen.popleft()
        if is_seen and (not self._seen or now - self._seen[-1] > _APART * COMPANY_EVERY):
            self._seen.append(now)
        if len(self._seen) > 1:
            self._until = self._seen[-1] + _COMPANY_SECONDS
        is_beginning = now - self._began < _APART * COMPANY_EVERY
        return now < self._until or (is_beginning and bool(self._seen))


class OthersAtWork(Gradual):
    """Sessions of others that do something, or did within the last second."""

    name = "others at work"
    every = COMPANY_EVERY

    def __init__(
        self,
        are_seen: Callable[[Reader], bool],
        clock: Callable[[], float] = time.monotonic,
        *,
        is_brief: bool = True,
    ) -> None:
        self.is_brief = is_brief
        self._are_seen = are_seen
        self._company = Company(clock)
        self.were_missing = False
        """Whether nobody was there when somebody looked last, as far as this user sees."""

    def read(self, reader: Reader) -> Reading:
        self.were_missing = False  # a look that fails has seen nothing
        has_company = self._company.note(is_seen=self._are_seen(reader))
        self.were_missing = not has_company
        return Reading(0.0, 1.0, 2.0, self.name, has_company=has_company)


def gives_way_to_company(settings: Settings) -> bool:
    """Whether pace or size would be others if somebody else was at work."""
    return settings.nice is None or settings.target_seconds is None


class FreeDisk(Budget):
    """Space where the data are, if they are on this machine."""

    name = "free disk"
    every = SELDOM
    is_brief = False

    def __init__(self, at_least: int, places: Callable[[Reader], Sequence[Path]]) -> None:
        self._at_least = at_least
        self._places = places

    def read(self, reader: Reader) -> Reading | None:
        return worst(self._reading(place) for place in self._places(reader))

    def _reading(self, place: Path) -> Reading:
        free = shutil.disk_usage(place).free
        text = f"free disk {shown(free, 'B')} at {place} (stops at {shown(self._at_least, 'B')})"
        return Reading(self._at_least / max(free, 1), 0.5, 1.0, text)


def reachable(paths: Sequence[Path]) -> list[Path]:
    """Return those that this user may look at: others are on another machine, or not ours."""
    return [path for path in paths if os.access(path, os.F_OK)]


class Replica:
    """A replica that the settings name, and a connection to it."""

    def __init__(self, given: str, primary: Dialect) -> None:
        url = _url(given, primary.engine.url)
        host = url.host or "on this machine"
        self.name = f"{host}:{url.port}" if url.port else host
        self._url = url
        self._kind = type(primary)
        self._dialect: Dialect | None = None
        self._connection: sa.Connection | None = None

    @contextmanager
    def reading(self, *, write: bool = False) -> Iterator[sa.Connection]:
        """Run one transaction there. Raises Unreadable, or Unavailable for want of a privilege."""
        dialect = self._dialect or self._kind(self._engine())
        self._dialect = dialect
        is_connected = False
        try:
            if self._connection is None:
                self._connection = dialect.open(SIGNAL_LIMITS)
            is_connected = True
            with dialect.transaction(self._connection, SIGNAL_LIMITS, write=write):
                yield self._connection
        except Exception as error:
            self.close()
            kind = dialect.error_kind(error)
            if is_connected and kind is ErrorKind.RIGHTS:
                raise Unavailable from error
            what = f"{kind.value} ({dialect.error_code(error)})"
            raise Unreadable(f"replica {self.name}: {what}") from error

    def _engine(self) -> sa.Engine:
        timeout = CONNECT_TIMEOUTS.get(self._url.get_dialect().driver)
        options: dict[str, Any] = {timeout: _CONNECT_SECONDS} if timeout else {}
        return sa.create_engine(self._url, poolclass=sa.NullPool, connect_args=options)

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


_WHERE_TO = ("host", "hostaddr", "port", "unix_socket")


def _url(given: str, primary: sa.URL) -> sa.URL:
    """Return where a replica is: a URL as it stands, else the primary's with another host."""
    try:
        if "://" in given:
            url = sa.make_url(given)
            same = url.get_backend_name() == primary.get_backend_name()
            return url.set(drivername=primary.drivername) if same else url
        url = sa.make_url(f"{primary.get_backend_name()}://{given}")
    except (sa.exc.ArgumentError, ValueError) as error:
        raise ConfigurationError(
            f"`replicas` names {masked(given)}, which is neither a host, nor host:port, nor a URL."
        ) from error
    kept = {name: value for name, value in primary.query.items() if name not in _WHERE_TO}
    return primary.set(host=url.host, port=url.port or primary.port, query=kept)
