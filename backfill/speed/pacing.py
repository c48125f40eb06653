"""How fast the workers of one command go: when the next chunk may begin, and what slows it down.

Three things make a worker rest: `nice`, in proportion to the chunk behind it, which unless told
otherwise is for the sake of others at work; the run's `rows_per_second`; and the load of the
database (steering.py). Two make it wait: a closed `window`, and a signal at its stop level
(throttles.py).
"""

from __future__ import annotations

import math
import re
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from threading import Lock
from typing import TYPE_CHECKING

from backfill import settings
from backfill.errors import LeaseLost
from backfill.reporters import Event
from backfill.runs import Status
from backfill.speed.steering import AGAIN, COOLDOWN, TICK_SECONDS, Steering
from backfill.speed.throttles import Throttle
from backfill.speed.windows import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from typing import Any

    from backfill.runs import Run
    from backfill.settings import Settings
    from backfill.speed.throttles import Verdict
    from backfill.store import Store

LOOK_SECONDS = 1.0
"""How often a command asks what was decided for its run elsewhere."""
_SMOOTH_SECONDS = 1.0
"""A chunk has no more rows than `rows_per_second` allows in so long: no bursts, no long rests."""
_RATE_SECONDS = 10.0
OF_THE_RUN = ("throttled", "changed", "unwatched")
"""Events that each process of a command tells, and all of them alike."""
_CALM_SECONDS = 60.0
"""Without a load for so long we say that we are slowed no more."""
_SLOWED = "slowed"
_WAITS = "waits"
_COMPANY_SECONDS = 1.5
"""Company is worth a word when it lasts for longer than the signal takes to be sure of it."""
_IN_COMPANY = "others are at work: rests {:g} s for each second of work"
_BEGINS_LOW = "begins low, since replicas are followed"
_FIGURES = re.compile(r"\d[\d.,:]*")


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker did last."""

    began: float
    ended: float
    rows: int
    """Rows changed."""


@dataclass(frozen=True, slots=True)
class Delay:
    """When a worker may begin its next chunk."""

    seconds: float
    """From now; it is time to ask again then."""
    reason: str = ""
    """Why it waits, or goes more slowly than it was told to; for people."""
    waits: bool = False
    """Nothing may be written, nobody knows for how long."""


class Rate:
    """Rows a second of late, rests included: what is older than some seconds hardly counts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self._rows = self._seconds = 0.0

    def count(self, rows: int) -> None:
        """Note rows that were done since the last call."""
        passed, self._at = self._clock() - self._at, self._clock()
        fading = math.exp(-passed / _RATE_SECONDS)
        self._rows = self._rows * fading + rows
        self._seconds = self._seconds * fading + passed

    @property
    def per_second(self) -> float:
        """Return the rate; 0 before the first rows."""
        return self._rows / max(self._seconds, 1e-6)


def gist(reason: str | None) -> str:
    """Return a reason without its figures: with other figures it is the same reason."""
    return _FIGURES.sub("#", reason or "")


def _weight(reason: str) -> int:
    """Return how much a reason, or its gist, means: to wait, to be slowed, to rest, nothing."""
    if reason.startswith(_WAITS):
        return 3
    return 2 if reason.startswith(_SLOWED) else int(bool(reason))


class Pace:
    """Shared by the worker threads of one process; safe to use from any of them."""

    def __init__(
        self,
        store: Store,
        run: Run,
        settings: Settings,
        report: Callable[[Event], object],
        watch: Callable[[Settings], AbstractContextManager[Throttle]] | None = None,
        *,
        company_nice: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self.settings = settings
        """As this command was told, and `backfill set` changed it."""
        self._given = settings
        self._store = store
        self._run = run
        self._report = report
        self._watch = watch or (lambda settings: nullcontext(Throttle()))
        self._company_nice = company_nice
        self._watching = ExitStack()
        self._throttle = Throttle()
        self._clock = clock
        self._now = now
        self._lock = Lock()
        self._changed: Mapping[str, Any] = {}
        self._window = _window(settings)
        self._sharing = settings.walkers
        self._began = clock()
        self._look_at = self._tick_at = clock()
        self._steering = Steering()
        self._has_begun = False
        self._told = ""
        self._told_at = 0.0
        self._load = ""
        """What slowed us last."""
        self._company_since: float | None = None

    def __enter__(self) -> Pace:
        """Begin to watch the signals."""
        self._watch_anew()
        return self

    def __exit__(self, *error: object) -> None:
        self._watching.close()

    def _watch_anew(self) -> None:
        self._watching.close()
        self._load = ""
        self._has_begun = False  # what is not known yet is no reason to begin low
        self._throttle = self._watching.enter_context(self._watch(self.settings))

    # -- what others decide --------------------------------------------------------------

    def look(self) -> None:
        """Ask, at most once a second, how the run stands. Raises LeaseLost if it has ended."""
        with self._lock:
            if self._clock() < self._look_at:
                return
            terms = self._store.terms(self._run)
            if terms.status not in (Status.PENDING, Status.RUNNING):
                raise LeaseLost(0)
            is_beginning = self._clock() - self._began < LOOK_SECONDS
            to_come = self._given.walkers if is_beginning else 1  # who have claimed nothing yet
            self._sharing = max(to_come, terms.sharing)
            self._change(terms.changed)
            self._look_at = self._clock() + LOOK_SECONDS

    def look_again(self) -> None:
        """Let the next look be a real one: somebody has claimed a range."""
        self._look_at = self._clock()

    def _change(self, changed: Mapping[str, Any]) -> None:
        if changed == self._changed:
            return
        before, names = self.settings, changed.keys() | self._changed.keys()
        self.settings = settings.resolve(("`backfill set`", changed), base=self._given)
        self._changed = changed
        self._window = _window(self.settings)
        values = {name: getattr(self.settings, name) for name in sorted(names)}
        values = {name: v for name, v in values.items() if v != getattr(before, name)}
        if not settings.WATCHED.isdisjoint(values):
            self._watch_anew()
        if not values:
            return
        text = ", ".join(f"{name} is {value}" for name, value in values.items())
        self._report(Event("changed", self._run.name, f"from now on {text}", values))

    # -- what a worker asks --------------------------------------------------------------

    def writing(self) -> AbstractContextManager[None]:
        """Wrap each transaction that writes to the table."""
        return self._throttle.writing()

    def delay(self, done: Done | None) -> Delay:
        """Say when the worker that did this last may go on."""
        verdict = self._throttle.verdict()
        with self._lock:
            self._note_company(verdict)
            self._steer(verdict)
            if self._window is not None and not self._window.is_open(self._now()):
                return Delay(LOOK_SECONDS, self._window.waits, waits=True)
            if verdict.stops:
                return Delay(LOOK_SECONDS, f"waits: {verdict.reason}", waits=True)
            return Delay(self._rest(done), self._slowed(verdict))

    @property
    def has_company(self) -> bool:
        """Whether others were at work when somebody looked last."""
        return self._company_since is not None

    def sees_company(self) -> bool:
        """Look whether others are at work."""
        verdict = self._throttle.verdict()
        with self._lock:
            self._note_company(verdict)
            return self.has_company

    @property
    def sharing(self) -> int:
        """How many workers share the run, on any machine."""
        return self._sharing

    def size(self, rows: int) -> int:
        """Return how many of these rows the next chunk may have."""
        rate = self._rate()
        if rate is not None:
            rows = min(rows, int(rate * _SMOOTH_SECONDS))
        return max(1, int(rows * self._steering.size_factor))

    def tell(self, reason: str) -> None:
        """Report a reason when it is another one, and note it with the run: once for all.

        Where the load comes and goes, that we were slowed holds for a minute.
        """
        with self._lock:
            is_less = _weight(reason) < _weight(self._told) < _weight(_WAITS)
            if not is_less:
                self._told_at = self._clock()
            is_calm = self._clock() - self._told_at > _CALM_SECONDS
            if gist(reason) == self._told or (is_less and not is_calm):
                return
            text = reason or "goes on at its full pace"
            what, details = self._store.last_note(self._run) or ("", "")
            if (what, gist(details)) != ("throttled", gist(text)):  # else another process did
                self._store.note(self._run, "throttled", text)
            self._told = gist(reason)
        self._report(Event("throttled", self._run.name, text, {"reason": reason or None}))

    def _steer(self, verdict: Verdict) -> None:
        """Take a step a tick. What stops us before we have begun says nothing of our share."""
        if not self._has_begun and not verdict.stops and verdict.begins_low:
            self._steering = Steering(min(AGAIN, self._steering.share), COOLDOWN)
            self._load = self._load or _BEGINS_LOW
        self._has_begun = self._has_begun or not verdict.stops
        if not self._has_begun or self._clock() < self._tick_at:
            return
        self._tick_at = self._clock() + TICK_SECONDS
        if verdict.stops:
            self._steering = self._steering.after_stop()
        else:
            self._steering = self._steering.after(verdict.load, may_grow=verdict.may_grow)

    def _note_company(self, verdict: Verdict) -> None:
        if not verdict.has_company:
            self._company_since = None
        elif self._company_since is None:
            self._company_since = self._clock()

    def _slowed(self, verdict: Verdict) -> str:
        self._load = verdict.reason or self._load
        if self._steering.share >= 1:
            since, is_told = self._company_since, self.settings.nice is not None
            is_new = since is None or self._clock() - since < _COMPANY_SECONDS
            return "" if is_told or is_new else _IN_COMPANY.format(self._nice)
        return f"{_SLOWED} to {self._steering.share:.0%}: {self._load}"

    def _rest(self, done: Done | None) -> float:
        if done is None:
            return 0.0
        until = done.ended + self._steering.rest(done.ended - done.began, self._nice)
        rate = self._rate()
        if rate is not None:
            until = max(until, done.began + done.rows / rate)
        return max(0.0, until - self._clock())

    @property
    def _nice(self) -> float:
        if self.settings.nice is not None:
            return self.settings.nice
        return self._company_nice if self.has_company else 0.0

    def _rate(self) -> float | None:
        """One worker's part of the run's rows a second."""
        whole = self.settings.rows_per_second
        return None if whole is None else whole / self._sharing


def _window(settings: Settings) -> Window | None:
    return None if settings.window is None else Window.parse(settings.window)
