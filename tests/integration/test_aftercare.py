"""What a run leaves behind: dead rows and statistics, told and mended; and never a failed run."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from backfill import Backfill, aftercare
from backfill.budget import Budget
from backfill.dialects import dialect_for
from backfill.planner import make_plan
from backfill.runs import Outcome, Status
from backfill.settings import Settings
from backfill.speed import pacing
from backfill.store import Store
from tests.integration.support import bound, complete, complete_in_parallel, make, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.databases import Database
    from tests.integration.support import Ran

ROWS = 2_000
ROOMY = "fillfactor = 30"
PATIENCE = 60.0

Execute = Any


class FillM(Backfill):
    revision = "x"
    table = "things"
    where = "m IS NULL"
    values = {"m": "id"}  # noqa: RUF012


class FillMAgain(FillM):
    name = "fill_m_again"
    where = "m > 0"
    values = {"m": "-id"}  # noqa: RUF012


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftercare, "_WORTH_ROWS", 100)
    monkeypatch.setattr(aftercare, "_COUNTED_SECONDS", PATIENCE)


@pytest.fixture
def execute(engine: sa.Engine) -> Callable[..., list[Any]]:
    """Sends statements, each a transaction of its own; the rows of the last one."""

    def send(*statements: str) -> list[Any]:
        options = {"isolation_level": "AUTOCOMMIT", "no_parameters": True}
        with engine.connect().execution_options(**options) as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []

    return send


def make_things(execute: Execute, options: str = "fillfactor = 100", rows: int = ROWS) -> None:
    """A table that autovacuum leaves alone, so that nothing happens to it but what a test does."""
    execute(
        "CREATE TABLE things (id int PRIMARY KEY, n int, m int)"
        f" WITH (autovacuum_enabled = off, {options})",
        f"INSERT INTO things SELECT i, i, NULL FROM generate_series(1, {rows}) AS i",
    )


def indexed() -> list[sa.schema.SchemaItem]:
    m = sa.Column("m", sa.Integer)
    return [sa.Column("id", sa.Integer, primary_key=True), m, sa.Index("ix_m", m)]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def counted(execute: Execute, what: str, table: str = "things") -> int:
    """One of PostgreSQL's counts of a table."""
    ((number,),) = execute(f"SELECT pg_stat_get_{what}('{table}'::regclass)")
    return int(number)


def told(ran: Ran) -> str:
    return "\n".join(ran.texts("aftercare"))


def updates(ran: Ran) -> tuple[int, int]:
    """Those of the run, as it tells itself, and how many of them were HOT."""
    (found,) = (event.numbers for event in ran.events if "hot" in event.numbers)
    return found["updates"], found["hot"]


# -- what is told ------------------------------------------------------------------------------


@pytest.mark.requires("dead_rows")
@pytest.mark.parametrize(("index", "hot"), [("", ROWS), ("CREATE INDEX ON things (m)", 0)])
def test_run_tells_how_many_updates_were_hot(
    engine: sa.Engine, execute: Execute, index: str, hot: int
) -> None:
    make_things(execute, ROOMY)
    if index:
        execute(index)
    ran = complete(engine, FillM)
    assert updates(ran) == (ROWS, hot)
    assert f"{hot // ROWS:.0%} of 2,000 updates were HOT; about" in told(ran)
    assert "dead rows, which nobody removes: autovacuum is off" in told(ran)
    execute("ALTER TABLE things SET (autovacuum_enabled = on, autovacuum_vacuum_threshold = 1)")
    assert "which autovacuum" in told(complete(engine, FillMAgain))


def test_small_run_is_not_worth_a_word(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftercare, "_WORTH_ROWS", 10_000)
    make(engine, "things", *indexed(), rows=[{"id": i} for i in range(1, ROWS)])
    assert told(complete(engine, FillM)) == ""


# -- ANALYZE -----------------------------------------------------------------------------------

DISTINCT = {
    "postgresql": "SELECT n_distinct FROM pg_stats WHERE tablename = 'things' AND attname = 'm'",
    "sqlite": "SELECT substr(stat, instr(stat, ' ')) FROM sqlite_stat1 WHERE idx = 'ix_m'",
}


@pytest.mark.requires("stale_statistics")
def test_statistics_are_mended(engine: sa.Engine, execute: Execute) -> None:
    make(engine, "things", *indexed(), rows=[{"id": i} for i in range(1, ROWS)])
    execute("ANALYZE")
    before = execute(DISTINCT[engine.dialect.name])
    ran = complete(engine, FillM)
    assert "ANALYZE of things" in ran.texts("aftercare")
    after = execute(DISTINCT[engine.dialect.name])
    assert before != after
    execute("ANALYZE")
    assert execute(DISTINCT[engine.dialect.name]) == after


@pytest.mark.requires("stale_statistics")
def test_statistics_are_left_to_whoever_wants_to(engine: sa.Engine, execute: Execute) -> None:
    make(engine, "things", *indexed(), rows=[{"id": i} for i in range(1, ROWS)])
    execute("ANALYZE")
    before = execute(DISTINCT[engine.dialect.name])
    assert "ANALYZE" not in told(complete(engine, FillM, analyze=False))
    assert execute(DISTINCT[engine.dialect.name]) == before


@pytest.mark.requires("untyped_columns")
def test_statistics_that_nobody_made_are_not_begun(engine: sa.Engine, execute: Execute) -> None:
    make(engine, "things", *indexed(), rows=[{"id": i} for i in range(1, ROWS)])
    assert told(complete(engine, FillM)) == ""
    assert execute("SELECT name FROM sqlite_master WHERE name LIKE 'sqlite_stat%'") == []


@pytest.mark.requires("plain_engines")
def test_statistics_that_are_not_recalculated_are_told(engine: sa.Engine, execute: Execute) -> None:
    columns = "(id int PRIMARY KEY, m int, KEY m (m))"
    rows = ", ".join(f"({i}, NULL)" for i in range(1, ROWS))
    execute(
        f"CREATE TABLE things {columns} STATS_AUTO_RECALC=0", f"INSERT INTO things VALUES {rows}"
    )
    assert "ANALYZE TABLE things" in told(complete(engine, FillM))
    execute("ALTER TABLE things STATS_AUTO_RECALC=1")
    assert told(complete(engine, FillMAgain)) == ""


@contextmanager
def locked(engine: sa.Engine, table: str) -> Iterator[None]:
    """The lock of a VACUUM, an ANALYZE or a CREATE INDEX CONCURRENTLY of somebody else."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
        yield


@pytest.mark.requires("dead_rows")
def test_somebody_else_looks_after_the_table(engine: sa.Engine, execute: Execute) -> None:
    """We neither wait for their lock, nor fail."""
    make_things(execute)
    with locked(engine, "things"):
        ran = complete(engine, FillM, chunk_size=100, vacuum_every=1_000)
    assert "passed over (locked): things" in told(ran)
    assert "not looked after: locked by the application" in told(ran)
    assert counted(execute, "vacuum_count") == counted(execute, "analyze_count") == 0


@pytest.mark.requires("dead_rows")
def test_statistics_keep_nobody_off_the_table(engine: sa.Engine, execute: Execute) -> None:
    """ANALYZE holds a lock that DDL waits for, and behind that everybody."""
    make_things(execute, rows=20_000)
    name = engine.url.database
    execute(
        f"ALTER DATABASE {name} SET vacuum_cost_limit = 1",
        f"ALTER DATABASE {name} SET vacuum_cost_delay = '20ms'",  # for each of 180 pages
    )
    waited = list[float]()

    def alter() -> None:
        wait_until(lambda: execute(f"{ANALYZES} AND datname = '{name}'") == [(1,)])
        began = time.monotonic()
        execute("ALTER TABLE things ADD COLUMN more integer")
        waited.append(time.monotonic() - began)

    thread = Thread(target=alter)
    thread.start()
    ran = complete(engine, FillM, chunk_size=5_000)
    thread.join()
    assert "ANALYZE of things was broken off: others waited for it" in told(ran)
    assert len(waited) == 1 and waited[0] < 2
    assert counted(execute, "analyze_count") == 0


ANALYZES = "SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE 'ANALYZE%'"


# -- VACUUM ------------------------------------------------------------------------------------


def turns(execute: Execute) -> list[int]:
    """The rows that the run had changed at each VACUUM, by its audit."""
    rows = execute("SELECT details FROM backfill_event WHERE what = 'vacuum' ORDER BY id")
    return [int(details) for (details,) in rows]


@pytest.mark.requires("dead_rows")
def test_vacuum_may_take_longer_than_a_chunk(engine: sa.Engine, execute: Execute) -> None:
    make_things(execute)
    limits = list[str]()

    def look(_: Any, cursor: Any, statement: str, *_more: Any) -> None:
        if statement.startswith("VACUUM"):
            with cursor.connection.cursor() as another:
                another.execute("SHOW statement_timeout")
                limits.append(another.fetchone()[0])

    sa.event.listen(sa.Engine, "before_cursor_execute", look)
    try:
        complete(engine, FillM, chunk_size=100, vacuum_every=1_500, statement_timeout=4.4)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", look)
    assert limits == ["0"]


@pytest.mark.requires("dead_rows")
def test_vacuum_comes_every_so_many_rows(engine: sa.Engine, execute: Execute) -> None:
    make_things(execute)
    ran = complete(engine, FillM, chunk_size=100, vacuum_every=600)
    assert turns(execute) == [600, 1_200, 1_800]
    assert counted(execute, "vacuum_count") == 3
    assert len([text for text in ran.texts("aftercare") if "VACUUM took" in text]) == 3
    assert counted(execute, "vacuum_count", "backfill_range") == 0, "our table alone"


@pytest.mark.requires("dead_rows")
def test_workers_share_the_turns(engine: sa.Engine, execute: Execute) -> None:
    make_things(execute)
    options = {"chunk_size": 20, "vacuum_every": 400}
    complete_in_parallel(engine, FillM, threads=3, ranges=6, **options)
    multiples = [changed // 400 for changed in turns(execute)]
    assert multiples == sorted(set(multiples)), "each of them once"
    assert multiples[-1] >= 4


@pytest.mark.requires("dead_rows")
def test_interrupted_run_goes_on_counting(engine: sa.Engine, execute: Execute) -> None:
    make_things(execute)
    options: dict[str, Any] = {"chunk_size": 100, "vacuum_every": 800}
    assert run(engine, FillM, budget=Budget(rows=700), **options).outcome is Outcome.STOPPED
    assert turns(execute) == []
    complete(engine, FillM, **options)
    assert turns(execute) == [800, 1_600]


def interrupt(engine: sa.Engine, budget: Budget) -> None:
    budget.ask_to_stop("the test")


def pause(engine: sa.Engine, budget: Budget) -> None:
    Store(dialect_for(engine)).move(FillM.name, Status.PAUSED)


@pytest.mark.requires("dead_rows")
@pytest.mark.parametrize("stop", [interrupt, pause])
def test_vacuum_is_broken_off_when_the_run_is_to_stop(
    engine: sa.Engine,
    execute: Execute,
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[sa.Engine, Budget], None],
) -> None:
    monkeypatch.setattr(pacing, "LOOK_SECONDS", 0.05)
    make_things(execute, rows=50_000)
    name = engine.url.database
    execute(f"ALTER DATABASE {name} SET vacuum_cost_limit = 1")  # 8 ms for each of 220 pages
    budget = Budget()
    say = aftercare.Vacuuming._say

    def stop_it(self: Any, text: str, **numbers: object) -> None:
        say(self, text, **numbers)
        if text == "VACUUM of things":
            stop(engine, budget)

    monkeypatch.setattr(aftercare.Vacuuming, "_say", stop_it)
    ran = run(engine, FillM, budget=budget, chunk_size=500, vacuum_every=500)
    assert ran.texts("aftercare") == ["VACUUM of things", "VACUUM was broken off"]
    assert ran.outcome is Outcome.STOPPED
    assert counted(execute, "vacuum_count") == 0


@pytest.mark.requires("dead_rows")
def test_partitions_that_are_not_touched_are_left_alone(
    engine: sa.Engine, execute: Execute
) -> None:
    off = "WITH (autovacuum_enabled = off)"
    execute(
        "CREATE TABLE things (id int PRIMARY KEY, m int) PARTITION BY RANGE (id)",
        f"CREATE TABLE old PARTITION OF things FOR VALUES FROM (0) TO (10000) {off}",
        f"CREATE TABLE new PARTITION OF things FOR VALUES FROM (10000) TO (20000) {off}",
        f"INSERT INTO things SELECT i, 0 FROM generate_series(1, {ROWS}) AS i",
        f"INSERT INTO things SELECT i + 10000, NULL FROM generate_series(0, {ROWS - 1}) AS i",
    )
    wait_until(lambda: counted(execute, "tuples_inserted", "new") >= ROWS)
    execute("ANALYZE things")
    ran = complete(engine, FillM, chunk_size=100)
    wait_until(lambda: counted(execute, "dead_tuples", "new") > 0)
    complete(engine, FillMAgain, chunk_size=300, vacuum_every=1_000)
    assert [counted(execute, "vacuum_count", name) for name in ("old", "new")] == [0, 1]
    assert [counted(execute, "analyze_count", name) for name in ("old", "new")] == [1, 3]
    assert counted(execute, "analyze_count") == 3, "autovacuum would never do it"
    assert updates(ran)[0] == ROWS


# -- rights ------------------------------------------------------------------------------------


@pytest.fixture
def guest(database: Database, execute: Execute) -> Iterator[sa.Engine]:
    """A user who may change rows, and owns nothing of it."""
    make_things(execute)
    name = f"guest_of_{sa.make_url(database.url).database}"
    admin = sa.create_engine(database.admin_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD 'guest'")
    execute(
        f"GRANT SELECT, UPDATE ON things TO {name}",
        f"CREATE SCHEMA {name}",
    )
    with admin.connect() as connection:
        connection.exec_driver_sql(f"ALTER SCHEMA {name} OWNER TO {name}")
    url = sa.make_url(database.url).set(username=name, password="guest")
    yield sa.create_engine(url, poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {name} CASCADE")
        connection.exec_driver_sql(f"DROP ROLE {name}")
    admin.dispose()


@pytest.mark.requires("dead_rows")
def test_missing_rights_are_told_once_with_what_grants_them(
    guest: sa.Engine, execute: Execute
) -> None:
    options = {"chunk_size": 100, "vacuum_every": 500}
    ran = complete(guest, FillM, **options)
    no_vacuum, _dead_rows, no_analyze = ran.texts("aftercare")
    assert no_vacuum.startswith("there will be no VACUUM: this user may neither")
    assert no_analyze.startswith("its statistics are wrong now, but this user may neither")
    assert counted(execute, "vacuum_count") == counted(execute, "analyze_count") == 0
    assert ran.outcome is Outcome.COMPLETE

    found = re.search(r"GRANT .*", no_vacuum)
    assert found is not None
    execute(found.group())
    ran = complete(guest, FillMAgain, **options)
    assert "no VACUUM" not in told(ran)
    assert counted(execute, "vacuum_count") == 3
    assert counted(execute, "analyze_count") == 1


# -- plan --------------------------------------------------------------------------------------


def warnings(engine: sa.Engine, word: str) -> list[str]:
    plan = make_plan(bound(engine, FillM), Settings(chunk_size=500))
    return [warning for warning in plan.warnings if word in warning]


@pytest.mark.requires("dead_rows")
@pytest.mark.parametrize("holds", ["(m)", "(n, m)", "((abs(m)))", "(n) INCLUDE (m)"])
def test_plan_says_how_to_make_an_index_after_the_backfill(
    engine: sa.Engine, execute: Execute, holds: str
) -> None:
    make_things(execute)
    execute(f'CREATE INDEX "Index of M" ON things {holds}')
    (warning,) = warnings(engine, "'m' is indexed by 'Index of M'")
    found = re.search(r": (DROP .*) before it, (CREATE .*) after it\.", warning)
    assert found is not None
    execute(found.group(1))
    assert warnings(engine, "is indexed by") == []
    execute(found.group(2))
    assert warnings(engine, "'m' is indexed by 'Index of M'") == [warning]
    complete(engine, FillM)
    assert warnings(engine, "is indexed by") == []


@pytest.mark.requires("dead_rows")
def test_plan_lets_an_index_be_that_has_to_stay(engine: sa.Engine, execute: Execute) -> None:
    make_things(execute)
    execute(
        "CREATE INDEX todo ON things (id) WHERE m IS NULL", "CREATE UNIQUE INDEX u ON things (m)"
    )
    (warning,) = warnings(engine, "is indexed by")
    assert "'u'" in warning
    assert "DROP" not in warning


@pytest.mark.requires("dead_rows")
def test_plan_recommends_room_where_rows_are_updated_often(
    engine: sa.Engine, execute: Execute
) -> None:
    make_things(execute)
    execute("ANALYZE things")
    assert warnings(engine, "HOT") == [], "nobody updates its rows"
    execute("UPDATE things SET n = n + 1")
    wait_until(lambda: counted(execute, "tuples_updated") >= ROWS)
    execute("VACUUM FULL things")  # its pages are full again
    (warning,) = warnings(engine, "HOT")
    found = re.search(r"ALTER TABLE .*", warning)
    assert found is not None
    execute(found.group())
    assert warnings(engine, "HOT") == [], "done"


@pytest.mark.requires("dead_rows")
@pytest.mark.parametrize("options", [ROOMY, "fillfactor = 100"])
def test_plan_recommends_nothing_where_it_would_not_help(
    engine: sa.Engine, execute: Execute, options: str
) -> None:
    """The updates are HOT already; or cannot be, because of an index."""
    make_things(execute, options)
    execute("ANALYZE things", "UPDATE things SET n = n + 1")
    wait_until(lambda: counted(execute, "tuples_updated") >= ROWS)
    execute("VACUUM FULL things")
    if options != ROOMY:
        execute("CREATE INDEX ON things (m)")
    assert warnings(engine, "HOT") == []
