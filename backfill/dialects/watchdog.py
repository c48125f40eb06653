"""Ends connections whose server keeps silent.

TCP alone would wait for ever: for a server that was cut off without a word, or behind a proxy that
swallows the answer. Keepalives do not tell, since it is the peer's kernel that answers them. So a
thread looks at those who wait, and shuts down the socket of one who waits for too long: the driver
then sees a connection that is lost.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

CONNECT_TIMEOUTS = {
    **dict.fromkeys(("psycopg", "psycopg_async", "psycopg2"), "connect_timeout"),
    **dict.fromkeys(("pymysql", "mysqldb", "mariadbconnector"), "connect_timeout"),
    "asyncpg": "timeout",
}
"""What drivers call the seconds in which a connection must be made."""
_READ_TIMEOUTS = dict.fromkeys(("pymysql", "mysqldb", "mariadbconnector"), "read_timeout")
"""The same for those whose timeout ends before the server has said its first word."""
_SHORTEST = 2
"""Whole seconds: libpq takes one second for two."""
_LOOK_SECONDS = 0.25
_WATCH = "backfill_watch"

_patience: ContextVar[float | None] = ContextVar("backfill_patience", default=None)
"""How long the connection that is being made may take, if it is one of ours."""


# -- while a connection is made ----------------------------------------------------------------


def connect_in_time(engine: sa.Engine) -> None:
    """Let the connections that `connecting` makes give up in time, and leave all others alone."""
    if not sa.event.contains(engine.dialect, "do_connect", _give_up_in_time):
        sa.event.listen(engine.dialect, "do_connect", _give_up_in_time)


@contextmanager
def connecting(seconds: float) -> Iterator[None]:
    """Let a connection that is made meanwhile, in this thread, give up after so long."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def is_connecting() -> bool:
    """Whether a connection that is being made in this thread is one of ours."""
    return _patience.get() is not None


def _give_up_in_time(dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
    seconds = _patience.get()
    if seconds is None:
        return
    for names in (CONNECT_TIMEOUTS, _READ_TIMEOUTS):
        if dialect.driver in names:
            options.setdefault(names[dialect.driver], max(_SHORTEST, math.ceil(seconds)))


# -- while a transaction lasts -----------------------------------------------------------------


class Watchdog:
    """Watches the transactions of one engine; safe to use from any thread."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._watches: set[Watch] = set()
        self._thread: Thread | None = None
        sa.event.listen(engine, "before_cursor_execute", _ask)
        sa.event.listen(engine, "after_cursor_execute", _answered)

    @contextmanager
    def watching(self, connection: sa.Connection, seconds: float) -> Iterator[Watch]:
        """Watch one transaction: no answer to a statement may take longer than this."""
        number = _socket_of(connection)
        watch = Watch(number, seconds, self._clock)
        if number is None:
            yield watch
            return
        connection.info[_WATCH] = watch
        self._begin(watch)
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.discard(watch)
            os.close(number)

    def _begin(self, watch: Watch) -> None:
        with self._lock:
            self._watches.add(watch)
            if self._thread is None or not self._thread.is_alive():  # also in a forked process
                self._thread = Thread(target=self._work, name="backfill-watchdog", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            with self._lock:
                if not self._watches:
                    self._thread = None
                    return
                self.look()

    def look(self) -> None:
        """Cut who has waited for too long."""
        for watch in self._watches:
            if watch.is_late():
                watch.cut()


class Watch:
    """A connection in a transaction, and until when it may wait for an answer."""

    __slots__ = ("_clock", "_number", "_seconds", "deadline")

    def __init__(self, number: int | None, seconds: float, clock: Callable[[], float]) -> None:
        self.deadline = math.inf
        self._number = number
        self._seconds = seconds
        self._clock = clock

    def ask(self) -> None:
        """Note that an answer is waited for, from now on."""
        self.deadline = self._clock() + self._seconds

    def answered(self) -> None:
        """Note that none is."""
        self.deadline = math.inf

    def is_late(self) -> bool:
        """Whether the answer should have come."""
        return self._clock() > self.deadline

    def cut(self) -> None:
        """End the connection, and with it the wait."""
        self.deadline = math.inf
        logger.debug("the server has not answered for %g s: connection cut", self._seconds)
        try:
            found = socket.socket(fileno=self._number)
            try:
                found.shutdown(socket.SHUT_RDWR)
            finally:
                found.detach()
        except OSError as error:
            logger.debug("it was cut already: %s", error)


def _ask(connection: sa.Connection, *_: Any) -> None:
    watch = connection.info.get(_WATCH)
    if watch is not None:
        watch.ask()


def _answered(connection: sa.Connection, *_: Any) -> None:
    watch = connection.info.get(_WATCH)
    if watch is not None:
        watch.answered()


def _socket_of(connection: sa.Connection) -> int | None:
    """Return the number of the driver's socket, a duplicate, which cannot become another file's
    while we hold it; None where there is none, or the driver does not tell."""
    try:
        adapted: Any = connection.connection.dbapi_connection
        number = _number_of(connection.dialect.get_driver_connection(adapted))
        return None if number is None else os.dup(number)
    except Exception as error:  # it is closed: the next statement says so
        logger.debug("connection not watched: %s", type(error).__name__)
        return None


def _number_of(driver: Any) -> int | None:
    if hasattr(driver, "fileno"):  # psycopg, psycopg2, mysqlclient
        return int(driver.fileno())
    if getattr(driver, "_sock", None) is not None:  # PyMySQL
        return int(driver._sock.fileno())
    if hasattr(driver, "_transport"):  # asyncpg
        return int(driver._transport.get_extra_info("socket").fileno())
    number = getattr(driver, "socket", None)  # MariaDB's connector
    return number if isinstance(number, int) else None
