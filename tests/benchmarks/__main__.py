"""How fast is it, beside the ways that people fill a column without it?

    python -m tests.benchmarks --output docs/speed.json --plot docs/speed.svg

Each variant is a process of its own, ours is `backfill run` on an Alembic project, with all its
protection. All variants of one job on one database take turns, in an order that changes, on a
private server that syncs to the disk as it does by default. Each fills a new table in a new
database, which is vacuumed, analysed and flushed, and which autovacuum leaves alone; afterwards
every row is checked, and a variant that left a wrong one ends the command. Rows a second are
counted from the first work on an open connection to the end (ours: with the proof that none is
left; once more without a `where`, as the others' statements are, so that nothing is to be proved:
that is what has to reach the goals). Ratios are taken turn by turn; shown are their median, lowest
and highest. There is no pass mark: the goals stand beside the figures. All of it takes twenty
minutes; `--short` two.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.contest import Rows, WrongRows, hold
from tests.benchmarks.measuring import CommandFailed
from tests.benchmarks.report import report
from tests.benchmarks.results import Results, as_document, from_document
from tests.benchmarks.servers import PLACES, place_for
from tests.benchmarks.variants import (
    DRIVERS,
    JOBS,
    ROWS,
    ROWS_SHORT,
    ROWS_SLOW,
    ROWS_SLOW_SHORT,
    missing,
    variants,
)
from tests.databases import Unavailable, version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.servers import Place
    from tests.benchmarks.variants import Variant

TURNS, TURNS_SHORT = 5, 2


def main() -> None:
    options = parser().parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in order with what is noted on stderr
    if options.draw:
        results = from_document(json.loads(options.draw.read_text(encoding="utf-8")))
        for contest in results.contests:
            report(contest)
    else:
        results = measure(options)
    if options.plot:
        draw(results, options.plot)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    add = found.add_argument
    add("--short", action="store_true", help="small tables and few peers, about two minutes")
    add("--databases", nargs="+", default=list(PLACES), choices=list(PLACES))
    add("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    add("--rows", type=int, help="in a table; slow variants get fewer")
    add("--turns", type=int)
    add("--variants", nargs="+", metavar="NAME", help="only those with one of these in their name")
    add(
        "--driver",
        nargs="+",
        default=[],
        choices=[name for names in DRIVERS.values() for name in names],
        help="what `backfill` runs on; the first one of a database is compared with all peers",
    )
    add("--output", type=Path, metavar="FILE.json", help="save every sample")
    add("--draw", type=Path, metavar="FILE.json", help="measure nothing, report what was saved")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the rows a second")
    return found


def measure(options: argparse.Namespace) -> Results:
    results = Results(cores=os.cpu_count() or 1, load=round(os.getloadavg()[0], 2))
    print(f"{results.cores} cores, load {results.load:.1f} before we begin")
    for database in options.databases:
        try:
            version(database)
        except Unavailable as error:
            print(f"not installed: {database} ({error})")
            continue
        with place_for(database) as place:
            contests(place, database, options, results)
    return results


def contests(place: Place, database: str, options: argparse.Namespace, results: Results) -> None:
    turns = options.turns or (TURNS_SHORT if options.short else TURNS)
    for job in options.jobs:
        entrants = list(chosen(database, job, options))
        if not entrants:
            continue
        usual = options.rows or (ROWS_SHORT if options.short else ROWS)[job]
        slow = ROWS_SLOW_SHORT if options.short else ROWS_SLOW
        contest = hold(place, database, job, entrants, Rows(usual, slow), turns)
        report(contest)
        results.contests.append(contest)
        if options.output:
            text = json.dumps(as_document(results), indent=1)
            options.output.write_text(text + "\n", encoding="utf-8")


def chosen(database: str, job: str, options: argparse.Namespace) -> Iterator[Variant]:
    """The variants that were asked for; says which of them are not installed."""
    drivers = [name for name in options.driver if name in DRIVERS[database]]
    for variant in variants(database, job, drivers or default_drivers(database, options)):
        if options.variants:
            if not any(part in variant.name for part in options.variants):
                continue
        elif options.short and not variant.in_short:
            continue
        if lacking := missing(variant):
            print(f"not installed: {variant.title} ({', '.join(lacking)})")
        else:
            yield variant


def default_drivers(database: str, options: argparse.Namespace) -> tuple[str, ...]:
    count = 2 if database == "mariadb" and not options.short else 1
    return DRIVERS[database][:count]


def draw(results: Results, file: Path) -> None:
    try:
        from tests.benchmarks import plot
    except ModuleNotFoundError as error:
        print(f"not installed: {error.name}, so there is no plot")
    else:
        plot.draw(results, file)


if __name__ == "__main__":
    try:
        main()
    except (CommandFailed, WrongRows) as error:
        sys.exit(f"error: {error}")
