"""The picture of the README: rows a second of every way, ours in colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.benchmarks.variants import DATABASES, JOBS, PLOTTED

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from tests.benchmarks.results import Contest, Results

# A card of its own colour, since a picture cannot know what page it stands on.
CARD, INK, FAINT = "#fbfbfa", "#24292f", "#57606a"
OURS, THEIRS = "#e8590c", "#a8b3bf"

STYLE: Any = {
    "svg.hashsalt": "backfill",  # the same figures make the same file
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": INK,
}
WIDTH, BAR, PANEL = 11.0, 0.25, 0.75
"""Inches: of the figure, of a bar's height, and of what a panel has around its bars."""


def draw(results: Results, file: Path) -> None:
    """A panel a job and database, a bar a variant, the fastest one on top."""
    contests = [contest for contest in results.contests if contest.job in PLOTTED]
    databases = list(dict.fromkeys(contest.database for contest in contests))
    jobs = list(dict.fromkeys(contest.job for contest in contests))
    heights = [BAR * _most_lines(results, database) + PANEL for database in databases]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights) + PANEL), facecolor=CARD, layout="constrained")
        panels = figure.subplots(
            len(databases), len(jobs), squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for panel in panels.flat:
            panel.set_axis_off()
        for contest in contests:
            panel = panels[databases.index(contest.database), jobs.index(contest.job)]
            _draw_contest(panel, contest, _most_lines(results, contest.database))
        figure.suptitle("Rows per second, more is better", fontweight="bold")
        figure.supxlabel(_small_print(results), fontsize=8, color=FAINT)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _most_lines(results: Results, database: str) -> int:
    return max(len(contest.lines) for contest in results.contests if contest.database == database)


def _draw_contest(panel: Axes, contest: Contest, bars: int) -> None:
    lines = sorted(contest.lines, key=lambda line: line.rate.median)
    rates = [line.rate for line in lines]
    medians = [rate.median for rate in rates]
    panel.set_axis_on()
    panel.set_facecolor(CARD)
    panel.barh(
        range(len(lines)),
        medians,
        color=[OURS if line.is_ours else THEIRS for line in lines],
        xerr=[
            [rate.median - rate.lowest for rate in rates],
            [rate.highest - rate.median for rate in rates],
        ],
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
    )
    for height, rate in enumerate(rates):
        panel.annotate(
            _short(rate.median),
            (rate.highest, height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    panel.set_xlim(0, 1.12 * max(rate.highest for rate in rates))
    panel.set_ylim(len(lines) - bars - 0.5, len(lines) - 0.5)
    panel.set_yticks(range(len(lines)), [line.title for line in lines])
    for label, line in zip(panel.get_yticklabels(), lines, strict=True):
        label.set(
            fontweight="bold" if line.is_ours else "normal", color=OURS if line.is_ours else INK
        )
    panel.set_xticks([])
    panel.tick_params(length=0)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.spines["left"].set_color(FAINT)
    panel.set_title(_title(contest), loc="left", fontsize=10)


def _title(contest: Contest) -> str:
    rows = max(line.samples[0].rows for line in contest.lines)
    return f"{DATABASES[contest.database]}, {JOBS[contest.job]}, {rows:,} rows"


def _small_print(results: Results) -> str:
    versions = {f"{DATABASES[c.database]} {c.version}": None for c in results.contests}
    turns = [len(line.samples) for contest in results.contests for line in contest.lines]
    return (
        f"{', '.join(versions)} on {results.cores} cores, syncing to the disk;"
        f" median of {_range(turns)} interleaved turns, lowest to highest."
        " Django and SQLAlchemy fill fewer rows."
    )


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _short(rate: float) -> str:
    if rate >= 1e6:
        return f"{rate / 1e6:.2f}M"
    return f"{rate / 1e3:.0f}k" if rate >= 1e4 else f"{rate / 1e3:.1f}k"
