"""What a signal says: the words that databases, users and the throttle share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    import sqlalchemy as sa

    class Reader(Protocol):
        """Opens short transactions on the collector's own connection."""

        def __call__(self, *, write: bool = False) -> AbstractContextManager[sa.Connection]:
            """Run one transaction."""


class Unavailable(Exception):
    """A signal cannot be had here, neither now nor later: a privilege or a view is missing."""


class Unreadable(Exception):
    """A signal cannot be read just now; the text says why, for people."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A signal's value at one moment, between its two levels."""

    value: float
    warn: float
    """Where steering begins; a budget does not let anything grow from here on."""
    stop: float
    """Where nothing more is written until it clears."""
    text: str
    """For people, with the value and its limit: "replica lag 12.3 s (stops at 10 s)"."""
    holds: bool = False
    """Nothing grows, whatever the value."""
    is_soft: bool = False
    """It steers at its stop level, too, and never stops."""
    has_company: bool = False
    """Others are at work, whatever the value: leave room for them."""
    begins_low: bool = False
    """What comes of our work is seen late: begin with little of it."""

    @classmethod
    def of(
        cls,
        name: str,
        value: float,
        unit: str,
        *,
        stop: float,
        warn: float | None = None,
        what: str = "",
        is_soft: bool = False,
    ) -> Reading:
        """Return a reading whose text is made of its numbers; it warns at half of its limit.

        Units: "s", "ms", "B", "B/s", "%", "".
        """
        limit = f"{'at most' if is_soft else 'stops at'} {shown(stop, unit)}"
        text = f"{name} {shown(value, unit)}{what} ({limit})"
        return cls(value, stop / 2 if warn is None else warn, stop, text, is_soft=is_soft)

    @property
    def load(self) -> float:
        """0 at the warning level, 1 at the stop level, above 1 beyond."""
        if self.value < self.warn:
            return 0.0
        if self.stop <= self.warn:
            return 1.0
        return (self.value - self.warn) / (self.stop - self.warn)

    @property
    def stops(self) -> bool:
        return self.value >= self.stop and not self.is_soft


class Signal(Protocol):
    """One thing to watch; read by one thread, each `every` seconds."""

    @property
    def name(self) -> str:
        """For people: what it watches."""

    @property
    def steers(self) -> bool:
        """Whether pace follows it between its levels. A budget, such as replica lag, only says
        stop or go: who steers on it parks the replicas at half of it (block/spirit)."""

    @property
    def fails_closed(self) -> bool:
        """What holds while it is stale: nothing is written, or (False) nothing grows."""

    @property
    def every(self) -> float:
        """Seconds from one reading to the next."""

    @property
    def is_brief(self) -> bool:
        """Whether it asks the database only, and at once: it may share a transaction with others.
        While any other one is read none is open."""

    @property
    def stands_alone(self) -> bool:
        """Whether it asks others than the database, or what a user wrote: it may take its time,
        and must not keep the rest waiting."""

    def read(self, reader: Reader) -> Reading | None:
        """Return its value; None where there is nothing to watch, for example no replica.

        Raises Unavailable where it cannot be had here; any other error makes the signal stale
        until a reading succeeds.
        """

    def remedy(self, reader: Reader) -> str:
        """Return what would make it available, for example a GRANT; "" if nothing would."""

    def close(self) -> None:
        """Let go of connections of its own; it is not read any more."""


class Gradual:
    """A load that rises and falls with what we do: pace follows it."""

    steers = True
    fails_closed = False
    every = 1.0
    is_brief = True
    stands_alone = False

    def remedy(self, reader: Reader) -> str:
        return ""

    def close(self) -> None:
        """Nothing of its own is open."""


class Budget:
    """Something that must not run out: far from its limit it says nothing."""

    steers = False
    fails_closed = True
    every = 1.0
    is_brief = True
    stands_alone = False

    def remedy(self, reader: Reader) -> str:
        return ""

    def close(self) -> None:
        """Nothing of its own is open."""


def worst(readings: Iterable[Reading]) -> Reading | None:
    """Return the reading that is nearest to its stop level, or farthest beyond."""
    return max(readings, key=lambda one: one.value / one.stop, default=None)


_PREFIXES = ("", "Ki", "Mi", "Gi", "Ti", "Pi")


def shown(value: float, unit: str) -> str:
    """Return a value as people read it."""
    if unit.startswith("B"):
        power = 0
        while abs(value) >= 1024 and power < len(_PREFIXES) - 1:
            value, power = value / 1024, power + 1
        return f"{_number(value)} {_PREFIXES[power]}{unit}"
    if unit == "%":
        return f"{value:.0%}"
    return f"{_number(value)} {unit}".rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
