"""The picture of the README: how long updates wait while the table is filled, ours in colour."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tests.benchmarks.latencies import BIN_SECONDS
from tests.benchmarks.plot import CARD, FAINT, INK, OURS, STYLE, THEIRS
from tests.benchmarks.variants import DATABASES

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from tests.benchmarks.latencies import Line, Results, Scene

WIDTH, PANEL = 11.0, 2.6
"""Inches: of the figure, of a panel's height."""
BEFORE_SECONDS, AFTER_SECONDS = 5.0, 15.0
LOOKS = {
    "alone": (INK, ":", 1.0),
    "single_update": ("#6e7781", "-", 1.6),
    "loop_50000": (THEIRS, "-", 1.6),
    "loop_1000": (THEIRS, "--", 1.2),
    "backfill": (OURS, "-", 2.0),
}
"""Colour, dashes and width; others would only hide one another."""


def draw(results: Results, file: Path) -> None:
    """A panel a database and rate, a line a way; waits on a logarithmic scale."""
    databases = list(dict.fromkeys(scene.database for scene in results.scenes))
    shares = list(dict.fromkeys(scene.share for scene in results.scenes))
    size = (WIDTH, PANEL * len(databases) + 0.7)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, facecolor=CARD, layout="constrained")
        panels = figure.subplots(len(databases), len(shares), squeeze=False, sharex=True)
        for scene in results.scenes:
            place = databases.index(scene.database), shares.index(scene.share)
            _draw_scene(panels[place], scene)
        panels[0, -1].legend(loc="upper right", fontsize=8, frameon=False)
        figure.suptitle("How long updates of the application wait, less is better", weight="bold")
        figure.supxlabel(_small_print(results), fontsize=8, color=FAINT)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _draw_scene(panel: Axes, scene: Scene) -> None:
    panel.set_facecolor(CARD)
    for line in sorted(scene.lines, key=lambda line: line.is_ours):
        if line.name in LOOKS:
            colour, dashes, width = LOOKS[line.name]
            points = _medians(line)
            panel.plot(
                [moment for moment, _ in points],
                [1e3 * wait for _, wait in points],
                color=colour,
                linestyle=dashes,
                linewidth=width,
                label=line.title,
                drawstyle="steps-post",
            )
    panel.axvline(0, color=FAINT, linewidth=0.8)
    panel.set_yscale("log")
    panel.set_xlim(-BEFORE_SECONDS, AFTER_SECONDS)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _wait(value)))
    panel.tick_params(which="both", length=0)
    panel.grid(axis="y", color=THEIRS, alpha=0.3, linewidth=0.6)
    panel.spines[["top", "right", "bottom", "left"]].set_visible(False)
    title = f"{DATABASES[scene.database]}, {scene.requests_per_second:,.0f} requests/s"
    panel.set_title(f"{title} ({scene.share:.0%} of capacity)", loc="left", fontsize=10)


def _medians(line: Line) -> list[tuple[float, float]]:
    """Over the turns, for each moment that more than half of them saw."""
    waits: dict[float, list[float]] = {}
    for run in line.runs:
        for moment, wait in run.timeline:
            waits.setdefault(moment, []).append(wait)
    seen = {m: median(w) for m, w in waits.items() if len(w) * 2 > len(line.runs)}
    return sorted(seen.items())


def _wait(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:g} s" if milliseconds >= 1e3 else f"{milliseconds:g} ms"


def _small_print(results: Results) -> str:
    versions = {f"{DATABASES[scene.database]} {scene.version}": None for scene in results.scenes}
    turns = max(len(line.runs) for scene in results.scenes for line in scene.lines)
    return (
        f"Seconds from the beginning of the backfill. 99th percentile of each {BIN_SECONDS:g} s,"
        f" from when an update was due; {', '.join(versions)} on {results.cores} cores,"
        f" median of {turns} turns."
    )
