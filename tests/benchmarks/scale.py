"""Do many rows cost more than few? Start-up, memory and time per row on a small and a big table.

    python -m tests.benchmarks.scale --output scale.json

Each measurement is the real command in a process of its own, on a private server that syncs to
the disk as it does by default. Slices of both tables take turns, so that a noisy neighbour or a
checkpoint hits both; the ratio is that of the medians, its spread the lowest and highest ratio of
one turn. PostgreSQL's autovacuum leaves these tables alone. Then whole tables are run, for their
peak memory. There is no pass mark: the goals stand beside the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.benchmarks.measuring import Watched, note, watch
from tests.benchmarks.servers import SETTINGS_SHOWN, place_for
from tests.benchmarks.tables import JOINED, drop, fill
from tests.databases import version
from tests.projects import AlembicProject, command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.databases import Database

GOAL_STARTUP_SECONDS = 2.0
GOAL_MEMORY_MB = 120.0
GOAL_RATIO = 1.15

KINDS = ("set", "python")
TARGETS = ("set_name", "python_name")
EXIT_COMPLETE, EXIT_STOPPED = 0, 3
WARM_UP = 1


# -- the project -----------------------------------------------------------------------------

BACKFILLS = """\
from backfill import Backfill


class Set_{table}(Backfill):
    name = "set_{table}"
    revision = "a1"
    table = "{table}"
    where = "set_name IS NULL"
    values = {{"set_name": "{joined}"}}


class Python_{table}(Backfill):
    name = "python_{table}"
    revision = "a1"
    table = "{table}"
    where = "python_name IS NULL"
    reads = ["first", "last"]
    writes = ["python_name"]

    def transform(self, row):
        return {{"python_name": f"{{row.first}} {{row.last}}".title()}}
"""


def declare(project: AlembicProject, database: Database, tables: Sequence[str]) -> None:
    project.revision("a1")
    project.alembic("upgrade", "head")
    for table in tables:
        text = BACKFILLS.format(table=table, joined=JOINED[database.name])
        project.write(f"migrations/backfills/{table}.py", text)


# -- one measurement -------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """What one run of the command took."""

    startup_seconds: float
    """From its start until its first chunk was committed."""
    seconds_per_million: float
    """Between its first and its last chunk."""
    whole_seconds_per_million: float
    """The whole command, start-up and proof included."""
    peak_mb: float
    rows: int
    chunks: int
    retries: int


def measure(project: AlembicProject, name: str, *options: str) -> Sample:
    """Run one backfill in a process of its own, and watch its lines of JSON."""
    words = command("backfill", ("run", name, "--json", *options))
    return summarise(watch(words, project.directory, may_exit=(EXIT_COMPLETE, EXIT_STOPPED)))


def summarise(watched: Watched) -> Sample:
    events = watched.events
    chunks = [(moment, event["changed"]) for moment, event in events if event["event"] == "chunk"]
    if len(chunks) < 2:
        raise RuntimeError(f"only {len(chunks)} chunks: take more rows a slice")
    first, last = chunks[0][0], chunks[-1][0]
    rows = sum(changed for _, changed in chunks)
    return Sample(
        startup_seconds=first - watched.started,
        seconds_per_million=1e6 * (last - first) / (rows - chunks[0][1]),
        whole_seconds_per_million=1e6 * watched.seconds / rows,
        peak_mb=watched.peak_mb,
        rows=rows,
        chunks=len(chunks),
        retries=sum(event["event"] == "retry" for _, event in events),
    )


# -- series ----------------------------------------------------------------------------------


@dataclass
class Series:
    """The samples of one kind of backfill, each list by the rows of its table."""

    kind: str
    new: dict[int, Sample] = field(default_factory=dict)
    """The first slice, which makes the run and has yet to find its chunk size."""
    slices: dict[int, list[Sample]] = field(default_factory=dict)
    whole: dict[int, Sample] = field(default_factory=dict)

    def ratio(self) -> tuple[float, float, float]:
        """The biggest table's median time per row over the smallest one's; lowest, highest."""
        small, big = (self.slices[rows] for rows in (min(self.slices), max(self.slices)))
        turns = [
            b.seconds_per_million / s.seconds_per_million for s, b in zip(small, big, strict=True)
        ]
        medians = [median(s.seconds_per_million for s in samples) for samples in (small, big)]
        return medians[1] / medians[0], min(turns), max(turns)


def take_turns(
    project: AlembicProject, kind: str, tables: Mapping[int, str], rows: int, repeat: int
) -> Series:
    """Measure slices of each table; the one that goes first changes from turn to turn."""
    series = Series(kind)
    order = sorted(tables)
    for turn in range(WARM_UP + repeat):
        for size in order if turn % 2 else reversed(order):
            sample = measure(project, f"{kind}_{tables[size]}", "--limit", str(rows))
            note(
                f"{kind}, {size:,} rows, turn {turn}: {sample.seconds_per_million:.1f} s a million"
            )
            if turn < WARM_UP:
                series.new[size] = sample
            else:
                series.slices.setdefault(size, []).append(sample)
    return series


def slice_rows(sizes: Sequence[int], repeat: int) -> int:
    """Enough for steady figures, and few enough to leave rows in the smallest table."""
    return min(200_000, min(sizes) // (WARM_UP + repeat + 1))


def measure_database(
    name: str, sizes: Sequence[int], repeat: int, whole: Sequence[int]
) -> list[Series]:
    tables = {size: f"rows_{size}" for size in sizes}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backfill-scale-")))
        place = stack.enter_context(place_for(name))
        database = stack.enter_context(place.database())
        project = stack.enter_context(AlembicProject.create(directory / "project", database.url))
        whole_tables = {(kind, size): f"whole_{kind}_{size}" for kind in KINDS for size in whole}
        declare(project, database, [*tables.values(), *whole_tables.values()])
        for size, table in tables.items():
            with timed(f"{table} is generated"):
                fill(database, table, size, targets=TARGETS, undisturbed=True)
        rows = slice_rows(sizes, repeat)
        found = [take_turns(project, kind, tables, rows, repeat) for kind in KINDS]
        for table in tables.values():
            drop(database, table)
        for series in found:
            for size in whole:
                table = whole_tables[series.kind, size]
                with timed(f"{table} is generated"):
                    fill(database, table, size, targets=TARGETS)
                series.whole[size] = measure(project, f"{series.kind}_{table}")
                drop(database, table)
    return found


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    note(f"{what} in {time.perf_counter() - started:.0f} s")


# -- what is told ----------------------------------------------------------------------------


def report(name: str, found: Sequence[Series]) -> None:
    print(f"\n{name} {version(name)} ({SETTINGS_SHOWN[name]})")
    for series in found:
        sizes = sorted(series.slices)
        line(f"{series.kind}", [f"{size:,} rows" for size in sizes], "goal")
        under = f"under {GOAL_STARTUP_SECONDS:.0f}"
        new = [f"{series.new[size].startup_seconds:.2f}" for size in sizes]
        line("  start-up of a new run, s", new, under)
        line("  start-up of one that goes on, s", spread(series, "startup_seconds"), under)
        line("  seconds per million rows", spread(series, "seconds_per_million"))
        line("  the same, of the whole command", spread(series, "whole_seconds_per_million"))
        peak = [f"{max(s.peak_mb for s in series.slices[size]):.0f}" for size in sizes]
        line("  peak memory, MB", peak, f"under {GOAL_MEMORY_MB:.0f}")
        ratio, lowest, highest = series.ratio()
        told = f"{ratio:.2f} ({lowest:.2f} to {highest:.2f})"
        line("  big to small, time per row", [told], f"at most {GOAL_RATIO}")
        for size, sample in series.whole.items():
            report_whole(size, sample)


def spread(series: Series, figure: str) -> list[str]:
    """The median of a figure for each table, with its lowest and highest."""
    told = []
    for size in sorted(series.slices):
        values = [getattr(sample, figure) for sample in series.slices[size]]
        told.append(f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    return told


def report_whole(size: int, sample: Sample) -> None:
    line(f"  all of {size:,} rows: peak memory, MB", [f"{sample.peak_mb:.0f}"],
         f"under {GOAL_MEMORY_MB:.0f}")  # fmt: skip
    line("    start-up, s", [f"{sample.startup_seconds:.2f}"], f"under {GOAL_STARTUP_SECONDS:.0f}")
    line("    seconds per million rows", [f"{sample.seconds_per_million:.2f}"])
    line("    the same, of the whole command", [f"{sample.whole_seconds_per_million:.2f}"])


def line(what: str, figures: Sequence[str], goal: str = "") -> None:
    print(f"{what:42}" + "".join(f"{figure:>26}" for figure in figures) + f"   {goal}".rstrip())


def document(results: Mapping[str, Sequence[Series]]) -> dict[str, Any]:
    return {
        "goals": {
            "startup_seconds": GOAL_STARTUP_SECONDS,
            "peak_mb": GOAL_MEMORY_MB,
            "ratio": GOAL_RATIO,
        },
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "databases": {
            name: {
                "version": version(name),
                "settings": SETTINGS_SHOWN[name],
                "kinds": [{**asdict(series), "ratio": series.ratio()} for series in found],
            }
            for name, found in results.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--databases", nargs="+", default=["postgresql", "mariadb", "sqlite"],
                        choices=sorted(SETTINGS_SHOWN))  # fmt: skip
    parser.add_argument("--repeat", type=int, default=3, help="turns that count")
    parser.add_argument("--whole", nargs="*", default=["postgresql"], metavar="DATABASE",
                        help="also run the biggest table as a whole there")  # fmt: skip
    parser.add_argument("--output", type=Path, help="write every sample as JSON")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before we begin")
    results: dict[str, list[Series]] = {}
    for name in options.databases:
        whole = [max(options.rows)] if name in options.whole else []
        results[name] = measure_database(name, options.rows, options.repeat, whole)
        report(name, results[name])
        if options.output:
            options.output.write_text(json.dumps(document(results), indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
