"""What was measured, its medians and ratios; kept as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Spread(NamedTuple):
    """A figure's median over the turns, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, figures: Iterable[float]) -> Spread:
        known = list(figures)
        return cls(median(known), min(known), max(known))


@dataclass(frozen=True)
class Sample:
    """What one process took."""

    rows: int
    seconds: float
    """From its connection's first work to the end; ours with the proof."""
    whole_seconds: float
    """Of the process."""
    cpu_seconds: float
    """Of the process, its start included."""
    server_cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.rows / self.seconds

    def a_million(self, seconds: float) -> float:
        return 1e6 * seconds / self.rows


@dataclass(frozen=True)
class Comparison:
    """Whether one variant is so many times as fast as another."""

    faster: str
    slower: str
    goal: float | None


@dataclass
class Line:
    """One variant's samples, a sample a turn."""

    name: str
    title: str
    is_ours: bool
    comparison: Comparison | None
    samples: list[Sample] = field(default_factory=list)

    @property
    def rate(self) -> Spread:
        return Spread.of(sample.rate for sample in self.samples)


@dataclass
class Contest:
    """One job on one database."""

    database: str
    version: str
    settings: str
    job: str
    lines: list[Line]

    def ratio(self, comparison: Comparison) -> Spread:
        """How many times as fast, turn by turn: what slowed one down hit the other one too."""
        faster, slower = self.line(comparison.faster), self.line(comparison.slower)
        pairs = zip(faster.samples, slower.samples, strict=True)
        return Spread.of(ours.rate / theirs.rate for ours, theirs in pairs)

    def line(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)


@dataclass
class Results:
    cores: int
    load: float
    """Of the machine before we began."""
    contests: list[Contest] = field(default_factory=list)


def as_document(results: Results) -> dict[str, Any]:
    return asdict(results)


def from_document(document: Mapping[str, Any]) -> Results:
    contests = [
        Contest(**{**contest, "lines": [_line(line) for line in contest["lines"]]})
        for contest in document["contests"]
    ]
    return Results(**{**document, "contests": contests})


def _line(document: Mapping[str, Any]) -> Line:
    comparison = document["comparison"]
    samples: Sequence[Mapping[str, Any]] = document["samples"]
    parsed = {
        "comparison": comparison and Comparison(**comparison),
        "samples": [Sample(**sample) for sample in samples],
    }
    return Line(**{**document, **parsed})
