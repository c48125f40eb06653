"""What a live load had to wait before and while its table was filled; kept as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

from tests.benchmarks.results import Spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.benchmarks.load import Request

BIN_SECONDS = 0.5
"""Of the plot: a hundred requests and more, even at the lower rate."""


@dataclass(frozen=True)
class Waits:
    """How long requests of one kind waited, in seconds."""

    count: int
    p50: float
    p95: float
    p99: float
    longest: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Waits:
        """Of one request or more."""
        known = sorted(seconds)
        p50, p95, p99 = (round(percentile(known, share), 6) for share in (0.5, 0.95, 0.99))
        return cls(len(known), p50, p95, p99, known[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Phase:
    """A stretch of time."""

    reads: Waits
    updates: Waits

    @classmethod
    def of(cls, requests: Sequence[Request], start: float, end: float) -> Phase:
        """Of what was due from `start` to `end`."""
        due = [request for request in requests if start <= request.scheduled < end]
        return cls(
            Waits.of(request.waited for request in due if not request.is_update),
            Waits.of(request.waited for request in due if request.is_update),
        )

    @property
    def longest(self) -> float:
        return max(self.reads.longest, self.updates.longest)


@dataclass(frozen=True)
class Run:
    """One filling of the table, or none, beside the load."""

    seconds: float
    """From its first work to its end, or until we ended it."""
    rows: int
    """That it filled meanwhile."""
    before: Phase
    """The same load on the same table, just before."""
    during: Phase
    timeline: list[tuple[float, float]]
    """Seconds from the beginning of the work, and the 99th percentile of the updates due then."""
    others: float
    """Which part of the machine had other users, from before until the end."""

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


def timeline(
    requests: Sequence[Request], start: float, end: float, zero: float
) -> list[tuple[float, float]]:
    """The 99th percentile of the updates of each half second, which began at `zero`."""
    bins: dict[int, list[float]] = {}
    for request in requests:
        if request.is_update and start <= request.scheduled < end:
            bins.setdefault(int((request.scheduled - zero) // BIN_SECONDS), []).append(
                request.waited
            )
    return [
        (number * BIN_SECONDS, round(percentile(sorted(waits), 0.99), 6))
        for number, waits in sorted(bins.items())
    ]


@dataclass
class Line:
    """One variant's runs, a run a turn."""

    name: str
    title: str
    is_ours: bool
    runs: list[Run] = field(default_factory=list)

    def middle(self, figure: Any) -> Spread:
        """A figure's median over the turns, the lowest and the highest."""
        return Spread.of(map(figure, self.runs))


@dataclass
class Scene:
    """One database under one rate of requests."""

    database: str
    version: str
    settings: str
    rows: int
    share: float
    """Of what the machine can answer."""
    requests_per_second: float
    lines: list[Line]

    def line(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)

    def ratio(self, line: Line) -> Spread:
        """How many times as long the slowest hundredth of updates is as under the load alone."""
        alone = self.line("alone").runs
        pairs = zip(line.runs, alone, strict=True)
        return Spread.of(run.during.updates.p99 / a.during.updates.p99 for run, a in pairs)


@dataclass
class Quiet:
    """Rows a second where nobody else is there, turn by turn."""

    database: str
    ours: list[float] = field(default_factory=list)
    unpaced: list[float] = field(default_factory=list)
    """A loop by hand."""

    @property
    def ratio(self) -> Spread:
        return Spread.of(a / b for a, b in zip(self.ours, self.unpaced, strict=True))


@dataclass
class Results:
    cores: int
    load: float
    """Of the machine before we began."""
    absent: list[str]
    """What could not be compared with, because it cannot be installed."""
    scenes: list[Scene] = field(default_factory=list)
    quiet: list[Quiet] = field(default_factory=list)


def as_document(results: Results) -> dict[str, Any]:
    return asdict(results)


def from_document(document: Mapping[str, Any]) -> Results:
    scenes = [
        Scene(**{**scene, "lines": [_line(line) for line in scene["lines"]]})
        for scene in document["scenes"]
    ]
    quiet = [Quiet(**quiet) for quiet in document["quiet"]]
    return Results(**{**document, "scenes": scenes, "quiet": quiet})


def _line(document: Mapping[str, Any]) -> Line:
    return Line(**{**document, "runs": [_run(run) for run in document["runs"]]})


def _run(document: Mapping[str, Any]) -> Run:
    phases = {
        name: Phase(**{kind: Waits(**waits) for kind, waits in document[name].items()})
        for name in ("before", "during")
    }
    points = [(moment, wait) for moment, wait in document["timeline"]]
    return Run(**{**document, **phases, "timeline": points})
