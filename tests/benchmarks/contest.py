"""Runs the variants of one job on one database by turns, each on a fresh database."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import alembic.config

from tests.benchmarks.measuring import Watched, note, watch
from tests.benchmarks.results import Comparison, Contest, Line, Sample
from tests.benchmarks.servers import SETTINGS_SHOWN
from tests.benchmarks.tables import JOINED, fill, flush, wrong_rows
from tests.benchmarks.variants import Ours, Peer, Variant, compared_with, url_for
from tests.databases import version
from tests.projects import REPOSITORY, AlembicProject, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.servers import Place
    from tests.databases import Database

TABLE, COLUMN = "people", "full_name"

BACKFILL = '''\
from backfill import Backfill


class FillFullName(Backfill):
    """Give everybody a full name."""

    revision = "a1"
    table = "people"
'''
PENDING = '    where = "full_name IS NULL"\n'
LEVELS = {
    "set": '    values = {{"full_name": "{joined}"}}\n',
    "python": """\
    reads = ["first", "last"]
    writes = ["full_name"]

    def transform(self, row):
        return {{"full_name": f"{{row.first}} {{row.last}}"}}
""",
    "busy": """\
    reads = ["first", "last"]
    writes = ["full_name"]

    def transform(self, row):
        from time import perf_counter

        end = perf_counter() + 50e-6
        while perf_counter() < end:
            pass
        return {{"full_name": f"{{row.first}} {{row.last}}"}}
""",
}


class WrongRows(Exception):
    """A variant did not do its job."""


@dataclass(frozen=True)
class Rows:
    """How many rows a variant fills."""

    usual: int
    slow: int

    def of(self, variant: Variant) -> int:
        if isinstance(variant, Peer) and variant.is_slow:
            return min(self.slow, self.usual)
        return self.usual


def hold(
    place: Place, database: str, job: str, entrants: Sequence[Variant], rows: Rows, turns: int
) -> Contest:
    """Measure each entrant once a turn, in an order that changes from turn to turn."""
    contest = Contest(
        database,
        version(database),
        SETTINGS_SHOWN[database],
        job,
        [_line(variant, entrants) for variant in entrants],
    )
    # A new server still has to make the files of its log, whoever comes first.
    warm_up = next((variant for variant in entrants if isinstance(variant, Peer)), entrants[0])
    measure(place, job, warm_up, rows.of(warm_up))
    for turn in range(turns):
        for variant in random.Random(turn).sample(entrants, len(entrants)):
            sample = measure(place, job, variant, rows.of(variant))
            contest.line(variant.name).samples.append(sample)
            note(f"{database}, {job}, turn {turn + 1}: {variant.title} {sample.rate:,.0f} rows/s")
    return contest


def _line(variant: Variant, entrants: Sequence[Variant]) -> Line:
    pair = compared_with(variant, entrants)
    comparison = Comparison(pair[0].name, pair[1].name, variant.goal) if pair else None
    return Line(variant.name, variant.title, isinstance(variant, Ours), comparison)


def measure(place: Place, job: str, variant: Variant, rows: int) -> Sample:
    """Make a table, have it filled, and look at every row of it."""
    column = variant.column if isinstance(variant, Peer) else COLUMN
    with place.database() as database, tempfile.TemporaryDirectory(prefix="backfill-") as folder:
        words, directory = command_for(variant, job, database, Path(folder))
        fill(database, TABLE, rows, targets=[COLUMN], undisturbed=True)
        flush(database, TABLE)
        before = place.cpu_seconds()
        watched = watch(words, directory)
        server_cpu_seconds = place.cpu_seconds() - before
        if wrong := wrong_rows(database, TABLE, column, rows):
            raise WrongRows(f"{variant.title}: {wrong:,} of {rows:,} rows are wrong")
    return _sample(watched, rows, server_cpu_seconds)


def _sample(watched: Watched, rows: int, server_cpu_seconds: float) -> Sample:
    return Sample(
        rows=rows,
        seconds=watched.moment("finished") - watched.moment("started"),
        whole_seconds=watched.seconds,
        cpu_seconds=watched.cpu_seconds,
        server_cpu_seconds=server_cpu_seconds,
    )


def command_for(
    variant: Variant, job: str, database: Database, folder: Path
) -> tuple[list[str], Path]:
    """The words of the command, and the folder that it runs in."""
    url = url_for(variant, database.url)
    if isinstance(variant, Peer):
        module = f"tests.benchmarks.peers.{variant.module}"
        return command(module, (variant.way, url)), REPOSITORY
    project = _project(folder / "project", job, database.name, url, variant)
    return command("backfill", ("run", "fill_full_name", "--json", *variant.options)), project


def _project(folder: Path, job: str, database: str, url: str, variant: Ours) -> Path:
    """An Alembic project of its own, with one revision and one backfill."""
    project = AlembicProject.create(folder, url)
    if variant.driver == "asyncpg":
        templates = Path(alembic.config.Config().get_template_directory())
        env = (templates / "async" / "env.py").read_text(encoding="utf-8")
        project.write("migrations/env.py", env)
    project.revision("a1")
    project.alembic("upgrade", "head")
    pending = "" if variant.every_row else PENDING
    text = BACKFILL + pending + LEVELS[job].format(joined=JOINED[database])
    project.write("migrations/backfills/people.py", text)
    return project.directory
