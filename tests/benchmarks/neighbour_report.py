"""The table of waits that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.variants import DATABASES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.latencies import Line, Quiet, Run, Scene, Waits

GOAL_RATIO, GOAL_LONGEST, GOAL_QUIET = 2.0, 0.25, 0.5


def report(scene: Scene) -> None:
    """Print a scene: a line a variant, with medians and the goals."""
    turns = max(len(line.runs) for line in scene.lines)
    print(
        f"\n{DATABASES[scene.database]} {scene.version}, {scene.share:.0%} of capacity:"
        f" {scene.requests_per_second:,.0f} requests/s, {scene.rows:,} rows, {turns} turns"
    )
    print(f"({scene.settings}; medians, in ms: p50/p95/p99/longest)")
    width = max(len(line.title) for line in scene.lines)
    print(f"{'':{width}}{'rows/s':>10}{'reads':>27}{'updates':>27}   p99 of updates, and longest")
    for line in scene.lines:
        print(f"{line.title:{width}}{_figures(line)}   {_compared(scene, line)}".rstrip())


def _figures(line: Line) -> str:
    rate = line.middle(lambda run: run.rate).median
    reads = _waits(line, lambda run: run.during.reads)
    updates = _waits(line, lambda run: run.during.updates)
    return f"{rate:10,.0f}{reads:>27}{updates:>27}"


def _waits(line: Line, kind: Callable[[Run], Waits]) -> str:
    figures = ("p50", "p95", "p99", "longest")
    medians = (line.middle(lambda run, f=f: getattr(kind(run), f)).median for f in figures)
    return "/".join(_milliseconds(seconds) for seconds in medians)


def _compared(scene: Scene, line: Line) -> str:
    ratio = scene.ratio(line)
    own = line.middle(lambda run: run.during.updates.p99 / run.before.updates.p99)
    longest = line.middle(lambda run: run.during.longest)
    goals = f" (goals {GOAL_RATIO:g} and {1e3 * GOAL_LONGEST:.0f} ms)" if line.is_ours else ""
    return (
        f"{_spread(ratio)} of alone, {_spread(own)} of before,"
        f" longest of all {_milliseconds(longest.highest)}{goals}"
    )


def report_quiet(quiet: Quiet) -> None:
    """Print what the pace costs where it serves nobody."""
    print(
        f"\n{DATABASES[quiet.database]} with nobody else there: {_spread(quiet.ratio)} of the speed"
        f" of a loop by hand (goal {GOAL_QUIET:g})"
    )


def _spread(spread: tuple[float, float, float]) -> str:
    median, lowest, highest = spread
    return f"{median:.2f} ({lowest:.2f} to {highest:.2f})"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}" if seconds < 0.01 else f"{1e3 * seconds:.0f}"
