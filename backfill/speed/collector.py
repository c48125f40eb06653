"""Reads the signals, off the work path: in threads with connections and short transactions of
their own, which outlive lost connections and errors of any kind."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread
from typing import TYPE_CHECKING

from backfill.dialects import ErrorKind
from backfill.reporters import Event
from backfill.speed.glances import Glances, problem
from backfill.speed.probing import probe_of
from backfill.speed.readings import Unavailable
from backfill.speed.signals import of_user
from backfill.speed.throttles import Activity, Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backfill.dialects import Dialect
    from backfill.runs import Run
    from backfill.settings import Settings
    from backfill.speed.readings import Signal
    from backfill.store import Store
    from backfill.targets import Target

logger = logging.getLogger(__name__)

_END_SECONDS = 3.0
_NEVER_HERE = (ErrorKind.RIGHTS, ErrorKind.SCHEMA)


class Collector:
    """Feeds a throttle. `tick` is one turn; `run` takes turns until it is told to end."""

    def __init__(
        self,
        dialect: Dialect,
        signals: Sequence[Signal],
        throttle: Throttle,
        say: Callable[[str], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dialect = dialect
        self._throttle = throttle
        self._say = say
        self._clock = clock
        self._due = dict.fromkeys(signals, clock())
        self._glances = Glances(dialect)
        self._ends = Flag()

    def run(self) -> None:
        """Take turns until `end` is called."""
        try:
            while self._due and not self._ends.is_set():
                self.tick()
                self._ends.wait(max(0.0, min(self._due.values(), default=0.0) - self._clock()))
        finally:
            self._close()

    def look(self) -> None:
        """Read each signal once."""
        try:
            self.tick()
        finally:
            self._close()

    def end(self) -> None:
        """Let `run` come to its end, soon."""
        self._ends.set()

    def tick(self) -> None:
        """Read each signal whose time has come, and say what can never be read."""
        self._glances.begin_turn()
        missing: dict[str, list[str]] = {}
        for signal, due in list(self._due.items()):
            if due > self._clock() or self._ends.is_set():
                continue
            self._due[signal] = self._clock() + signal.every
            if not self._read(signal):
                missing.setdefault(self._remedy(signal), []).append(signal.name)
        self._glances.settle()
        for remedy, names in missing.items():
            how = f"; to have it watched: {remedy}" if remedy else ""
            self._say(f"not watched, since it cannot be read here: {', '.join(names)}{how}")

    def _read(self, signal: Signal) -> bool:
        """Read a signal; False if it is not to be had here, now or later."""
        if not signal.is_brief:
            self._glances.settle()
        look = self._glances.sharing if signal.is_brief else self._glances.alone
        try:
            self._throttle.feed(signal, signal.read(look))
        except Exception as error:
            if isinstance(error, Unavailable) or self._is_never_here(error):
                self._throttle.drop(signal)
                del self._due[signal]
                signal.close()
                return False
            self._throttle.miss(signal, problem(error, self._dialect))
        return True

    def _is_never_here(self, error: Exception) -> bool:
        return self._dialect.error_kind(error) in _NEVER_HERE

    def _remedy(self, signal: Signal) -> str:
        try:
            return signal.remedy(self._glances.sharing)
        except Exception as error:
            why = problem(error, self._dialect)
            logger.debug("no remedy for %s: %s", signal.name, why)
            return ""

    def _close(self) -> None:
        for signal in self._due:
            signal.close()
        self._glances.close()


@contextmanager
def throttled(
    target: Target, store: Store, run: Run, settings: Settings, report: Callable[[Event], object]
) -> Iterator[Throttle]:
    """Watch all that the settings, the class and the database offer, for as long as this lasts.

    It is reported once what cannot be watched here, and what would make it watchable.
    """
    activity, dialect = Activity(), target.dialect
    signals = [
        *of_user(target.declaration, dialect, settings),
        *dialect.health(target.table, settings),
        *probe_of(target, store, run, settings, activity),
    ]
    throttle = Throttle(signals, activity)

    def say(text: str) -> None:
        report(Event("unwatched", run.name, text))

    with _collecting(dialect, signals, throttle, say):
        yield throttle


@contextmanager
def _collecting(
    dialect: Dialect,
    signals: Sequence[Signal],
    throttle: Throttle,
    say: Callable[[str], object],
) -> Iterator[None]:
    """Read what may take its time in a thread each, and all the rest in one."""
    together = [signal for signal in signals if not signal.stands_alone]
    groups = [together, *([signal] for signal in signals if signal.stands_alone)]
    collectors = [Collector(dialect, group, throttle, say) for group in groups if group]
    throttle.begin()
    threads = [
        Thread(target=dialect.call, args=(one.run,), name="backfill-signals", daemon=True)
        for one in collectors
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for one in collectors:
            one.end()
        deadline = time.monotonic() + _END_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
