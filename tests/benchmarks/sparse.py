"""Does little work cost little, and do sparse keys cost what dense ones do?

    python -m tests.benchmarks.sparse --output sparse.json

First, 1 % of the rows are pending, evenly or all at the end: the whole `backfill run`, with its
protection and its proof, beside a loop that one writes by hand (the next 1,000 pending keys behind
the last one, an UPDATE of these, a commit), and beside the loop's reads alone. Then all rows are
pending, in tables of other keys: numbers without gaps, numbers far apart, random UUIDs (where they
are stored in the order of insertion, and in their own), and a tenant that holds 95 % of the rows;
the time of a row is compared with that of a dense key.

All that is compared takes turns, in an order that changes, on a private server that syncs to the
disk as it does by default. Each works on a column or a table of its own, vacuumed, analysed
and flushed. Ratios are taken turn by turn; shown are their median, lowest and highest. There is no
pass mark: the goals stand beside the figures.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tests.benchmarks.contest import WrongRows
from tests.benchmarks.measuring import CommandFailed, note, watch
from tests.benchmarks.peers.common import Address, working
from tests.benchmarks.results import Comparison, Contest, Line, Results, Sample, Spread, as_document
from tests.benchmarks.servers import PLACES, SETTINGS_SHOWN, place_for
from tests.benchmarks.tables import (
    DIFFERS,
    JOINED,
    NUMBERS,
    PER_STATEMENT,
    ROWS,
    SETTLE,
    UNDISTURBED,
    execute,
    flush,
    wrong_rows,
)
from tests.benchmarks.variants import DATABASES
from tests.databases import Unavailable, version
from tests.projects import REPOSITORY, AlembicProject, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.benchmarks.servers import Place
    from tests.databases import Database

GOAL_WORK = 1.5
"""So many times as long as a walk by hand."""
GOAL_KEYS = 1.3
"""So many times the time a row of a dense key takes."""
ONE_IN = 100
BY_HAND = 1_000
"""Rows of a step by hand."""
TABLE, COLUMN, DONE = "people", "full_name", "done"
WAYS = {"set": "set-based", "python": "Python"}


# -- by hand ---------------------------------------------------------------------------------


def by_hand(way: str, url: str, column: str) -> None:
    """The `walk`, or the `loop` that writes besides."""
    address = Address.parse(url)
    database = {"mariadb": "mysql"}.get(address.dialect, address.dialect)
    mark = "?" if database == "sqlite" else "%s"
    joined = JOINED["mariadb" if database == "mysql" else database]
    read = (
        f"SELECT id FROM {TABLE} WHERE {column} IS NULL AND id > {mark} ORDER BY id LIMIT {BY_HAND}"
    )
    update = f"UPDATE {TABLE} SET {column} = {joined} WHERE id IN"
    peers = importlib.import_module(f"tests.benchmarks.peers.{database}")
    with peers.connect(address) as connection, working():
        cursor = connection.cursor()
        after = 0
        while True:
            cursor.execute(read, (after,))
            keys = [key for (key,) in cursor.fetchall()]
            if keys and way == "loop":
                cursor.execute(f"{update} ({', '.join([mark] * len(keys))})", keys)
            connection.commit()
            if len(keys) < BY_HAND:
                return
            after = keys[-1]


# -- tables ----------------------------------------------------------------------------------


def fill(database: Database, rows: int, keys: Keys, columns: Mapping[str, str]) -> None:
    """Generate a table with this key and these columns, each with its value."""
    name = database.name
    declared = [
        *(f"{column} {kind[name]} NOT NULL" for column, kind in keys.columns.items()),
        "first VARCHAR(60) NOT NULL, last VARCHAR(60) NOT NULL, note VARCHAR(200)",
        *(f"{column} VARCHAR(200)" for column in columns),
        f"PRIMARY KEY ({', '.join(keys.columns)})",
    ]
    statements = [f"CREATE TABLE {TABLE} ({', '.join(declared)})", *UNDISTURBED.get(name, ())]
    names = ", ".join([*keys.columns, "first, last, note", *columns])
    values = ", ".join([keys.values[name], ROWS[name].partition(", ")[2], *columns.values()])
    order = " ORDER BY 1" if keys.in_order else ""
    step = rows if keys.in_order else PER_STATEMENT
    for low in range(1, rows + 1, step):
        numbers = NUMBERS[name].format(low=low, high=min(low + step - 1, rows))
        source = f"SELECT {values} FROM ({numbers}) AS numbers{order}"
        statements.append(f"INSERT INTO {TABLE} ({names}) {source}")
    execute(database.url, TABLE, statements)


def settle(database: Database) -> None:
    execute(database.url, TABLE, SETTLE[database.name])
    flush(database, TABLE)


def check(database: Database, column: str, pending: str) -> None:
    """Rows that were pending have their value, and no other one was touched."""
    differs = DIFFERS[database.name].format(column=column, joined=JOINED[database.name])
    other = f"{column} IS NULL OR {column} <> '{DONE}'"
    is_wrong = f"CASE WHEN {pending} THEN {differs} ELSE {other} END"
    query = sa.text(f"SELECT COUNT(*) FROM {TABLE} WHERE {is_wrong}")
    with database.engine().connect() as connection:
        wrong = connection.execute(query).scalar_one()
    if wrong:
        raise WrongRows(f"{database.name}, {column}: {wrong:,} rows are wrong")


# -- the project -----------------------------------------------------------------------------

BACKFILL = '''\
from backfill import Backfill


class Fill(Backfill):
    """Give everybody a full name."""

    name = "{column}"
    revision = "a1"
    table = "{table}"
    where = "{column} IS NULL"
'''
LEVELS = {
    "set": '    values = {{"{column}": "{joined}"}}\n',
    "python": """\
    reads = ["first", "last"]
    writes = ["{column}"]

    def transform(self, row):
        return {{"{column}": f"{{row.first}} {{row.last}}"}}
""",
}


def project(folder: Path, database: Database, ways: Mapping[str, str]) -> AlembicProject:
    """An Alembic project with a backfill for each column, in the way that stands beside it."""
    made = AlembicProject.create(folder, database.url)
    made.revision("a1")
    made.alembic("upgrade", "head")
    for column, way in ways.items():
        names = {"column": column, "table": TABLE, "joined": JOINED[database.name]}
        text = (BACKFILL + LEVELS[way]).format(**names)
        made.write(f"migrations/backfills/{column}.py", text)
    return made


def run(made: AlembicProject, column: str) -> tuple[list[str], Path]:
    return command("backfill", ("run", column, "--json")), made.directory


def measure(place: Place, words: Sequence[str], directory: Path, rows: int) -> Sample:
    before = place.cpu_seconds()
    watched = watch(words, directory)
    return Sample(
        rows=rows,
        seconds=watched.moment("finished") - watched.moment("started"),
        whole_seconds=watched.seconds,
        cpu_seconds=watched.cpu_seconds,
        server_cpu_seconds=place.cpu_seconds() - before,
    )


# -- keys ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keys:
    """A key, and how its rows are stored."""

    title: str
    columns: Mapping[str, Mapping[str, str]]
    """Their types, by database."""
    values: Mapping[str, str]
    """Of the i-th row, by database."""
    in_order: bool = False
    """Rows are inserted in the order of the key, which else is not that of their numbers."""


INTEGER, BIGINT = dict.fromkeys(DATABASES, "INT"), dict.fromkeys(DATABASES, "BIGINT")
UUID = {"postgresql": "UUID", "mariadb": "UUID", "sqlite": "CHAR(32)"}
RANDOM = {
    "postgresql": "CAST(md5(CAST(i AS TEXT)) AS UUID)",
    "mariadb": (
        "CONCAT(LEFT(MD5(i), 8), '-', MID(MD5(i), 9, 4), '-4', MID(MD5(i), 14, 3),"
        " '-a', MID(MD5(i), 18, 3), '-', RIGHT(MD5(i), 12))"
    ),
    "sqlite": "lower(hex(randomblob(16)))",
}
DENSE = Keys("numbers without gaps", {"id": BIGINT}, dict.fromkeys(DATABASES, "i"))
KEYS = {
    "dense": DENSE,
    "far_apart": Keys(
        "numbers, one in 229",
        {"id": BIGINT},
        dict.fromkeys(DATABASES, "i * 229 + i * 37 % 100"),
    ),
    "uuid": Keys("random UUIDs", {"id": UUID}, RANDOM),
    "uuid_in_order": Keys("random UUIDs, stored in order", {"id": UUID}, RANDOM, in_order=True),
    "tenant": Keys(
        "(tenant, id), one has 95 %",
        {"tenant": INTEGER, "id": BIGINT},
        dict.fromkeys(DATABASES, "CASE WHEN i % 20 = 0 THEN i % 997 ELSE 500 END, i"),
    ),
}
ALWAYS_IN_ORDER = ("mariadb",)
"""InnoDB keeps the rows themselves in the primary key's index."""


def key_spaces(place: Place, database: str, rows: int, turns: int) -> Iterator[Contest]:
    known = [
        name for name, keys in KEYS.items() if not (keys.in_order and database in ALWAYS_IN_ORDER)
    ]
    for way, title in WAYS.items():
        lines = [
            Line(name, KEYS[name].title, True, Comparison("dense", name, GOAL_KEYS))
            if name != "dense"
            else Line(name, KEYS[name].title, True, None)
            for name in known
        ]
        contest = new_contest(database, f"backfill, {title}: all rows are pending", lines)
        for turn in range(turns):
            for name in random.Random(turn).sample(known, len(known)):
                add(contest, turn, name, fill_all(place, KEYS[name], way, rows))
        yield contest


def fill_all(place: Place, keys: Keys, way: str, rows: int) -> Sample:
    with place.database() as database, tempfile.TemporaryDirectory(prefix="backfill-") as folder:
        made = project(Path(folder) / "project", database, {COLUMN: way})
        fill(database, rows, keys, {COLUMN: "NULL"})
        settle(database)
        sample = measure(place, *run(made, COLUMN), rows)
        if wrong := wrong_rows(database, TABLE, COLUMN, rows):
            raise WrongRows(f"{keys.title}, {way}: {wrong:,} of {rows:,} rows are wrong")
    return sample


# -- little work -----------------------------------------------------------------------------

PENDING: Mapping[str, Callable[[int], str]] = {
    "evenly": lambda rows: f"{{key}} % {ONE_IN} = 0",
    "at the end": lambda rows: f"{{key}} > {rows - rows // ONE_IN}",
}
ENTRANTS = {
    "walk": "its reads alone",
    "loop": "the walk by hand",
    "set": "backfill, set-based",
    "python": "backfill, Python",
}


def little_work(place: Place, database: str, rows: int, turns: int) -> Iterator[Contest]:
    for where, pending in PENDING.items():
        lines = [
            Line(name, title, True, Comparison("loop", name, GOAL_WORK))
            if name in WAYS
            else Line(name, title, False, None)
            for name, title in ENTRANTS.items()
        ]
        contest = new_contest(database, f"1 % of the rows are pending, {where}", lines)
        for turn in range(turns):
            fill_little(place, contest, pending(rows), rows, turn)
        yield contest


def fill_little(place: Place, contest: Contest, pending: str, rows: int, turn: int) -> None:
    """Let all work on one table, each on a column of its own."""
    columns = {name: f"{name}_name" for name in ENTRANTS}
    value = f"CASE WHEN {pending.format(key='i')} THEN NULL ELSE '{DONE}' END"
    with place.database() as database, tempfile.TemporaryDirectory(prefix="backfill-") as folder:
        made = project(Path(folder) / "project", database, {columns[way]: way for way in WAYS})
        fill(database, rows, DENSE, dict.fromkeys(columns.values(), value))
        for name in random.Random(turn).sample(list(ENTRANTS), len(ENTRANTS)):
            settle(database)
            words, directory = run(made, columns[name])
            if name not in WAYS:
                arguments = ("--by-hand", name, database.url, columns[name])
                words, directory = command("tests.benchmarks.sparse", arguments), REPOSITORY
            add(contest, turn, name, measure(place, words, directory, rows))
            if name != "walk":
                check(database, columns[name], pending.format(key="id"))


# -- what is told ----------------------------------------------------------------------------


def new_contest(database: str, job: str, lines: list[Line]) -> Contest:
    return Contest(database, version(database), SETTINGS_SHOWN[database], job, lines)


def add(contest: Contest, turn: int, name: str, sample: Sample) -> None:
    contest.line(name).samples.append(sample)
    note(f"{contest.database}, {contest.job}, turn {turn + 1}: {name} {sample.seconds:.2f} s")


def report(contests: Sequence[Contest]) -> None:
    """Print a line an entrant: its time, and how many times that of another one it is."""
    for database in dict.fromkeys(contest.database for contest in contests):
        found = [contest for contest in contests if contest.database == database]
        sample, *others = found[0].lines[0].samples
        print(f"\n{DATABASES[database]} {found[0].version}, {sample.rows:,} rows, "
              f"{1 + len(others)} turns\n({found[0].settings})")  # fmt: skip
        for contest in found:
            report_one(contest)


def report_one(contest: Contest) -> None:
    print(f"\n{contest.job}")
    print(f"{'':31}{'seconds':>8}{'lowest':>8}{'highest':>8}{'µs a row':>9}  times")
    for line in contest.lines:
        seconds = Spread.of(sample.seconds for sample in line.samples)
        a_row = 1e6 * seconds.median / line.samples[0].rows
        figures = "".join(f"{figure:8.2f}" for figure in seconds)
        print(f"  {line.title:29}{figures}{a_row:9.2f}  {compared(contest, line)}".rstrip())


def compared(contest: Contest, line: Line) -> str:
    """How many times as long as the others took, and what was to be reached."""
    comparison = line.comparison
    if comparison is None:
        return ""
    rivals = [other for other in contest.lines if other.name in (comparison.faster, "walk")]
    told = ", ".join(f"{times(contest, line, other)} {other.title}" for other in rivals)
    return f"{told}; goal {comparison.goal}"


def times(contest: Contest, line: Line, other: Line) -> str:
    ratio = contest.ratio(Comparison(other.name, line.name, None))
    return f"{ratio.median:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})"


PARTS = {"work": little_work, "keys": key_spaces}


def main() -> None:
    if sys.argv[1:2] == ["--by-hand"]:
        by_hand(*sys.argv[2:])
        return
    options = parser().parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in order with what is noted on stderr
    results = Results(cores=os.cpu_count() or 1, load=round(os.getloadavg()[0], 2))
    print(f"{results.cores} cores, load {results.load:.1f} before we begin")
    for database in options.databases:
        try:
            version(database)
        except Unavailable as error:
            print(f"not installed: {database} ({error})")
            continue
        with place_for(database) as place:
            for part in options.parts:
                for contest in PARTS[part](place, database, options.rows, options.turns):
                    results.contests.append(contest)
                    if options.output:
                        text = json.dumps(as_document(results), indent=1)
                        options.output.write_text(text + "\n", encoding="utf-8")
    report(results.contests)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.sparse", description=(__doc__ or "").partition("\n")[0]
    )
    add = found.add_argument
    add("--databases", nargs="+", default=list(PLACES), choices=list(PLACES))
    add("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    add("--rows", type=int, default=1_000_000)
    add("--turns", type=int, default=5)
    add("--output", type=Path, metavar="FILE.json", help="save every sample")
    return found


if __name__ == "__main__":
    try:
        main()
    except (CommandFailed, WrongRows) as error:
        sys.exit(f"error: {error}")
