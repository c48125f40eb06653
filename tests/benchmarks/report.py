"""The table that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.results import Spread
from tests.benchmarks.variants import DATABASES, JOBS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.results import Contest, Line, Sample

HEADINGS = ("rows/s", "lowest", "highest", "process s", "client CPU", "server CPU")


def report(contest: Contest) -> None:
    """Print a contest: a line a variant, with medians and what was to be reached."""
    turns = max(len(line.samples) for line in contest.lines)
    print(f"\n{DATABASES[contest.database]} {contest.version}, {JOBS[contest.job]}, {turns} turns")
    print(f"({contest.settings}; CPU in seconds per million rows)")
    width = max(len(line.title) for line in contest.lines)
    print(f"{'':{width}}{'rows':>11}" + "".join(f"{text:>11}" for text in HEADINGS))
    for line in contest.lines:
        print(f"{line.title:{width}}{_figures(line)}   {_compared(contest, line)}".rstrip())


def _figures(line: Line) -> str:
    def middle(figure: Callable[[Sample], float]) -> float:
        return Spread.of(map(figure, line.samples)).median

    rates = "".join(f"{rate:11,.0f}" for rate in line.rate)
    whole = middle(lambda sample: sample.whole_seconds)
    client = middle(lambda sample: sample.a_million(sample.cpu_seconds))
    server = middle(lambda sample: sample.a_million(sample.server_cpu_seconds))
    return f"{line.samples[0].rows:11,}{rates}{whole:11.2f}{client:11.1f}{server:11.1f}"


def _compared(contest: Contest, line: Line) -> str:
    if line.comparison is None:
        return ""
    ratio = contest.ratio(line.comparison)
    faster, slower = line.comparison.faster, line.comparison.slower
    of = f"of {contest.line(slower).title}" if line.is_ours else "of it"
    told = f"{contest.line(faster).title}: {_times(ratio.median)} {of}"
    told += f" ({_times(ratio.lowest)} to {_times(ratio.highest)})"
    goal = line.comparison.goal
    return told if goal is None else f"{told}, goal {_times(goal)}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"
