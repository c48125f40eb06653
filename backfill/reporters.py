"""What people and programs see of a run: bars, log lines, or a line of JSON an event."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from tqdm import tqdm

from backfill.presentation import duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: `what` it was, to which backfill, and numbers on it.

    `started`: rows_estimated, rows_scanned, ranges. `chunk`: range, scanned, changed, seconds,
    size. `throttled`: reason, text; null and another text when it goes on at its full pace.
    `changed`: text, and each setting that `backfill set` changed. `retry`, `waiting`,
    `quarantined`, `swept`, `message`: text. `aftercare`: text, and where they are known seconds,
    or updates, hot, dead_rows. `stopped`, `finished`: status, rows_scanned,
    rows_changed, failures, text.
    """

    what: str
    name: str
    text: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


class Reporter(Protocol):
    """Told of every event, by any worker thread."""

    def __call__(self, event: Event) -> None:
        """Take note of an event."""

    def close(self) -> None:
        """Leave the screen in order."""


class JsonReporter:
    """A line of JSON an event."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._lock = Lock()

    def __call__(self, event: Event) -> None:
        document = {"event": event.what, "name": event.name, **event.numbers}
        if event.text:
            document["text"] = event.text
        with self._lock:
            print(json.dumps(document), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class LogReporter:
    """A line when something changes, and one on progress every few seconds."""

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        every_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._every = every_seconds
        self._clock = clock
        self._lock = Lock()
        self._progress: dict[str, Progress] = {}
        self._next = clock() + every_seconds

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event.what == "started":
                self._progress[event.name] = Progress.of(event, self._clock)
            if event.what == "chunk":
                self._advance(event)
            elif event.text:
                self._write(f"{event.name}: {event.text}")

    def _advance(self, event: Event) -> None:
        progress = self._progress[event.name]
        progress.advance(event)
        if self._clock() >= self._next:
            self._next = self._clock() + self._every
            self._write(f"{event.name}: {progress}")

    def close(self) -> None:
        """Nothing is open."""


class TerminalReporter:
    """A tqdm bar a key range that is being walked, and plain lines between them."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lock = Lock()
        self._bars: dict[int, tqdm[Any]] = {}
        self._totals: dict[str, float] = {}
        self._slow = ""
        """Why the run waits, or goes slowly."""

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event.what == "started":
                ranges = max(event.numbers["ranges"], 1)
                self._totals[event.name] = (event.numbers["rows_estimated"] or 0) / ranges
            elif event.what == "chunk":
                self._advance(event)
            elif event.what in ("retry", "waiting"):
                for bar in self._bars.values():
                    bar.set_postfix_str(event.text)
                return
            if event.what == "throttled":
                self._slow = event.numbers["reason"] or ""
                for bar in self._bars.values():
                    bar.set_postfix_str(self._slow)
            if event.what in ("stopped", "finished", "swept"):
                self._close_bars()
            if event.text:
                tqdm.write(f"{event.name}: {event.text}", file=self._stream)

    def _advance(self, event: Event) -> None:
        number = event.numbers["range"]
        bar = self._bars.get(number)
        if bar is None:
            done = event.numbers["rows_scanned"] - event.numbers["scanned"]
            total = self._totals.get(event.name) or None
            bar = self._bars[number] = tqdm(
                desc=event.name,
                total=total and max(round(total), done),
                initial=done,
                unit="row",
                unit_scale=True,
                file=self._stream,
                dynamic_ncols=True,
                leave=False,
            )
        chunk = f"chunk {event.numbers['size']:,}"
        bar.set_postfix_str(f"{chunk}, {self._slow}" if self._slow else chunk, refresh=False)
        bar.update(event.numbers["scanned"])
        if event.numbers["is_last"]:
            bar.close()
            del self._bars[number]

    def _close_bars(self) -> None:
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()

    def close(self) -> None:
        self._close_bars()


class Forgiving:
    """Passes events on until nobody reads them any more, and says so once."""

    def __init__(self, reporter: Reporter, on_lost: Callable[[], None]) -> None:
        self._reporter = reporter
        self._on_lost = on_lost
        self._is_lost = False

    def __call__(self, event: Event) -> None:
        if self._is_lost:
            return
        try:
            self._reporter(event)
        except OSError:
            self._is_lost = True
            self._on_lost()

    def close(self) -> None:
        if not self._is_lost:
            self._reporter.close()


class Progress:
    """How far a run is, and how fast: over the last half minute of chunks."""

    def __init__(self, estimated: int | None, scanned: int, clock: Callable[[], float]) -> None:
        self.estimated = estimated
        self.scanned = scanned
        self.changed = 0
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque([(clock(), scanned)], maxlen=500)

    @classmethod
    def of(cls, event: Event, clock: Callable[[], float]) -> Progress:
        numbers = event.numbers
        return cls(numbers["rows_estimated"], numbers["rows_scanned"], clock)

    def advance(self, event: Event) -> None:
        self.scanned += event.numbers["scanned"]
        self.changed += event.numbers["changed"]
        self._recent.append((self._clock(), self.scanned))

    def __str__(self) -> str:
        (began, before), (ended, now) = self._recent[0], self._recent[-1]
        rate = (now - before) / max(ended - began, 1e-9)
        parts = [f"{self.scanned:,} rows scanned"]
        if self.estimated and self.estimated >= self.scanned:
            parts[0] = (
                f"{self.scanned:,} of about {self.estimated:,} rows"
                f" ({self.scanned / self.estimated:.0%})"
            )
            parts.append(f"{duration((self.estimated - self.scanned) / max(rate, 1e-9))} left")
        parts.insert(1, f"{rate:,.0f} rows/s")
        return ", ".join(parts)
