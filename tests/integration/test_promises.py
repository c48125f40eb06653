"""Attacks on the promises that once succeeded. The moment of a race is fixed by a hook."""

# ruff: noqa: RUF012

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from datetime import time as clock_time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sqlalchemy as sa

from backfill import Backfill, budget, proof, proving, quarantine, runner, settings, survey, trail
from backfill.budget import Budget
from backfill.companion import Companion
from backfill.dialects import dialect_for
from backfill.dialects.readers import Reader, Readers
from backfill.errors import DeclarationError
from backfill.isolation import Isolation
from backfill.runs import Outcome, Status
from backfill.speed.pacing import Pace
from backfill.store import Store
from tests.integration.support import LIMITS, bound, complete, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backfill.statements import ChunkStatements
    from tests.databases import Database, Server, Servers

CANARY = 4711_0815

metadata = sa.MetaData()
things = sa.Table(
    "things",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer),
    sa.Column("m", sa.Integer),
    sa.CheckConstraint("n < 100", name="small"),
)


class CountUp(Backfill):
    revision = "x"
    table = "things"
    chunk_size = 10
    values = {"n": "n + 1"}


class FillM(Backfill):
    revision = "x"
    table = "things"
    where = "m IS NULL"
    values = {"m": "1"}


@pytest.fixture(autouse=True)
def table(engine: sa.Engine) -> None:
    metadata.create_all(engine)


def put(engine: sa.Engine, *rows: tuple[int, int | None, int | None]) -> None:
    with engine.begin() as connection:
        found = [dict(zip(("id", "n", "m"), row, strict=True)) for row in rows]
        connection.execute(sa.insert(things), found)


def change(engine: sa.Engine, key: int, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(sa.update(things).where(things.c.id == key).values(**values))


def column(engine: sa.Engine, name: str) -> dict[int, Any]:
    with engine.connect() as connection:
        rows = connection.execute(sa.select(things.c.id, things.c[name]))
        return {row[0]: row[1] for row in rows}


def before_first_call(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, hook: Callable[[], object]
) -> None:
    original = getattr(owner, name)
    left = [hook]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if left:
            left.pop()()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def test_rows_inserted_while_a_bad_one_is_isolated_push_no_row_out(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine, *((i * 10, 99 if i == 3 else 0, 0) for i in range(1, 11)))
    inserted = [(i, 50, 0) for i in (11, 12, 13)]
    before_first_call(monkeypatch, Isolation, "isolate", lambda: put(engine, *inserted))

    assert run(engine, CountUp).outcome is Outcome.QUARANTINED

    existing = {key: n for key, n in column(engine, "n").items() if key % 10 == 0}
    assert existing == {i * 10: 99 if i == 3 else 1 for i in range(1, 11)}


class ApplyOne(Backfill):
    """Says nothing of how many rows it changes."""

    table = "things"
    where = "m IS NULL"
    chunk_size = 10

    def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> None:
        connection.execute(chunk.update().values(n=chunk.table.c.n + 1, m=1))


def test_rows_inserted_while_apply_is_isolated_are_counted(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the model (seed 341644): a part is what its keys hold when it is written."""
    put(engine, *((i * 10, 99 if i == 9 else 0, None) for i in range(1, 11)))
    inserted = [(i, 50, None) for i in (11, 12, 13)]
    before_first_call(monkeypatch, Isolation, "isolate", lambda: put(engine, *inserted))

    ran = run(engine, ApplyOne)
    assert ran.outcome is Outcome.QUARANTINED
    changed = [key for key, m in column(engine, "m").items() if m == 1]
    assert len(changed) == 12
    assert sum(ran.numbers("chunk", "changed")) == 12


def test_runner_of_a_cancelled_run_does_not_end_the_next_one(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine, *((i, 0, None) for i in range(1, 41)))
    store = Store(dialect_for(engine))

    def cancel_and_begin_anew() -> None:
        store.move("fill_m", Status.CANCELLED)
        with engine.begin() as connection:
            connection.execute(sa.update(things).values(m=None))
        assert run(engine, FillM, budget=Budget(10), chunk_size=5).outcome is Outcome.STOPPED

    before_first_call(monkeypatch, proving, "any_pending", cancel_and_begin_anew)
    assert run(engine, FillM).outcome is not Outcome.COMPLETE

    now = store.current("fill_m")
    assert now is not None
    assert (now.number, now.status) == (2, Status.PENDING)


def test_row_that_becomes_pending_late_is_swept(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine, *((i, 0, 1) for i in range(1, 21)))
    before_first_call(monkeypatch, proving, "any_pending", lambda: change(engine, 5, m=None))

    complete(engine, FillM)

    assert set(column(engine, "m").values()) == {1}


def test_row_that_moves_behind_the_end_of_the_table_is_seen(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof reads how large the table is; then every row is written anew, at its end."""
    rows = 1_000
    put(engine, *((i, 0, 1) for i in range(1, rows + 1)))
    monkeypatch.setattr(proof, "LONGEST_STRIDE", 100)
    target = bound(engine, FillM)
    moved = sa.update(things).values(n=1, m=sa.case((things.c.id < rows, 1)))
    reads: list[int] = []

    @contextmanager
    def reading() -> Iterator[None]:
        reads.append(1)
        if len(reads) == 2:  # the first one tells of the end
            with engine.begin() as application:
                application.execute(moved)
        with target.dialect.transaction(connection, LIMITS, write=False):
            yield

    with target.dialect.open(LIMITS) as connection:
        assert proof.any_pending(Readers(Reader(connection, reading)), target)
    assert len(reads) > 2


def test_mended_class_goes_on_after_sweeps_that_went_nowhere(engine: sa.Engine) -> None:
    class Nothing(Backfill):
        revision = "x"
        name = "fill_m"
        table = "things"
        where = "m IS NULL"
        values = {"m": "NULL"}

    put(engine, *((i, 0, None) for i in range(1, 21)))
    failed = run(engine, Nothing)
    assert failed.outcome is Outcome.FAILED
    assert "leaves them pending" in failed.result.text

    complete(engine, FillM, accept_change=True)

    assert set(column(engine, "m").values()) == {1}


def test_slow_transform_holds_no_lock_while_a_changed_row_is_computed_again(
    engine: sa.Engine,
) -> None:
    put(engine, (1, 0, None), (2, 0, None), (3, 0, None))
    asked: list[int] = []

    class Slow(Backfill):
        revision = "x"
        table = "things"
        where = "m IS NULL"
        reads = ["n"]
        writes = ["m"]

        def transform(self, row: Any) -> dict[str, int]:
            asked.append(row.id)
            time.sleep(0.02)
            if asked.count(1) == 1 and row.id == 3:
                change(engine, 1, n=5)  # after row 1 was computed
            if asked.count(1) == 2:
                change(engine, 2, n=7)  # would wait for us for ever, if we held its lock
            return {"m": row.n}

    complete(engine, Slow)

    assert column(engine, "m") == column(engine, "n")


def test_lease_that_cannot_be_given_back_tells_no_value(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(engine, *((i, CANARY % 100, 0) for i in range(1, 6)))

    class TooMuch(Backfill):
        revision = "x"
        table = "things"
        values = {"n": str(CANARY)}

    def unreachable(*_: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(Store, "release", unreachable)
    with caplog.at_level(logging.DEBUG):
        failed = run(engine, TooMuch, max_failures=1)
    assert failed.outcome is Outcome.FAILED
    assert "could not be given back" in caplog.text
    said = [record for record in caplog.records if record.name.startswith("backfill")]
    assert not any(record.exc_info for record in said)
    assert not any(str(CANARY) in record.getMessage() for record in said)


@pytest.mark.parametrize("method", ["failures", "totals", "ranges", "claim", "current"])
def test_connection_lost_between_two_chunks_is_waited_for(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    put(engine, *((i, 0, None) for i in range(1, 21)))

    def lose() -> None:
        lost = dialect_for(engine).engine.dialect.loaded_dbapi.OperationalError()
        raise sa.exc.OperationalError("SELECT 1", {}, lost, connection_invalidated=True)

    before_first_call(monkeypatch, Store, method, lose)

    complete(engine, FillM)

    assert set(column(engine, "m").values()) == {1}


def test_exit_in_a_transform_is_a_bad_row_and_no_success(engine: sa.Engine) -> None:
    class Leaving(Backfill):
        revision = "x"
        table = "things"
        where = "m IS NULL"
        writes = ["m"]

        def transform(self, row: Any) -> dict[str, int]:
            if row.id == 3:
                sys.exit(0)
            return {"m": 1}

    put(engine, *((i, 0, None) for i in range(1, 6)))
    assert run(engine, Leaving).outcome is Outcome.QUARANTINED
    assert column(engine, "m") == {1: 1, 2: 1, 3: None, 4: 1, 5: 1}
    target = bound(engine, FillM)
    store = Store(target.dialect)
    found = store.current("leaving")
    assert found is not None
    assert quarantine.retry(target, store, found, settings.resolve()) == (1, 0)


def test_application_gets_its_turn(
    database: Database, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite too, where a run's chunks lock the whole file one after the other."""
    rows = 500
    put(engine, *((i, 0, None) for i in range(1, rows + 1)))
    for patience in ("_TURN", "_TURN_ALONE"):
        monkeypatch.setattr(budget, patience, 0.05)
    commits: list[object] = []
    sa.event.listen(engine, "commit", commits.append)
    application = database.engine()
    over = threading.Event()
    passed: list[int] = []

    def write() -> None:
        while not over.is_set():
            before = len(commits)
            change(application, 1, n=7)
            passed.append(len(commits) - before)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        complete(engine, FillM, chunk_size=1)
    finally:
        over.set()
        writer.join()
    assert len(commits) > rows
    assert max(passed) < rows / 2, "one write waited for that many chunks"


class Commits:
    """What each transaction that wrote was, and whether its COMMIT waited for the disk."""

    def __init__(self, engine: sa.Engine) -> None:
        self.seen = set[tuple[str, str]]()
        sa.event.listen(engine, "commit", self.look)

    def look(self, connection: sa.Connection) -> None:
        question = (
            "SELECT current_setting('backfill.label'), current_setting('synchronous_commit'),"
            " pg_current_xact_id_if_assigned() IS NOT NULL"
        )
        with connection.connection.cursor() as cursor:
            cursor.execute(question)
            label, waiting, writes = cursor.fetchone() or ("", "", False)
        if writes:
            self.seen.add((label, waiting))


@pytest.mark.requires("standbys")
def test_only_what_is_done_again_may_be_lost_in_a_crash(
    database: Database, engine: sa.Engine
) -> None:
    """Chunks do not wait for the disk; what was decided, and that all is done, does."""
    put(engine, *((i, 0, None) for i in range(30)))
    name = sa.make_url(database.url).database
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = on")
    commits = Commits(engine)
    complete(engine, CountUp)
    assert commits.seen == {("backfill: count_up", "off"), ("backfill: state", "on")}


class SettingsOfChunks:
    """What each chunk's transaction was limited to, and how often that was told."""

    names = ("lock_timeout", "statement_timeout", "synchronous_commit", "enable_seqscan")

    def __init__(self, engine: sa.Engine) -> None:
        self.seen = set[tuple[str, ...]]()
        self._told = Counter[int]()
        self._of_chunks = set[int]()
        sa.event.listen(engine, "before_cursor_execute", self.look)

    def look(self, _: Any, cursor: Any, statement: str, *_more: Any) -> None:
        self._told[id(cursor.connection)] += "set_config" in statement
        if statement.startswith("UPDATE things"):
            self._of_chunks.add(id(cursor.connection))
            settings = ", ".join(f"current_setting('{name}')" for name in self.names)
            with cursor.connection.cursor() as another:
                another.execute(f"SELECT {settings}")
                self.seen.add(another.fetchone())

    @property
    def told(self) -> int:
        return sum(self._told[connection] for connection in self._of_chunks)


class ResetsAll(Backfill):
    """Code of others, which may set what it likes."""

    table = "things"
    name = "count_up"
    chunk_size = 10

    def apply(self, connection: sa.Connection, chunk: ChunkStatements) -> None:
        connection.execute(chunk.update().values(n=chunk.table.c.n + 1))
        connection.exec_driver_sql("SET lock_timeout = 0; SET statement_timeout = 0")


@pytest.mark.requires("standbys")
@pytest.mark.parametrize(("way", "is_told_once"), [(CountUp, True), (ResetsAll, False)])
def test_each_chunk_has_its_limits(
    engine: sa.Engine, way: type[Backfill], is_told_once: bool
) -> None:
    """Which are told once where nobody else could change them."""
    chunks = 40
    put(engine, *((i, 0, None) for i in range(10 * chunks)))
    settings = SettingsOfChunks(engine)
    complete(engine, way, lock_timeout=0.033, statement_timeout=4.4)
    assert settings.seen == {("33ms", "4400ms", "off", "on")}
    assert (settings.told < chunks) == is_told_once


def spread_readers(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, *, has_company: bool
) -> set[str]:
    """The threads that looked for pending rows after a run over many strides."""
    for module in (proof, trail):
        monkeypatch.setattr(module, "LONGEST_STRIDE", 10)
    monkeypatch.setattr(Pace, "sees_company", lambda _: has_company)
    put(engine, *((i, 0, None) for i in range(400)))
    before_first_call(monkeypatch, proving, "any_pending", lambda: change(engine, 390, m=None))
    threads, has_come = set[str](), threading.Event()

    def look(_: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if "count(*)" in statement or "EXISTS" in statement:
            name = threading.current_thread().name.partition("_")[0]
            threads.add(name)
            if "reader" in name:
                has_come.set()
            elif not has_company:
                has_come.wait(0.25)  # else the first one might be done before

    sa.event.listen(engine, "before_cursor_execute", look)
    try:
        complete(engine, FillM, chunk_size=10)
    finally:
        sa.event.remove(engine, "before_cursor_execute", look)
    assert set(column(engine, "m").values()) == {1}, "the row that was pending again is seen"
    return {name for name in threads if "reader" in name or "Main" in name}


def test_proof_is_read_by_two_unless_others_are_at_work(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = spread_readers(engine, monkeypatch, has_company=False)
    assert found == {"MainThread", "backfill-reader"}


def test_proof_is_read_by_one_while_others_are_at_work(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spread_readers(engine, monkeypatch, has_company=True) == {"MainThread"}


class AwaitedCompanion(Companion):
    """Makes the walk wait until its second reader is connected."""

    def is_ready(self) -> bool:
        deadline = time.monotonic() + 10
        while not super().is_ready():
            if not self._helpers.are_welcome() or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True


def searchers(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, *, has_company: bool, **options: Any
) -> set[str]:
    """The threads that looked for the few rows that are pending, all of which were filled."""
    monkeypatch.setattr(Pace, "sees_company", lambda _: has_company)
    monkeypatch.setattr(runner, "Companion", AwaitedCompanion)
    monkeypatch.setattr(survey, "_WORTH_SHARING", 10)
    pending = [*range(0, 3000, 100), 2999]
    put(engine, *((i, 0, None if i in pending else 0) for i in range(3000)))
    threads = set[str]()

    def look(_: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        is_check = "1 = 0" in statement  # whether the class fits the table
        if "things" in statement and not is_check and re.search("CASE|FILTER", statement):
            threads.add(threading.current_thread().name.partition("_")[0])

    sa.event.listen(engine, "before_cursor_execute", look)
    try:
        complete(engine, FillM, chunk_size=10, **options)
    finally:
        sa.event.remove(engine, "before_cursor_execute", look)
    assert column(engine, "m") == {i: int(i in pending) for i in range(3000)}
    return threads


def test_few_pending_rows_are_looked_for_by_two_unless_others_are_at_work(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = searchers(engine, monkeypatch, has_company=False)
    assert found == {"backfill", "backfill-companion"}


@pytest.mark.requires("attached_files")
def test_few_pending_rows_are_looked_for_before_the_only_lock_is_taken(engine: sa.Engine) -> None:
    put(engine, *((i, 0, None if i % 100 == 0 else 0) for i in range(3000)))
    sent = list[str]()

    def note(_: Any, _cursor: Any, sql: str, *_more: Any) -> None:
        sent.append(sql)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        complete(engine, FillM, chunk_size=10)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    begins = [sql if sql.startswith("BEGIN") else "" for sql in sent]
    looks = [i for i, sql in enumerate(sent) if "group_concat" in sql]
    assert len(looks) > 2
    assert {next(filter(None, begins[i::-1])) for i in looks} == {"BEGIN"}


@pytest.mark.parametrize("options", [{}, {"workers": 2}], ids=["in company", "by two workers"])
def test_few_pending_rows_are_looked_for_by_each_worker(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    found = searchers(engine, monkeypatch, has_company=not options, **options)
    assert found == {"backfill"}


@pytest.mark.requires("standbys")
def test_synchronous_standbys_are_waited_for_as_everybody_does(
    database: Database, servers: Servers
) -> None:
    """Whoever committed next would have to wait for all that we had not waited for."""
    server = servers.mortal(database.name)
    with server.database() as lone:
        engine = lone.engine()
        metadata.create_all(engine)
        put(engine, *((i, 0, None) for i in range(30)))
        server.execute("ALTER ROLE app SET synchronous_commit = local")
        try:
            have_standbys(server, "elsewhere")
            commits = Commits(engine)
            complete(engine, CountUp)
        finally:
            have_standbys(server, "")
            server.execute("ALTER ROLE app RESET synchronous_commit")
    assert {waiting for _, waiting in commits.seen} == {"local"}


def have_standbys(server: Server, names: str) -> None:
    """Let every COMMIT of a server wait for these."""
    server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    server.execute("SELECT pg_reload_conf()")
    with server.admin.connect() as connection:
        while connection.exec_driver_sql("SHOW synchronous_standby_names").scalar_one() != names:
            time.sleep(0.01)


def test_one_dict_that_is_changed_for_each_row_gives_each_row_its_own(engine: sa.Engine) -> None:
    put(engine, *((i, i, None) for i in range(1, 40)))

    class Reusing(Backfill):
        revision = "x"
        table = "things"
        reads = ["n"]
        writes = ["m"]
        out: ClassVar[dict[str, Any]] = {}

        def transform(self, row: Any) -> Any:
            self.out["m"] = 10 * row.n
            return self.out

    complete(engine, Reusing)
    assert column(engine, "m") == {i: 10 * i for i in range(1, 40)}


@pytest.mark.parametrize("nonsense", ["lots", -5, 2.5, object()])
def test_apply_that_returns_no_number_of_rows_changes_nothing(
    engine: sa.Engine, nonsense: object
) -> None:
    put(engine, *((i, i, None) for i in range(1, 40)))

    class Wrong(Backfill):
        revision = "x"
        table = "things"

        def apply(self, connection: sa.Connection, chunk: Any) -> Any:
            connection.execute(chunk.update().values(m=1))
            return nonsense

    ran = run(engine, Wrong)
    assert ran.outcome is Outcome.FAILED
    assert "apply() must return how many rows it changed" in ran.result.text
    assert set(column(engine, "m").values()) == {None}


@pytest.mark.requires("zoned_times")
def test_offset_of_a_moment_is_not_dropped(engine: sa.Engine) -> None:
    """A column without a zone takes what a plain INSERT of the value would give it."""
    moments = sa.Table(
        "moments",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.DateTime),
        sa.Column("o_clock", sa.Time),
    )
    moments.create(engine)
    far = timezone(timedelta(hours=5))
    values = {
        "at": datetime(2020, 1, 1, 1, 2, 3, tzinfo=far),
        "o_clock": clock_time(1, 2, 3, tzinfo=far),
    }
    with engine.begin() as connection:
        connection.execute(moments.insert(), [{"id": 1, **values}])
        connection.execute(moments.insert(), [{"id": i} for i in range(2, 9)])

    class Fill(Backfill):
        revision = "x"
        table = "moments"
        reads = ["id"]
        writes = ["at", "o_clock"]

        def transform(self, row: Any) -> Any:
            return dict(values)

    complete(engine, Fill)
    with engine.connect() as connection:
        written = connection.execute(sa.select(moments.c.at, moments.c.o_clock).distinct()).all()
    assert len(written) == 1


@pytest.mark.requires("custom_types")
def test_key_whose_text_is_in_another_order_is_refused(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE TABLE letters (k "char" PRIMARY KEY, n int)')

    class Fill(Backfill):
        revision = "x"
        table = "letters"
        values = {"n": "1"}

    with pytest.raises(DeclarationError, match=r"'k' of type .*do not keep an exact order"):
        bound(engine, Fill)


def test_transform_that_returns_sql_is_a_declaration_that_is_wrong(engine: sa.Engine) -> None:
    put(engine, *((i, i, None) for i in range(1, 9)))

    class ReturnsSql(Backfill):
        revision = "x"
        table = "things"
        reads = ["n"]
        writes = ["m"]

        def transform(self, row: Any) -> Any:
            return {"m": sa.func.length("abc")}

    ran = run(engine, ReturnsSql)
    assert ran.outcome is Outcome.FAILED
    assert "transform returned SQL for 'm'" in ran.result.text


@pytest.mark.requires("custom_types")
def test_key_that_python_cannot_hold_is_told(engine: sa.Engine) -> None:
    moments = sa.Table("at_moments", sa.MetaData(), sa.Column("at", sa.DateTime, primary_key=True))
    moments.append_column(sa.Column("n", sa.Integer))
    moments.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO at_moments VALUES ('infinity')")

    class Fill(Backfill):
        revision = "x"
        table = "at_moments"
        values = {"n": "1"}

    with pytest.raises(DeclarationError, match="fill: a key of at_moments cannot be read") as told:
        run(engine, Fill)
    assert "infinity" not in str(told.value)
