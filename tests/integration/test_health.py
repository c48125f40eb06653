"""What real servers tell of their health, and what a run makes of it."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing, contextmanager, suppress
from threading import Event as Flag
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from backfill import Backfill
from backfill.budget import Budget
from backfill.dialects import (
    SIGNAL_LIMITS,
    Limits,
    LogFill,
    dialect_for,
    mysql_health,
    postgresql_health,
)
from backfill.dialects.health import OthersAtWork
from backfill.dialects.postgresql_wal import (
    ArchiveQueue,
    NamedReplicas,
    Standbys,
    WalRate,
)
from backfill.runner import Runner
from backfill.runs import NewRun, Outcome
from backfill.settings import resolve
from backfill.speed.pacing import Pace
from backfill.speed.probing import probe_of
from backfill.speed.readings import Unavailable, Unreadable
from backfill.speed.throttles import Activity
from backfill.store import Store
from tests.databases import PostgreSQL, Standby
from tests.integration import support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill.dialects import Dialect
    from backfill.reporters import Event
    from backfill.speed.readings import Reading, Signal
    from tests.databases import Database, Servers

PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.12
OURS = Limits(lock_timeout=1, statement_timeout=20, idle_timeout=20, label="backfill: count_up")


class CountUp(Backfill):
    """Add one to every row."""

    table = "things"
    revision = "a1"
    values = {"n": "n + 1"}  # noqa: RUF012


class Again(Backfill):
    """Give every row a number, as often as it is run."""

    table = "things"
    revision = "a1"
    where = "n >= 0"
    values = {"n": "n - id - 1"}  # noqa: RUF012


class Watch:
    """A dialect with the rights of the server's administrator, and a connection to read by."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url, poolclass=sa.NullPool)
        with self.engine.connect():
            self.dialect: Dialect = dialect_for(self.engine)
        self.stack = ExitStack()
        self.connection = self.stack.enter_context(self.dialect.open(SIGNAL_LIMITS))

    @contextmanager
    def reader(self, *, write: bool = False) -> Iterator[sa.Connection]:
        with self.dialect.transaction(self.connection, SIGNAL_LIMITS, write=write):
            yield self.connection

    def signal(self, name: str, **settings: Any) -> Signal:
        table = sa.Table("things", sa.MetaData())
        found = self.dialect.health(table, resolve(("the test", settings)))
        (one,) = (signal for signal in found if signal.name == name)
        return one

    def read(self, name: str, **settings: Any) -> Reading | None:
        return self.signal(name, **settings).read(self.reader)

    def execute(self, *statements: str) -> None:
        options = {"isolation_level": "AUTOCOMMIT", "no_parameters": True}
        with self.engine.connect().execution_options(**options) as connection:
            if connection.dialect.name == "postgresql":  # else its WAL comes some time later
                connection.exec_driver_sql("SET synchronous_commit = on")
            for statement in statements:
                connection.exec_driver_sql(statement)

    def make_things(self, rows: int) -> sa.Table:
        columns = sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer)
        given = [{"id": i, "n": 0} for i in range(1, rows + 1)]
        return support.make(self.engine, "things", *columns, rows=given)


@pytest.fixture
def watch(database: Database) -> Iterator[Watch]:
    made = Watch(database.admin_url)
    with made.stack:
        yield made


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds. InnoDB makes its views on locks anew when nobody asked for 0.1 s."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(_LOOK_SECONDS)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# -- every database ----------------------------------------------------------------------------


def test_all_that_is_watched_by_default_can_be_read(watch: Watch) -> None:
    table = watch.make_things(10)
    for signal in watch.dialect.health(table, resolve()):
        reading = signal.read(watch.reader)
        assert reading is None or not reading.stops


def test_limits_of_zero_switch_all_of_it_off(watch: Watch) -> None:
    names = [
        *("blocked_seconds", "replica_lag", "retained_wal", "archive_queue", "wal_rate"),
        *("active_sessions", "dead_rows", "snapshot_age", "history_length", "redo_fill"),
    ]
    off = dict.fromkeys([f"max_{name}" for name in names], 0) | {"min_free_disk": 0}
    off |= {"nice": 0, "target_seconds": 0.05}  # or else it is asked who else is there
    assert watch.dialect.health(sa.Table("things", sa.MetaData()), resolve(("x", off))) == []


def test_free_disk_is_told_where_the_data_are_here(watch: Watch) -> None:
    reading = watch.read("free disk", min_free_disk=1)
    assert reading is not None
    assert not reading.stops
    most = 2**62
    reading = watch.read("free disk", min_free_disk=most)
    assert reading is not None
    assert reading.stops


def test_probe_compares_work_with_rest(watch: Watch) -> None:
    table = watch.make_things(3)
    store, activity = Store(watch.dialect), Activity()
    store.ensure()
    target = support.bound(watch.engine, CountUp, watch.dialect)
    run = store.create(NewRun("count_up", 1, "a1", "f", {}, 3, None), [((), (3,))])
    how = resolve(("the test", {"max_added_latency": 5.0}))
    (probe,) = probe_of(target, store, run, how, activity)
    for _ in range(20):
        with activity.writing():
            busy = probe.read(watch.reader)
    assert busy is not None
    assert "too few probes while we rest" in busy.text
    for _ in range(20):
        both = probe.read(watch.reader)
    assert both is not None
    assert "added latency (p95)" in both.text
    assert "at most 5,000 ms" in both.text
    assert both.load < 1
    assert support.read(watch.engine, table, "n") == [0, 0, 0]
    now = store.current("count_up")
    assert now is not None
    assert now.updated_at > run.updated_at


def test_probe_may_be_a_query(watch: Watch) -> None:
    watch.make_things(3)
    target = support.bound(watch.engine, CountUp, watch.dialect)
    how = resolve(("the test", {"max_added_latency": 5.0, "probe_query": "SELECT n FROM things"}))
    (probe,) = probe_of(target, None, None, how, Activity())  # type: ignore[arg-type]
    assert probe.read(watch.reader) is not None
    watch.execute("DROP TABLE things")
    with pytest.raises(sa.exc.DBAPIError):
        probe.read(watch.reader)


# -- others at work ------------------------------------------------------------------------------


def are_seen(watch: Watch) -> bool:
    signal = watch.signal("others at work")
    assert isinstance(signal, OthersAtWork)
    return signal._are_seen(watch.reader)


@pytest.mark.requires("server")
def test_others_are_seen_while_they_work_and_a_second_longer(watch: Watch) -> None:
    until(lambda: not are_seen(watch))  # those who made the database
    with watch.engine.connect() as other:
        other.exec_driver_sql("SELECT 1")
        other.rollback()
        assert are_seen(watch)
        until(lambda: not are_seen(watch))
        other.exec_driver_sql("SELECT 1")
        assert are_seen(watch)


@pytest.mark.requires("server")
def test_no_backfill_is_somebody_else(watch: Watch) -> None:
    """Sessions as another machine would have them, which this process knows nothing of."""
    elsewhere = dialect_for(sa.create_engine(watch.engine.url, poolclass=sa.NullPool))
    with ExitStack() as stack:
        sessions = [stack.enter_context(elsewhere.open(OURS)) for _ in range(3)]
        for session in sessions:
            for error in (None, ValueError):
                with suppress(ValueError), elsewhere.transaction(session, OURS):
                    session.exec_driver_sql("SELECT 1")
                    if error:
                        raise error
        until(lambda: not are_seen(watch))
        for session in sessions:  # one is at work, others rest since a moment ago
            with elsewhere.transaction(session, OURS):
                session.exec_driver_sql("SELECT 1")
                assert not are_seen(watch)
        assert not are_seen(watch)


@pytest.mark.requires("server")
def test_a_session_of_ours_is_nobody_else_while_it_is_made(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread looks when it is connected, and nothing has been said on it."""
    monkeypatch.setattr(mysql_health, "_UNMARKED_SECONDS", (0.25, 0.25))  # on a busy machine
    until(lambda: not are_seen(watch))
    engine = sa.create_engine(watch.engine.url, poolclass=sa.NullPool)
    opening = dialect_for(engine)
    opening.open(OURS).close()
    has_looked, seen = Flag(), list[bool]()
    looking = Thread(target=lambda: seen.append(are_seen(watch)))

    def look(driver: Any, _record: object) -> None:
        with driver.cursor() as cursor:
            cursor.execute("SELECT 1")
        driver.rollback()
        looking.start()
        assert has_looked.wait(PATIENCE_SECONDS)

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "EXISTS" in statement:
            has_looked.set()

    until(lambda: not are_seen(watch))
    sa.event.listen(watch.engine, "after_cursor_execute", note)
    sa.event.listen(engine, "connect", look)
    with opening.open(OURS):
        looking.join()
    assert seen == [False]


@pytest.mark.requires("server")
def test_a_run_rests_in_company_and_says_so(watch: Watch) -> None:
    table = watch.make_things(400)
    stop = Flag()

    def application() -> None:
        with watch.engine.connect() as connection:
            while not stop.wait(0.1):
                connection.exec_driver_sql("SELECT 1")
                connection.rollback()

    class Stopping(support.Recorder):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if event.what == "throttled":
                budget.ask_to_stop("seen enough")

    budget, recorder = Budget(seconds=PATIENCE_SECONDS), Stopping()
    target = support.bound(watch.engine, CountUp, watch.dialect)
    how = resolve(("the test", {"chunk_size": 1, "rows_per_second": 100}))
    working = Thread(target=application)
    working.start()
    try:
        Runner(target, Store(watch.dialect), how, budget, recorder).run()
    finally:
        stop.set()
        working.join()
    (text,) = [event.text for event in recorder.events if event.what == "throttled"]
    nice = watch.dialect.company_nice
    assert text == f"others are at work: rests {nice:g} s for each second of work"
    assert support.status(watch.engine, CountUp)["throttled"] in (text, None)
    assert 0 < sum(support.read(watch.engine, table, "n")) < 400


# -- blocked by us -----------------------------------------------------------------------------


@pytest.mark.requires("row_locks")
def test_a_session_that_waits_for_us_is_seen(watch: Watch) -> None:
    table = watch.make_things(3)
    signal = watch.signal("sessions blocked by us", max_blocked_seconds=0.05)
    change = sa.update(table).where(table.c.id == 2).values(n=7)

    def application() -> None:
        with watch.engine.begin() as connection:
            connection.execute(change)

    def blocked() -> Reading:
        reading = signal.read(watch.reader)
        assert reading is not None
        return reading

    waiting = Thread(target=application)
    with watch.dialect.open(OURS) as ours:
        assert blocked().value == 0
        with watch.dialect.transaction(ours, OURS):
            ours.execute(change)
            waiting.start()
            until(lambda: blocked().stops)
            assert blocked().text.startswith("1 session blocked by us for")
        waiting.join()
        until(lambda: blocked().value == 0)


@pytest.mark.requires("standbys")
def test_where_no_wait_has_a_beginning_our_transaction_has_one(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before PostgreSQL 14, whose lock view has no such column."""
    monkeypatch.setattr(postgresql_health, "_BLOCKED_SINCE", postgresql_health._BLOCKED)
    test_a_session_that_waits_for_us_is_seen(watch)


@pytest.mark.requires("row_locks")
def test_who_waits_for_somebody_else_is_no_harm_of_ours(watch: Watch) -> None:
    table = watch.make_things(3)
    signal = watch.signal("sessions blocked by us")
    change = sa.update(table).where(table.c.id == 2).values(n=7)
    begun: list[float] = []

    def ours() -> None:
        with (
            watch.dialect.open(OURS) as connection,
            pytest.raises(sa.exc.DBAPIError),
            watch.dialect.transaction(connection, OURS),
        ):
            begun.append(time.monotonic())
            connection.execute(change)

    with watch.engine.begin() as application:
        application.execute(change)
        waiting = Thread(target=ours)
        waiting.start()
        until(lambda: bool(begun))
        while waiting.is_alive():
            reading = signal.read(watch.reader)
            assert reading is not None
            assert reading.value == 0
            waiting.join(_LOOK_SECONDS)


# -- privileges --------------------------------------------------------------------------------


@pytest.mark.requires("server")
def test_missing_privileges_are_said_once_with_the_grant(
    database: Database, engine: sa.Engine, watch: Watch
) -> None:
    columns = sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer)
    support.make(engine, "things", *columns, rows=[{"id": i, "n": 0} for i in range(1, 10)])
    (said,) = support.complete(engine, CountUp).texts("unwatched")
    what, _, grant = said.partition("; to have it watched: ")
    assert what.startswith("not watched, since it cannot be read here: ")
    assert grant.startswith("GRANT ")
    watch.execute(grant)
    try:
        assert support.complete(engine, CountUp).texts("unwatched") == []
    finally:
        watch.execute(grant.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))


# -- vacuum and purge --------------------------------------------------------------------------


@pytest.mark.requires("dead_rows")
def test_dead_rows_are_told_by_the_threshold_of_the_table(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_health, "_FEWEST_DEAD", 1.0)
    watch.make_things(500)
    watch.execute(
        "ALTER TABLE things SET (autovacuum_vacuum_threshold = 50,"
        " autovacuum_vacuum_scale_factor = 0)",
        "UPDATE things SET n = 1",
    )

    def stops() -> bool:
        reading = watch.read("dead rows", max_dead_rows=10)
        return reading is not None and reading.stops

    until(stops)
    monkeypatch.undo()  # five hundred dead rows are nothing, whatever the threshold
    reading = watch.read("dead rows", max_dead_rows=10)
    assert reading is not None
    assert 0 < reading.value < 0.01
    watch.execute("ALTER TABLE things SET (autovacuum_enabled = false)")
    assert watch.read("dead rows", max_dead_rows=10) is None


@pytest.mark.requires("dead_rows")
def test_vacuum_on_the_table_holds(watch: Watch) -> None:
    watch.make_things(3)
    with watch.engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE things IN SHARE UPDATE EXCLUSIVE MODE")
        reading = watch.read("VACUUM")
        assert reading is not None
        assert (reading.holds, reading.stops) == (True, False)
    assert watch.read("VACUUM") is None


@pytest.mark.requires("dead_rows")
def test_vacuum_of_a_partition_counts(watch: Watch) -> None:
    watch.execute(
        "CREATE TABLE things (id int PRIMARY KEY, n int) PARTITION BY RANGE (id)",
        "CREATE TABLE things_1 PARTITION OF things FOR VALUES FROM (1) TO (10)",
    )
    with watch.engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE things_1 IN SHARE UPDATE EXCLUSIVE MODE")
        assert watch.read("VACUUM") is not None
    assert watch.read("VACUUM") is None


@pytest.mark.requires("dead_rows")
def test_an_old_snapshot_is_told_with_its_session(watch: Watch) -> None:
    engine = watch.engine.execution_options(isolation_level="REPEATABLE READ")
    with engine.begin() as connection:
        session = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()

        def stops() -> bool:
            reading = watch.read("oldest snapshot", max_snapshot_age=0.02)
            return reading is not None and reading.stops and f"({session})" in reading.text

        until(stops)
    until(lambda: watch.read("oldest snapshot", max_snapshot_age=0.02) is None)


@pytest.mark.requires("history_list")
def test_history_grows_behind_an_old_snapshot(watch: Watch) -> None:
    watch.make_things(3)

    def length() -> float:
        reading = watch.read("InnoDB's history list")
        assert reading is not None
        return reading.value

    until(lambda: length() < 100)  # what earlier tests have left
    with watch.engine.connect() as old:
        old.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        watch.execute(*[f"UPDATE things SET n = {number}" for number in range(1, 250)])
        until(lambda: length() >= 200)


@pytest.mark.requires("history_list")
def test_redo_log_fills_with_what_is_written(watch: Watch) -> None:
    def fill() -> LogFill:
        with watch.reader() as connection:
            found = watch.dialect.log_fill(connection)
        assert found is not None
        return found

    watch.make_things(100)
    before = fill()
    watch.execute("UPDATE things SET n = 7")
    after = fill()
    assert 0 < after.written - before.written < 1e6
    assert 0 <= after.age < after.most


@pytest.mark.requires("history_list")
@pytest.mark.parametrize("sees_everybody", [True, False])
def test_a_full_redo_log_is_no_matter_where_surely_nobody_else_is(
    database: Database, sees_everybody: bool
) -> None:
    watch = Watch(database.admin_url if sees_everybody else database.url)
    with watch.stack:
        signals = watch.dialect.health(sa.Table("things", sa.MetaData()), resolve())
        others, redo = (
            next(signal for signal in signals if signal.name == name)
            for name in ("others at work", "redo log")
        )
        assert redo.read(watch.reader) is not None  # nobody has looked who is there

        def are_missing() -> bool:
            reading = others.read(watch.reader)
            return reading is not None and not reading.has_company

        until(are_missing)
        assert (redo.read(watch.reader) is None) is sees_everybody


@pytest.mark.requires("history_list")
def test_a_given_pace_leaves_the_redo_log_to_others_all_the_same(watch: Watch) -> None:
    def watched(**more: Any) -> set[str]:
        how = resolve(("the test", {"nice": 0, "target_seconds": 0.05, **more}))
        return {signal.name for signal in watch.dialect.health(sa.Table("t", sa.MetaData()), how)}

    assert {"others at work", "redo log"} <= watched()
    assert not {"others at work", "redo log"} & watched(max_redo_fill=0)


@pytest.mark.requires("history_list")
def test_nobody_is_surely_missing_after_a_look_that_failed(watch: Watch) -> None:
    answers = iter([False])
    others = OthersAtWork(lambda reader: next(answers))
    others.read(watch.reader)
    assert others.were_missing
    with pytest.raises(StopIteration):
        others.read(watch.reader)
    assert not others.were_missing


@pytest.mark.requires("history_list")
def test_chunks_are_small_where_the_log_is_nearly_full_and_others_are_at_work(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows as fit, by what a row is thought to take at first: 1,000 bytes."""
    nearly_full = LogFill(age=0.72e6, most=1e6, written=1e9)
    monkeypatch.setattr(type(watch.dialect), "log_fill", lambda self, connection: nearly_full)
    watch.make_things(2_000)
    first = {}
    for has_company in (False, True):
        monkeypatch.setattr(Pace, "has_company", has_company)
        watch.execute("UPDATE things SET n = 0")
        ran = support.complete(watch.engine, Again, nice=0, target_seconds=1)
        first[has_company] = ran.numbers("chunk", "changed")[0]
    assert first == {False: 500, True: 250}


@pytest.mark.requires("history_list")
def test_a_replica_that_does_not_replicate_stops(database: Database, watch: Watch) -> None:
    signal = watch.signal("replica lag", replicas=[database.admin_url])

    def told() -> str:
        reading = signal.read(watch.reader)
        assert reading is not None
        assert reading.stops
        return reading.text

    with closing(signal):
        assert told().endswith("is no replica")
        watch.execute("CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = 1")
        try:
            assert told().endswith("does not replicate")
        finally:
            watch.execute("RESET REPLICA ALL")


@pytest.mark.requires("history_list")
def test_who_may_not_ask_a_replica_is_told_the_grant(database: Database, watch: Watch) -> None:
    signal = watch.signal("replica lag", replicas=[database.url])
    with closing(signal):
        with pytest.raises(Unavailable):
            signal.read(watch.reader)
        grant = "on the replica, GRANT REPLICA MONITOR ON *.* TO 'app'@'%'"
        assert signal.remedy(watch.reader) == grant


@pytest.mark.requires("server")
def test_a_replica_that_cannot_be_reached_is_told_without_its_password(
    database: Database, watch: Watch
) -> None:
    gone = sa.make_url(database.url).set(port=1).render_as_string(hide_password=False)
    signal = watch.signal("replica lag", replicas=[gone])
    with closing(signal), pytest.raises(Unreadable) as told:
        signal.read(watch.reader)
    assert str(told.value).startswith("replica 127.0.0.1:1: the database accepts no connection")


# -- the write-ahead log -------------------------------------------------------------------------


@pytest.mark.requires("standbys")
def test_wal_rate(watch: Watch) -> None:
    watch.make_things(3)
    clock = Clock()
    signal = WalRate(1000, clock)
    assert signal.read(watch.reader) is None
    watch.execute("INSERT INTO things SELECT g, 0 FROM generate_series(10, 10000) AS g")
    clock.now = 10.0
    reading = signal.read(watch.reader)
    assert reading is not None
    assert reading.stops
    assert reading.value > 20_000


@pytest.mark.requires("standbys")
def test_a_slot_that_nobody_reads_retains_wal(watch: Watch) -> None:
    watch.make_things(3)
    watch.execute("SELECT pg_create_physical_replication_slot('left_behind', true)")
    try:
        watch.execute("INSERT INTO things SELECT g, 0 FROM generate_series(10, 10000) AS g")
        reading = watch.read("WAL retained for a slot", max_retained_wal=10_000)
        assert reading is not None
        assert reading.stops
        assert reading.text.startswith("WAL retained for slot left_behind ")
    finally:
        watch.execute("SELECT pg_drop_replication_slot('left_behind')")


@pytest.mark.requires("standbys")
def test_a_slot_that_was_given_up_retains_nothing(watch: Watch) -> None:
    """PostgreSQL leaves it there, from version 18 on with its position."""
    create = "SELECT pg_create_physical_replication_slot('given_up', true)"
    watch.make_things(3)
    watch.execute(create, "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    try:
        watch.execute("SELECT pg_reload_conf()")
        assert watch.read("WAL retained for a slot", max_retained_wal=1) is not None
        for _ in range(3):
            watch.execute(
                "SELECT pg_logical_emit_message(false, 'much', repeat('x', 100000))",
                "SELECT pg_switch_wal()",
            )
        watch.execute("CHECKPOINT")
        lost = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'given_up'"
        with watch.engine.connect() as connection:
            assert connection.exec_driver_sql(lost).scalar_one() == "lost"
        assert watch.read("WAL retained for a slot", max_retained_wal=1) is None
    finally:
        watch.execute(
            "ALTER SYSTEM RESET max_slot_wal_keep_size",
            "SELECT pg_reload_conf()",
            "SELECT pg_drop_replication_slot('given_up')",
        )


@pytest.fixture
def standby(database: Database, servers: Servers) -> Iterator[Standby]:
    primary = servers.server(database.name)
    assert isinstance(primary, PostgreSQL)
    made = Standby(primary)
    try:
        yield made
    finally:
        made.stop()


def pause(standby: Standby) -> None:
    standby.execute("SELECT pg_wal_replay_pause()")

    def is_paused() -> bool:
        with standby.admin.connect() as connection:
            state = connection.exec_driver_sql("SELECT pg_get_wal_replay_pause_state()")
            return bool(state.scalar_one() == "paused")

    until(is_paused)


class Following:
    """Signals on a standby, by a clock that the test sets."""

    def __init__(self, watch: Watch, standby: Standby) -> None:
        self.watch = watch
        self.clock = Clock()
        address = f"127.0.0.1:{standby.port}"
        how = resolve(("the test", {"max_replica_lag": 10, "replicas": [address]}))
        (named,) = (
            one
            for one in watch.dialect.health(sa.Table("things", sa.MetaData()), how)
            if isinstance(one, NamedReplicas)
        )
        named._clock = self.clock
        self.signals: list[Signal] = [named, Standbys(how, self.clock)]

    def close(self) -> None:
        for signal in self.signals:
            signal.close()

    def stops(self, now: float) -> set[bool]:
        self.clock.now = now
        readings = [signal.read(self.watch.reader) for signal in self.signals]
        assert all(reading is not None for reading in readings)
        return {reading.stops for reading in readings if reading is not None}


def follow_from_level(watch: Watch, standby: Standby) -> Following:
    """Signals that have found the standby level once: autovacuum may write at any moment."""
    while True:
        until(lambda: level(standby) is not None)
        before, following = level(standby), Following(watch, standby)
        assert following.stops(0.0) == {False}
        if before is not None and before == level(standby):
            return following
        following.close()


def level(standby: Standby) -> str | None:
    """How far all is written and replayed, as its primary knows; None: it has more to replay."""
    told = """
        SELECT CAST(max(replay_lsn) AS text) FROM pg_stat_replication
        HAVING bool_and(replay_lsn >= pg_current_wal_lsn())"""
    with standby.primary.admin.connect() as connection:
        found: str | None = connection.exec_driver_sql(told).scalar()
        return found


@pytest.mark.requires("standbys")
def test_a_standby_that_lags_stops_the_run_until_it_has_caught_up(
    watch: Watch, standby: Standby
) -> None:
    table = watch.make_things(600)
    following = watch.stack.enter_context(closing(follow_from_level(watch, standby)))
    pause(standby)
    watch.execute("UPDATE things SET n = 0")
    assert following.stops(5.0) == {False}
    assert following.stops(30.0) == {True}

    recorder, ran = support.Recorder(), []
    how = resolve(("the test", {"rows_per_second": 300, "max_replica_lag": 0.5}))
    target = support.bound(watch.engine, CountUp, watch.dialect)

    def run() -> None:
        ran.append(Runner(target, Store(watch.dialect), how, Budget(), recorder).run())

    def waits() -> bool:
        return any("lag of replica" in e.text and "waits" in e.text for e in recorder.events)

    running = Thread(target=run)
    running.start()
    until(waits)
    assert support.status(watch.engine, CountUp)["throttled"].startswith("waits: lag of replica")
    changed = sum(support.read(watch.engine, table, "n"))
    assert changed < 600
    standby.execute("SELECT pg_wal_replay_resume()")
    running.join(PATIENCE_SECONDS)
    assert ran[0].outcome is Outcome.COMPLETE
    until(lambda: following.stops(31.0) == {False})


@pytest.mark.requires("standbys")
def test_wal_that_is_not_archived_is_counted(watch: Watch, standby: Standby) -> None:
    signal = ArchiveQueue(limit=3)
    assert signal.read(watch.reader) is None  # this server archives nothing
    standby.execute("SELECT pg_promote()")
    promoted = Watch(standby.admin_url().render_as_string(hide_password=False))

    def queue() -> float:
        reading = signal.read(promoted.reader)
        assert reading is not None
        assert reading.stops == (reading.value >= 3)
        return reading.value

    with promoted.stack:
        assert queue() == 0
        for number in range(4):
            promoted.execute(
                f"SELECT pg_create_restore_point('point {number}')", "SELECT pg_switch_wal()"
            )
        assert queue() >= 3
        promoted.execute("ALTER SYSTEM SET archive_command = 'true'", "SELECT pg_reload_conf()")
        until(lambda: queue() == 0)
