"""Is it felt? What a live load waits while its table is filled, in this way and in others.

    python -m tests.benchmarks.neighbour --output docs/neighbour.json --plot docs/neighbour.svg

The load is half point reads and half point updates, at a tenth and at 35 % of what the machine can
answer (measured first), each timed from when it was due. It runs on a new table, vacuumed and
flushed, for a while alone; then one of the ways begins to fill a column, is ended if it takes
longer than the window, and the load goes on until nobody waits. One UPDATE cannot be ended, so
its window is as long as it takes. The ways take turns in an order that changes, each turn has the
load alone as well, and ratios are taken turn by turn. Last, our defaults and a loop by hand fill
the table with nobody else there. There is no pass mark: the goals stand beside the figures.
All of it takes half an hour on a quiet machine; `--short` one minute.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.benchmarks import contest
from tests.benchmarks.latencies import (
    Line,
    Phase,
    Quiet,
    Results,
    Run,
    Scene,
    as_document,
    from_document,
    timeline,
)
from tests.benchmarks.load import capacity, load
from tests.benchmarks.measuring import CommandFailed, note
from tests.benchmarks.neighbour_report import report, report_quiet
from tests.benchmarks.others import Watch, wait_until_quiet
from tests.benchmarks.peers.common import CHUNKS
from tests.benchmarks.servers import SETTINGS_SHOWN, place_for
from tests.benchmarks.tables import execute, fill, flush
from tests.benchmarks.variants import Ours, Peer
from tests.databases import Unavailable, version
from tests.projects import StartedAnew

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.load import Load
    from tests.benchmarks.servers import Place
    from tests.benchmarks.variants import Variant
    from tests.databases import Database

ABSENT = ["django-maintenance-tasks: there is no such package on PyPI"]
EXIT_STOPPED = 3
DISTURBED = 0.25
"""Of the machine, in the hands of others (the kernel's threads count): the run is repeated."""
SETTLE_SECONDS, DRAIN_SECONDS, POLL_SECONDS = 2.0, 1.0, 0.005
LONGEST_SECONDS = 300
LATE_SECONDS = 0.25
"""A request that waited longer is one of many that wait."""

# More than max_wal_size, whose default is 1 GB.
LOG_IN_USE = {
    "postgresql": [
        "ALTER SYSTEM SET min_wal_size = '1GB'",
        "SELECT pg_reload_conf()",
        "SELECT count(pg_logical_emit_message(false, 'warm up', repeat('x', 1000000)))"
        " FROM generate_series(1, 1100)",
        "CHECKPOINT",
    ],
    "mariadb": [],
}

MODULES = {"postgresql": ("postgresql", "psycopg"), "mariadb": ("mysql", "mysqldb")}


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rows: dict[str, int]
    turns: int
    capacity_seconds: float
    before_seconds: float
    window_seconds: float
    shares: Sequence[float]
    """Of the capacity."""
    patience: float = 20
    """Seconds to wait for a quiet machine, before each of `tries`."""
    tries: int = 2


FULL = Extent({"postgresql": 2_000_000, "mariadb": 1_000_000}, 2, 5, 5, 10, (0.10, 0.35), 10)
SHORT = Extent({"postgresql": 200_000, "mariadb": 100_000}, 1, 1, 1, 2, (0.10,), 0, 1)


def main() -> None:
    options = parser().parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in order with what is noted on stderr
    if options.draw:
        results = from_document(json.loads(options.draw.read_text(encoding="utf-8")))
        report_all(results)
    else:
        results = measure(options)
    if options.plot:
        from tests.benchmarks import neighbour_plot

        neighbour_plot.draw(results, options.plot)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.neighbour",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = found.add_argument
    add("--short", action="store_true", help="few ways, the lower rate, under a minute")
    add("--databases", nargs="+", default=list(MODULES), choices=list(MODULES))
    add("--shares", nargs="+", type=float, help="of the capacity")
    add("--variants", nargs="+", metavar="NAME", help="only those with one of these in their name")
    add(
        "--with",
        nargs="+",
        default=[],
        metavar="NAME=VALUE,…",
        dest="tried",
        help="ours once more, with these settings",
    )
    add("--turns", type=int)
    add("--rows", type=int)
    add("--window", type=float, help="seconds that a way may take")
    add("--capacity", type=float, help="requests a second, instead of measuring it")
    add("--no-quiet", action="store_true", help="not with nobody else there")
    add("--output", type=Path, metavar="FILE.json", help="save every run")
    add("--draw", type=Path, metavar="FILE.json", help="measure nothing, report what was saved")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the waits over time")
    return found


def report_all(results: Results) -> None:
    for scene in results.scenes:
        report(scene)
    for quiet in results.quiet:
        report_quiet(quiet)


def measure(options: argparse.Namespace) -> Results:
    extent = extent_of(options)
    results = Results(os.cpu_count() or 1, round(os.getloadavg()[0], 2), ABSENT)
    print(f"{results.cores} cores, load {results.load:.1f} before we begin")
    print(*(f"not compared with {name}" for name in ABSENT), sep="\n")
    for database in options.databases:
        try:
            version(database)
        except Unavailable as error:
            print(f"not installed: {database} ({error})")
            continue
        with place_for(database) as place:
            visit(place, database, extent, options, results)
    return results


def extent_of(options: argparse.Namespace) -> Extent:
    extent = SHORT if options.short else FULL
    if options.shares:
        extent = replace(extent, shares=options.shares)
    if options.turns:
        extent = replace(extent, turns=options.turns)
    if options.rows:
        extent = replace(extent, rows=dict.fromkeys(extent.rows, options.rows))
    if options.window:
        extent = replace(extent, window_seconds=options.window)
    return extent


def visit(
    place: Place, name: str, extent: Extent, options: argparse.Namespace, results: Results
) -> None:
    """Measure all that was asked for on one server."""
    rows, turns = extent.rows[name], extent.turns
    warm_up(place)
    most = options.capacity or measured_capacity(place, rows, extent.capacity_seconds)
    ways = list(chosen(name, options))
    print(f"{name} answers {most:,.0f} requests a second, clients included")
    for share in extent.shares:
        rate = round(share * most)
        lines = [Line(way.name, way.title, isinstance(way, Ours)) for way in ways]
        settings = SETTINGS_SHOWN[name]
        scene = Scene(name, version(name), settings, rows, share, rate, lines)
        for turn in range(turns):
            for way in random.Random(turn).sample(ways, len(ways)):
                run = in_quiet(place, way, rows, rate, extent)
                scene.line(way.name).runs.append(run)
                note(f"{name} {share:.0%} turn {turn + 1}: {told(way, run)}")
        results.scenes.append(scene)
        report(scene)
        save(results, options.output)
    if not (options.no_quiet or options.short):
        results.quiet.append(without_load(place, name, rows, turns))
        report_quiet(results.quiet[-1])
        save(results, options.output)


def save(results: Results, file: Path | None) -> None:
    if file:
        text = json.dumps(as_document(results), indent=None)
        file.write_text(text + "\n", encoding="utf-8")


def told(way: Variant, run: Run) -> str:
    before, during = run.before.updates, run.during.updates
    return (
        f"{way.title} {run.rate:,.0f} rows/s, p99 of updates {1e3 * before.p99:.1f} ms before,"
        f" {1e3 * during.p99:.1f} ms during, longest {1e3 * run.during.longest:.0f} ms"
        f" ({run.others:.0%} of the machine had others)"
    )


# -- the ways --------------------------------------------------------------------------------

ALONE = Peer("alone", "the load alone", "", "")


def chosen(database: str, options: argparse.Namespace) -> list[Variant]:
    """Those that were asked for; the load alone is always one of them."""
    module, driver = MODULES[database]
    ways: list[Variant] = [
        Ours("backfill", "backfill", "psycopg" if driver == "psycopg" else "pymysql"),
        Peer("single_update", "one UPDATE", module, "single_update", driver),
        *(
            Peer(f"loop_{rows}", f"a loop of {rows:,}", module, f"set_loop_{rows}", driver)
            for rows in CHUNKS
        ),
    ]
    if options.short:
        ways = ways[:2]
    if options.variants:
        ways = [way for way in ways if any(part in way.name for part in options.variants)]
    tried = (Ours(f"backfill {text}", f"backfill {text}", "", (text,)) for text in options.tried)
    return [ALONE, *ways, *tried]


def command_for(way: Variant, database: Database, folder: Path) -> tuple[list[str], Path]:
    """The words of the command, and the folder that it runs in."""
    if isinstance(way, Peer) or not way.options:
        return contest.command_for(way, "set", database, folder)
    plain = Ours(way.name, way.title)
    words, directory = contest.command_for(plain, "set", database, folder)
    settings = (text.partition("=") for text in way.options[0].split(","))
    return ["env", *(f"BACKFILL_{n.upper()}={v}" for n, _, v in settings), *words], directory


# -- one measurement -------------------------------------------------------------------------


def warm_up(place: Place) -> None:
    """Have PostgreSQL's log as it is on a server in use: its files are used again.

    On a new one everybody who commits waits while the next file is filled with zeros.
    """
    with place.database() as database:
        execute(database.admin_url, "", LOG_IN_USE[database.name])


def measured_capacity(place: Place, rows: int, seconds: float) -> float:
    with place.database() as database:
        prepare(database, rows)
        return capacity(database, rows, seconds)


def prepare(database: Database, rows: int) -> None:
    fill(database, contest.TABLE, rows, targets=[contest.COLUMN], undisturbed=True)
    flush(database, contest.TABLE)


def in_quiet(place: Place, way: Variant, rows: int, rate: float, extent: Extent) -> Run:
    """Measure while nobody else uses the machine, if that can be had; else when it was best."""
    runs = []
    for _ in range(extent.tries):
        wait_until_quiet(extent.patience)
        runs.append(beside_load(place, way, rows, rate, extent))
        if runs[-1].others < DISTURBED:
            break
    return min(runs, key=lambda run: run.others)


def beside_load(place: Place, way: Variant, rows: int, rate: float, extent: Extent) -> Run:
    """Fill a new table while the load runs; without a way, only let it run."""
    with place.database() as database, tempfile.TemporaryDirectory(prefix="backfill-") as name:
        folder = Path(name)
        if way is not ALONE:
            words, directory = command_for(way, database, folder)
        prepare(database, rows)
        with load(database, rows, rate) as running:
            time.sleep(SETTLE_SECONDS)
            watch = Watch()
            time.sleep(extent.before_seconds)
            start = time.time()
            if way is ALONE:
                time.sleep(extent.window_seconds)
                end = time.time()
            else:
                process = StartedAnew(words, directory, folder / "way")
                start, end = worked(process, way, extent.window_seconds)
            others = watch.others()
            drain(running)
            filled = 0 if way is ALONE else count_filled(database)
    requests, seconds = running.requests, extent.before_seconds
    return Run(
        seconds=end - start,
        rows=filled,
        before=Phase.of(requests, start - seconds, start),
        during=Phase.of(requests, start, end),
        timeline=timeline(requests, start - seconds, end + DRAIN_SECONDS, start),
        others=others,
    )


def drain(running: Load) -> None:
    """Let the load go on until nobody waits any more."""
    deadline = time.monotonic() + LONGEST_SECONDS
    time.sleep(DRAIN_SECONDS)
    while running.last_wait() > LATE_SECONDS and time.monotonic() < deadline:
        time.sleep(DRAIN_SECONDS)


def worked(process: StartedAnew, way: Variant, window: float) -> tuple[float, float]:
    """Wait for the end of the work, or of the window; when it began, and when it ended."""
    try:
        while '"started"' not in process.read_stdout():
            if process.poll() is not None:
                raise CommandFailed(f"{way.title} did not begin:\n{process.read_stderr()}")
            time.sleep(POLL_SECONDS)
        start = time.time()
        can_be_ended = "single" not in way.name
        limit = start + (window if can_be_ended else LONGEST_SECONDS)
        while process.poll() is None and time.time() < limit:
            time.sleep(POLL_SECONDS)
        if process.poll() is None:
            process.terminate()
        process.wait(LONGEST_SECONDS)
        end = time.time()
    finally:
        process.end()
    if process.returncode not in (0, EXIT_STOPPED, -signal.SIGTERM):
        raise CommandFailed(f"{way.title}: exit {process.returncode}\n{process.read_stderr()}")
    return start, end


def count_filled(database: Database) -> int:
    query = sa.text(f"SELECT COUNT(*) FROM {contest.TABLE} WHERE {contest.COLUMN} IS NOT NULL")
    with database.engine().connect() as connection:
        return int(connection.execute(query).scalar_one())


def without_load(place: Place, name: str, rows: int, turns: int) -> Quiet:
    """Our defaults and a loop by hand, with nobody else there."""
    module, driver = MODULES[name]
    ours = Ours("backfill", "backfill", "psycopg" if driver == "psycopg" else "pymysql")
    loop = Peer("loop", "a loop of 10,000", module, "set_loop_10000", driver)
    ways: list[Variant] = [ours, loop]
    quiet = Quiet(name)
    for turn in range(turns):
        for way in random.Random(turn).sample(ways, len(ways)):
            rate = contest.measure(place, "set", way, rows).rate
            (quiet.ours if way is ours else quiet.unpaced).append(rate)
            note(f"{name} with nobody else there, turn {turn + 1}: {way.title} {rate:,.0f} rows/s")
    return quiet


if __name__ == "__main__":
    try:
        main()
    except (CommandFailed, contest.WrongRows) as error:
        sys.exit(f"error: {error}")
