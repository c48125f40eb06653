"""What a soak found, as values and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Trial:
    """One attempt at a fault on a database, and what became of it."""

    fault: str
    kind: str
    seed: int
    faults: int = 0
    rows: int = 0
    wrong: tuple[str, ...] = ()
    recoveries: tuple[float, ...] = ()
    error: str = ""
    """Why the attempt did not come to its end."""
    events: tuple[str, ...] = ()
    """What its commands did last, if something was wrong."""

    @property
    def is_good(self) -> bool:
        return not self.wrong and not self.error


@dataclass(frozen=True, slots=True)
class Line:
    """All attempts at one fault."""

    fault: str
    tried: Mapping[str, int]
    """How often something was made to go wrong, on each kind of database."""
    rows: int
    wrong: int
    """Rows and counts that were not what they must be."""
    broken: int
    """Attempts that did not come to their end."""
    recovery: tuple[float, float] | None
    """Median and longest seconds to the next committed chunk, where that was measured."""
    recovers_within: float | None = None
    """What the longest may be."""

    @property
    def is_good(self) -> bool:
        return not self.wrong and not self.broken

    @property
    def is_slow(self) -> bool:
        if self.recovery is None or self.recovers_within is None:
            return False
        return self.recovery[1] > self.recovers_within

    @classmethod
    def of(cls, fault: str, trials: Iterable[Trial], recovers_within: float | None = None) -> Line:
        found = list(trials)
        tried: Counter[str] = Counter()
        for one in found:
            tried[one.kind] += one.faults
        seconds = [second for one in found for second in one.recoveries]
        return cls(
            fault,
            dict(tried),
            rows=sum(one.rows for one in found),
            wrong=sum(len(one.wrong) for one in found),
            broken=sum(bool(one.error) for one in found),
            recovery=(round(median(seconds), 2), round(max(seconds), 2)) if seconds else None,
            recovers_within=recovers_within,
        )


@dataclass(frozen=True, slots=True)
class Results:
    """A whole soak."""

    date: str
    command: str
    machine: str
    versions: Mapping[str, str]
    """Of each database that was tried."""
    minutes: float
    lines: list[Line] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return all(line.is_good for line in self.lines)


def as_document(results: Results) -> dict[str, Any]:
    return asdict(results)


def from_document(document: Mapping[str, Any]) -> Results:
    lines = [
        Line(**{**one, "recovery": one["recovery"] and tuple(one["recovery"])})
        for one in document["lines"]
    ]
    return Results(**{**document, "lines": lines})
