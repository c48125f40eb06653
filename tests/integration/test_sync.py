"""`sync = True`: triggers do to new writes what the walk does to the rows before them."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import time
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from backfill import Backfill, sync
from backfill.budget import Budget
from backfill.dialects import dialect_for, free_of_event_loops
from backfill.errors import DeclarationError, RunFailed, TableBusy
from backfill.opening import Opening
from backfill.planner import make_plan
from backfill.proof import incomplete_reason
from backfill.runner import Runner
from backfill.runs import Outcome, Status
from backfill.settings import Settings
from backfill.store import Store
from tests.databases import DRIVERS, Unavailable
from tests.integration.support import (
    LIMITS,
    Recorder,
    bound,
    complete,
    count,
    fill,
    make,
    read,
    run,
    status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backfill.runs import Run
    from backfill.targets import Target
    from tests.databases import Database, Servers

PATIENCE_SECONDS = 45.0

people = sa.Table(
    "people",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("first", sa.String(20)),
    sa.Column("last", sa.String(20)),
    sa.Column("full_name", sa.String(30)),
    sa.Column("initial", sa.String(1)),
)
"""Long texts come later, by an ALTER: in a derived table they once ended a MariaDB server."""


class FillNames(Backfill):
    """Two columns of two others."""

    table = "people"
    where: ClassVar[Any] = people.c.full_name.is_(None)
    values: ClassVar = {
        "full_name": people.c.first + " " + people.c.last,
        "initial": sa.func.substr(people.c.last, 1, 1),
    }
    sync = True


class FillNamesWithout(FillNames):
    name = "fill_names"
    sync = False


def install(engine: sa.Engine, declaration: type[Backfill]) -> bool:
    target = bound(engine, declaration)
    with (
        target.dialect.open(LIMITS) as connection,
        target.dialect.transaction(connection, LIMITS),
    ):
        return sync.install(target, connection)


def is_installed(engine: sa.Engine, declaration: type[Backfill]) -> bool:
    assert status(engine, declaration)["sync"] == bool(left_over(engine))
    return bool(left_over(engine))


LEFT_OVER = {
    "sqlite": "SELECT name FROM sqlite_master WHERE name LIKE '%backfill_sync%'",
    "mariadb": "SELECT trigger_name FROM information_schema.triggers"
    " WHERE trigger_name LIKE '%backfill_sync%' AND trigger_schema = DATABASE()",
    "postgresql": "SELECT tgname FROM pg_trigger WHERE tgname LIKE '%backfill_sync%'"
    " UNION SELECT proname FROM pg_proc WHERE proname LIKE '%backfill_sync%'",
}


def left_over(engine: sa.Engine) -> list[str]:
    """Everything of ours that the database's own catalogue knows."""
    with engine.connect() as connection:
        query = sa.text(LEFT_OVER[engine.dialect.name])
        return [str(name) for name in connection.execute(query).scalars()]


# -- what the triggers write -----------------------------------------------------------------


class Model:
    """What should be in the table: a value that the statement gives stays, one that the
    expression gave follows its sources, and what is pending is computed."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}

    @staticmethod
    def computed(row: dict[str, Any]) -> dict[str, Any]:
        first, last = row["first"], row["last"]
        whole = None if first is None or last is None else f"{first} {last}"
        return {"full_name": whole, "initial": None if last is None else last[:1]}

    def insert(self, row: dict[str, Any]) -> None:
        self.rows[row["id"]] = self.filled(row)

    def update(self, key: int, given: dict[str, Any]) -> None:
        old = self.rows[key]
        new = self.rows[key] = self.filled(old | given)
        if (old | given)["full_name"] is not None:
            was, now = self.computed(old), self.computed(new)
            new |= {c: now[c] for c in now if new[c] == old[c] == was[c]}

    def filled(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | self.computed(row) if row["full_name"] is None else row


def random_write(dice: random.Random, model: Model, connection: sa.Connection) -> None:
    words = ["ann", "Ann", "ANN", "o'hara", "é%s", "", None]
    given: dict[str, Any] = {"first": dice.choice(words), "last": dice.choice(words)}
    given["full_name"] = dice.choice([None, None, None, "own", "ann ann", "Ann Ann"])
    given["initial"] = dice.choice([None, "x"])
    if not model.rows or dice.random() < 0.4:
        row = {"id": len(model.rows) + 1, **given}
        model.insert(row)
        connection.execute(people.insert(), [row])
        return
    changed = dice.sample(sorted(given), dice.randint(1, 3))
    keys = dice.sample(sorted(model.rows), min(dice.randint(1, 4), len(model.rows)))
    for key in keys:
        model.update(key, {column: given[column] for column in changed})
    connection.execute(
        people.update().where(people.c.id.in_(keys)).values({c: given[c] for c in changed})
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_triggers_write_what_the_walk_would(engine: sa.Engine, seed: int) -> None:
    people.create(engine)
    install(engine, FillNames)
    dice, model = random.Random(seed), Model()
    with engine.begin() as connection:
        for _ in range(150):
            random_write(dice, model, connection)
    assert read(engine, people, *people.c.keys()) == [
        tuple(r.values()) for r in model.rows.values()
    ]
    assert len({row["full_name"] for row in model.rows.values()}) > 5

    # What is pending still is what no walk can fill; the walk finds nothing else to do.
    ran = run(engine, FillNames, max_passes=1, chunk_size=1000)
    without = sum(row["full_name"] is None for row in model.rows.values())
    assert set(ran.numbers("chunk", "changed")) == {without} != {0}


class AbbreviateNames(Backfill):
    """What another one writes, whose name comes later in the alphabet."""

    table = "people"
    depends_on: ClassVar = ["fill_names"]
    where: ClassVar[Any] = people.c.initial.is_(None)
    values: ClassVar = {"initial": sa.func.substr(people.c.full_name, 1, 1)}
    sync = True


class FillFullNames(FillNames):
    name = "fill_names"
    values: ClassVar = {"full_name": people.c.first + " " + people.c.last}


def test_what_depends_on_another_one_follows_it(engine: sa.Engine) -> None:
    people.create(engine)
    install(engine, FillFullNames)
    install(engine, AbbreviateNames)
    assert_follows(engine)


@pytest.mark.requires("schemas")
def test_what_depends_on_one_that_began_again_follows_it(engine: sa.Engine) -> None:
    people.create(engine)
    install(engine, FillFullNames)
    install(engine, AbbreviateNames)
    sync.withdraw(FillFullNames, dialect_for(engine))
    install(engine, FillFullNames)
    assert_follows(engine)


def assert_follows(engine: sa.Engine) -> None:
    fill(engine, people, [{"id": 1, "first": "Ann", "last": "Lee"}])
    assert read(engine, people, "initial") == ["A"]
    with engine.begin() as connection:
        connection.execute(people.update().values(first="Bo"))
    assert read(engine, people, "full_name", "initial") == [("Bo Lee", "B")]


def test_a_value_that_is_none_of_ours_is_left_alone(engine: sa.Engine) -> None:
    people.create(engine)
    install(engine, FillNames)
    fill(engine, people, [{"id": 1, "first": "Ann", "last": "Lee", "full_name": "ANN LEE"}])
    with engine.begin() as connection:
        connection.execute(people.update().values(first="Bo"))
    assert read(engine, people, "full_name") == ["ANN LEE"]  # though a collation may be case-blind


class FillAtWork(FillNames):
    name = "fill_names"
    where = sa.and_(people.c.full_name.is_(None), people.c.id > 1)


def test_a_row_that_is_left_out_is_left_alone(engine: sa.Engine) -> None:
    """Its sources give NULL, as they would if a run had written it."""
    people.create(engine)
    fill(engine, people, [{"id": i, "first": None, "last": None} for i in (1, 2)])
    install(engine, FillAtWork)
    with engine.begin() as connection:
        connection.execute(people.update().values(first="Ann", last="Lee"))
    assert read(engine, people, "full_name", "initial") == [(None, None), ("Ann Lee", "L")]


class FillTitles(Backfill):
    """One value is NULL for most rows, and the other tells that they are done."""

    name = "fill_names"
    table = "people"
    where: ClassVar[Any] = people.c.initial.is_(None)
    values: ClassVar = {"initial": sa.literal("x"), "full_name": people.c.first}
    sync = True


def test_a_null_beside_a_value_of_ours_follows_its_source(engine: sa.Engine) -> None:
    people.create(engine)
    install(engine, FillTitles)
    fill(engine, people, [{"id": 1}])
    assert read(engine, people, "full_name", "initial") == [(None, "x")]
    with engine.begin() as connection:
        connection.execute(people.update().values(first="Ann"))
    assert read(engine, people, "full_name", "initial") == [("Ann", "x")]


words = sa.Table(
    "words",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("password", sa.String(20)),
    sa.Column("key", sa.String(20)),
    sa.Column("names", sa.String(50)),
)


class FillWords(Backfill):
    table = "words"
    where: ClassVar[Any] = words.c.names.is_(None)
    values: ClassVar = {"names": words.c.password + "-" + words.c.key}
    sync = True


def test_columns_may_have_names_that_mean_something_in_a_trigger(engine: sa.Engine) -> None:
    words.create(engine)
    install(engine, FillWords)
    fill(engine, words, [{"id": 1, "password": "a", "key": "b"}])
    with engine.begin() as connection:
        connection.execute(words.update().values(key="c"))
    assert read(engine, words, "names") == ["a-c"]


@pytest.mark.requires("silent_actions")
@pytest.mark.parametrize(("table", "column"), [("new", "a"), ("things", "old"), ("a", "a")])
def test_names_that_hide_something_in_a_trigger_are_refused(
    engine: sa.Engine, table: str, column: str
) -> None:
    columns = (sa.Column(name, sa.String(20)) for name in (column, "b"))
    make(engine, table, sa.Column("id", sa.Integer, primary_key=True), *columns)
    where, values = f"{table}.b IS NULL", {"b": f"{table}.{column}"}
    body = {"table": table, "where": where, "values": values, "sync": True}
    with pytest.raises(DeclarationError, match="stands for several things"):
        install(engine, type("Hidden", (Backfill,), body))


class FillPublicNames(Backfill):
    name = "fill_names"
    table = "people"
    schema = "public"
    where = "full_name IS NULL"
    values: ClassVar = {"full_name": "first || ' ' || last"}
    sync = True


@pytest.mark.requires("schemas")
def test_a_search_path_may_be_empty(engine: sa.Engine) -> None:
    """As ALTER ROLE … SET search_path = '' leaves it."""
    options = {"options": '-c search_path=""'}
    bare = sa.create_engine(engine.url, poolclass=sa.NullPool, connect_args=options)
    people.create(engine)
    install(bare, FillPublicNames)
    fill(engine, people, [{"id": 1, "first": "Ann", "last": "Lee"}])
    assert read(engine, people, "full_name") == ["Ann Lee"]


def test_a_value_that_does_not_fit_fails_no_statement_of_the_application(
    engine: sa.Engine,
) -> None:
    """The row stays as the application wrote it, and pending, for the walk to report."""
    small = make(
        engine,
        "small",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20)),
        sa.Column("code", sa.String(3)),
        sa.Column("size", sa.Integer),
        *([sa.CheckConstraint("size < 5")] if is_lax(engine) else []),
    )

    class FillCode(Backfill):
        table = "small"
        where = small.c.code.is_(None)
        values: ClassVar = {"code": small.c.name, "size": sa.func.length(small.c.name)}
        sync = True

    install(engine, FillCode)
    fill(engine, small, [{"id": 1, "name": "abc"}, {"id": 2, "name": "too long"}])
    with engine.begin() as connection:
        connection.execute(small.update().values(name=small.c.name + "!"))
    assert read(engine, small, "name", "code", "size") == [
        # The first one followed its source, as far as it fits.
        ("abc!", "abc!", 4) if is_lax(engine) else ("abc!", None, None),
        ("too long!", None, None),
    ]


codes = sa.Table(
    "codes",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(20)),
    sa.Column("code", sa.String(3)),
    sa.Column("size", sa.Integer),
    sa.Column("version", sa.Integer),
)


class FillCodes(Backfill):
    table = "codes"
    where: ClassVar[Any] = codes.c.code.is_(None)
    values: ClassVar = {"code": codes.c.name, "size": sa.func.length(codes.c.name)}
    sync = True


class FillVersion(FillCodes):
    where = "version < 2"
    values: ClassVar = {**FillCodes.values, "version": "2"}


class Append(FillCodes):
    values: ClassVar = {"code": "name", "size": "size + length(name)"}


def make_codes(engine: sa.Engine, declaration: type[Backfill], **given: Any) -> None:
    codes.create(engine)
    if is_lax(engine):  # no type refuses anything there
        with engine.begin() as connection:
            statement = sa.schema.CreateTable(codes).compile(engine).string.strip()
            connection.exec_driver_sql("DROP TABLE codes")
            connection.exec_driver_sql(f"{statement[:-1]}, CHECK (length(code) < 4))")
    install(engine, declaration)
    fill(engine, codes, [{"id": 1, "name": "abc", "size": 0, "version": 1, **given}])


def rename(engine: sa.Engine, name: str) -> tuple[Any, ...]:
    with engine.begin() as connection:
        connection.execute(codes.update().values(name=name))
    (row,) = read(engine, codes, "code", "size", "version")
    return tuple(row)


def test_a_value_that_cannot_follow_its_source_leaves_the_row_pending(engine: sa.Engine) -> None:
    make_codes(engine, FillCodes)
    assert rename(engine, "cba") == ("cba", 3, 1)
    assert rename(engine, "too long") == (None, None, 1)
    assert complete_reason(engine, FillCodes) is not None
    assert rename(engine, "ab") == ("ab", 2, 1)
    assert complete_reason(engine, FillCodes) is None


def complete_reason(engine: sa.Engine, declaration: type[Backfill]) -> str | None:
    target = bound(engine, declaration)
    with target.dialect.open(LIMITS) as connection:
        return incomplete_reason(connection, target)


def test_a_value_of_the_application_s_is_not_lost_with_one_that_cannot_follow(
    engine: sa.Engine,
) -> None:
    """Pending, the walk would write all of them."""
    make_codes(engine, FillCodes)
    with engine.begin() as connection:
        connection.execute(codes.update().values(size=9))
    assert rename(engine, "too long") == ("abc", 9, 1)


def test_what_no_run_would_find_again_stays(engine: sa.Engine) -> None:
    make_codes(engine, FillVersion)
    assert rename(engine, "too long") == ("abc", 8 if is_lax(engine) else 3, 2)  # each by itself


def test_what_reads_what_it_writes_is_not_made_pending_again(engine: sa.Engine) -> None:
    make_codes(engine, Append)
    assert rename(engine, "too long") == ("abc", 3, 1)
    warnings = make_plan(bound(engine, Append), Settings()).warnings
    assert any(warning.startswith("'code' keeps its old value") for warning in warnings)


def test_plan_tells_of_values_that_take_no_null(engine: sa.Engine) -> None:
    strict = make(
        engine,
        "codes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20)),
        sa.Column("code", sa.String(3), nullable=False, server_default=""),
        sa.Column("size", sa.Integer),
        rows=[{"id": 1, "name": "abc"}],
    )

    class FillStrict(FillCodes):
        where = strict.c.code == ""

    warnings = make_plan(bound(engine, FillStrict), Settings()).warnings
    told = [warning for warning in warnings if "keeps its old value" in warning]
    assert [warning.split()[0] for warning in told] == ["'code'"]


def is_lax(engine: sa.Engine) -> bool:
    """SQLite checks no length; there a constraint has to refuse."""
    return engine.dialect.name == "sqlite"


def test_the_walk_is_none_of_the_triggers_business(engine: sa.Engine) -> None:
    """Rows that stay pending would be counted up twice by one statement."""
    steps = make(
        engine,
        "steps",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("n", sa.Integer),
        rows=[{"id": i, "n": 0} for i in range(1, 41)],
    )

    class CountUp(Backfill):
        table = "steps"
        where = steps.c.n < 100
        values: ClassVar = {"n": steps.c.n + 1}
        sync = True

    ran = run(engine, CountUp, budget=Budget(rows=20), chunk_size=10)
    assert (ran.outcome, ran.texts("sync") != []) == (Outcome.STOPPED, True)
    assert read(engine, steps, "n") == [1] * 20 + [0] * 20
    with engine.begin() as connection:
        connection.execute(steps.insert(), [{"id": 99, "n": 5}])
    assert read(engine, steps, "n")[-1] == 6


# -- installing ------------------------------------------------------------------------------


@dataclass
class Writer:
    """An old application: it fills neither column, and never stops."""

    engine: sa.Engine
    first_key: int
    rows: int = 0
    errors: list[Exception] = field(default_factory=list)

    def work(self, stop: Event) -> None:
        with self.engine.connect() as connection:
            if is_lax(self.engine):  # on a loaded machine a writer may starve for its 5 s
                connection.exec_driver_sql("PRAGMA busy_timeout = 30000")
                connection.commit()
            while not stop.is_set():
                try:
                    with connection.begin():
                        self.write(connection)
                except sa.exc.DBAPIError as error:
                    self.errors.append(error)
                stop.wait(0.003)

    def write(self, connection: sa.Connection) -> None:
        key = self.first_key + self.rows
        connection.execute(people.insert(), [{"id": key, "first": "new", "last": str(key)}])
        undone = people.update().where(people.c.id == key % 200 + 1)
        connection.execute(undone.values(full_name=None, initial=None))
        self.rows += 1


@contextlib.contextmanager
def writing(engine: sa.Engine) -> Iterator[None]:
    """Two writers, which write before this begins, before each proof, and when it ends."""
    stop, writers = Event(), [Writer(engine, 1_000_000), Writer(engine, 2_000_000)]
    is_proved = Runner.is_proved

    def more_is_written() -> None:
        before = [writer.rows for writer in writers]
        wait_until(lambda: all(w.rows > was for w, was in zip(writers, before, strict=True)))

    def proved_later(runner: Runner, of: Run) -> bool:
        more_is_written()
        return is_proved(runner, of)

    threads = [Thread(target=writer.work, args=(stop,)) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        more_is_written()
        with patch.object(Runner, "is_proved", proved_later):
            yield
        more_is_written()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [error for writer in writers for error in writer.errors] == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.001)


def old_rows() -> list[dict[str, Any]]:
    return [{"id": i, "first": "old", "last": str(i)} for i in range(1, 1001)]


def test_a_table_that_is_written_without_end_gets_complete(engine: sa.Engine) -> None:
    people.create(engine)
    fill(engine, people, old_rows())
    with writing(engine):
        ran = run(engine, FillNames, chunk_size=250)
        assert ran.outcome is Outcome.COMPLETE, ran.result.text
        assert ran.texts("swept") == []  # in one go
        assert count(engine, people, people.c.full_name.is_(None)) == 0
    assert count(engine, people, people.c.full_name.is_(None)) == 0
    odd = people.c.full_name != people.c.first + " " + people.c.last
    assert count(engine, people, odd) == 0


def test_without_sync_it_never_does(engine: sa.Engine) -> None:
    """The control: the same writers, and rows are left."""
    people.create(engine)
    fill(engine, people, old_rows())
    with writing(engine):
        ran = run(engine, FillNamesWithout, chunk_size=250, max_passes=1)
    assert ran.outcome is Outcome.FAILED
    assert "somebody keeps writing" in ran.result.text
    assert count(engine, people, people.c.full_name.is_(None)) > 0


def test_a_kill_between_triggers_and_walk_is_mended(engine: sa.Engine) -> None:
    people.create(engine)
    fill(engine, people, old_rows()[:50])
    with (
        patch.object(Opening, "create", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        run(engine, FillNames)
    assert is_installed(engine, FillNames)
    fill(engine, people, [{"id": 100, "first": "a", "last": "b"}])
    assert read(engine, people, "full_name")[-1] == "a b"
    ran = complete(engine, FillNames)
    assert ran.texts("sync") == []  # they were left as they were
    assert sum(ran.numbers("chunk", "changed")) == 50


def test_triggers_that_are_missing_or_differ_are_made_again(engine: sa.Engine) -> None:
    people.create(engine)
    fill(engine, people, old_rows()[:50])
    run(engine, FillNames, budget=Budget(rows=10), chunk_size=10)
    drop_one(engine)

    class Changed(FillNames):
        name = "fill_names"
        values: ClassVar = {"full_name": people.c.last, "initial": sa.null()}

    refused = pytest.raises(Exception, match="--accept-change")
    with refused:
        run(engine, Changed)
    ran = complete(engine, Changed, accept_change=True)
    assert len(ran.texts("sync")) == 1
    fill(engine, people, [{"id": 100, "first": "a", "last": "b"}])
    assert read(engine, people, "full_name")[-1] == "b"


def drop_one(engine: sa.Engine) -> None:
    """Leave things as a kill between two statements would, where DDL is not transactional."""
    trigger = max(left_over(engine))
    on = " ON people" if engine.dialect.name == "postgresql" else ""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TRIGGER {trigger}{on}")


def test_nothing_is_installed_where_nothing_is_pending(engine: sa.Engine) -> None:
    """Else a run after the gate would leave triggers that nobody removes."""
    people.create(engine)
    complete(engine, FillNames)
    assert not is_installed(engine, FillNames)


@pytest.mark.requires("row_locks")
def test_a_table_in_use_is_asked_for_again_and_nobody_waits_for_long(engine: sa.Engine) -> None:
    people.create(engine)
    fill(engine, people, old_rows())
    recorder = Recorder()
    target = bound(engine, FillNames)
    how = Settings(chunk_size=500)
    runner = Runner(target, Store(target.dialect), how, Budget(), recorder)
    outcomes: list[Outcome] = []
    thread = Thread(target=lambda: outcomes.append(runner.run().outcome))
    with engine.connect() as long, engine.connect() as short:
        long.execute(people.insert(), [{"id": 5000, "first": "not", "last": "seen"}])
        thread.start()
        wait_until(lambda: any("is in use" in event.text for event in recorder.events))
        waits, keys = [seconds_of_a_write(short, 6000)], itertools.count(6001)
        while len([event for event in recorder.events if event.what == "retry"]) < 4:
            waits.append(seconds_of_a_write(short, next(keys)))
        assert left_over(engine) == []
        long.commit()
    thread.join(PATIENCE_SECONDS)
    assert outcomes == [Outcome.COMPLETE]
    assert max(waits) < 2  # behind a lock that waits for `long`, until it ended
    assert count(engine, people, people.c.full_name.is_(None)) == 0


@pytest.mark.requires("row_locks")
def test_who_uses_another_table_is_waited_for_only_without_triggers(
    database: Database, engine: sa.Engine
) -> None:
    """Their lock has told that nobody is left who could have written before them."""
    url = sa.make_url(database.admin_url).set(database=engine.url.database)
    see_all = sa.create_engine(url, poolclass=sa.NullPool)
    people.create(engine)
    fill(engine, people, old_rows()[:20])
    other = make(engine, "other", sa.Column("id", sa.Integer, primary_key=True))
    budget, recorder = Budget(), Recorder()
    with engine.connect() as long:
        long.execute(other.insert(), [{"id": 1}])
        assert complete(see_all, FillNames).texts("waiting") == []
        sync.withdraw(FillNames, dialect_for(see_all))
        fill(engine, people, [{"id": 30, "first": "a", "last": "b"}])
        target = bound(see_all, FillNamesWithout)
        runner = Runner(target, Store(target.dialect), Settings(), budget, recorder)
        thread = Thread(target=runner.run)
        thread.start()
        wait_until(lambda: any(event.what == "waiting" for event in recorder.events))
        reason = status(see_all, FillNamesWithout)["throttled"]
        budget.ask_to_stop("by the test")
        thread.join(PATIENCE_SECONDS)
    assert re.match(r"waits for the older transaction of .+ to end", reason)
    (said,) = [event.text for event in recorder.events if event.what == "waiting"]
    assert re.search(r"older transaction of (connection|process) \d+ \(.+\) to end", said)


def test_the_only_write_lock_is_not_waited_for_in_silence(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'one.db'}", poolclass=sa.NullPool)
    people.create(engine)
    fill(engine, people, old_rows()[:20])
    target, recorder = bound(engine, FillNames), Recorder()
    store, outcomes = Store(target.dialect), list[Outcome]()
    store.ensure()
    runner = Runner(target, store, Settings(), Budget(), recorder)
    thread = Thread(target=lambda: outcomes.append(runner.run().outcome))
    with engine.connect() as writer, patch("backfill.opening._SOON", 0.05):
        writer.exec_driver_sql("BEGIN IMMEDIATE")
        thread.start()
        wait_until(lambda: any(event.what == "waiting" for event in recorder.events))
        writer.rollback()
        thread.join(PATIENCE_SECONDS)
    assert outcomes == [Outcome.COMPLETE]
    (said,) = [event.text for event in recorder.events if event.what == "waiting"]
    assert said == "waiting for another writer to let the triggers of `sync` in"


def seconds_of_a_write(connection: sa.Connection, key: int) -> float:
    started = time.perf_counter()
    with connection.begin():
        connection.execute(people.insert(), [{"id": key, "first": "a", "last": "b"}])
    return time.perf_counter() - started


# -- removing --------------------------------------------------------------------------------


def test_removal_leaves_nothing(engine: sa.Engine) -> None:
    people.create(engine)
    install(engine, FillNames)
    assert is_installed(engine, FillNames)
    dialect = dialect_for(engine)
    assert sync.withdraw(FillNames, dialect)
    assert left_over(engine) == []
    assert not sync.withdraw(FillNames, dialect)


@pytest.mark.parametrize("of", [FillNames, "fill_names"])
def test_triggers_are_found_where_their_table_has_another_name(
    engine: sa.Engine, of: sync.Sought
) -> None:
    people.create(engine)
    install(engine, FillNames)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE people RENAME TO persons"))
    assert sync.withdraw(of, dialect_for(engine))
    assert left_over(engine) == []


def test_triggers_can_be_removed_when_their_column_is_gone(engine: sa.Engine) -> None:
    people.create(engine)
    install(engine, FillNames)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE people"))
    without = sa.Table("people", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    without.create(engine)
    sync.withdraw(FillNames, dialect_for(engine))
    assert left_over(engine) == []


def test_a_column_that_is_dropped_fails_no_insert(engine: sa.Engine) -> None:
    """As a downgrade may do it without op.stop_backfill_sync. SQLite refuses that itself."""
    people.create(engine)
    install(engine, FillNames)
    dropping = "ALTER TABLE people DROP COLUMN full_name"
    with engine.begin() as connection:
        if is_lax(engine):
            with pytest.raises(sa.exc.OperationalError, match="error in trigger backfill_sync"):
                connection.exec_driver_sql(dropping)
            return
        connection.exec_driver_sql(dropping)
    fill(engine, people, [{"id": 1, "first": "a"}])
    with engine.begin() as connection:
        connection.execute(people.update().values(first="b"))
    assert read(engine, people, "first", "initial") == [("b", None)]
    sync.withdraw(FillNames, dialect_for(engine))
    assert left_over(engine) == []


ALTER = {"postgresql": "ALTER COLUMN {} TYPE text", "mariadb": "MODIFY {} text"}


class Rename(Backfill):
    table = "people"
    where = people.c.full_name.is_(None)
    values: ClassVar = {"full_name": people.c.first}
    sync = True


@pytest.mark.requires("server")
def test_types_may_change_under_an_open_session(database: Database, engine: sa.Engine) -> None:
    """A pool keeps connections for days, and they keep their plans."""
    people.create(engine)
    install(engine, Rename)
    with engine.connect() as connection:
        for turn, column in enumerate(["id", "first", "full_name"]):
            if turn:
                with engine.begin() as other:
                    alter = ALTER[database.name].format(column)
                    other.exec_driver_sql(f"ALTER TABLE people {alter}")
            for key in range(10 * turn, 10 * turn + 10):
                connection.execute(people.insert(), [{"id": key, "first": "a"}])
            connection.execute(people.update().values(first=f"b{turn}"))
            connection.commit()
            assert set(read(engine, people, "full_name")) == {f"b{turn}"}


@pytest.mark.requires("row_locks")
def test_removal_does_not_queue_behind_a_long_transaction(engine: sa.Engine) -> None:
    people.create(engine)
    install(engine, FillNames)
    tries: list[float] = []

    def let_go(seconds: float) -> None:
        tries.append(seconds)
        if len(tries) == 3:
            long.commit()

    dialect = dialect_for(engine)
    with engine.connect() as long, dialect.open(LIMITS) as connection:
        long.execute(people.insert(), [{"id": 1, "first": "a", "last": "b"}])
        removed = sync.remove(
            FillNames,
            dialect,
            connection,
            trying=lambda: dialect.transaction(connection, LIMITS),
            sleep=let_go,
        )
    assert (removed, len(tries), left_over(engine)) == (True, 3, [])


# -- names, and what is refused --------------------------------------------------------------


odd = sa.Table(
    "Odd t:ab%le 'x' $y$",
    sa.MetaData(),
    sa.Column("new", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("se:lect %s", sa.String(20)),
    sa.Column("c0", sa.String(40)),
)


class Odd(Backfill):
    name = "Fill.Odd-Name-" + 100 * "é"
    table = odd.name
    where = odd.c.c0.is_(None)
    values: ClassVar = {"c0": odd.c["se:lect %s"] + " %s 'q' \\n ? :y $1 $backfill$ --"}
    sync = True


@pytest.mark.parametrize("driver", DRIVERS)
def test_names_need_no_care_with_any_driver(servers: Servers, tmp_path: Path, driver: str) -> None:
    try:
        stack = contextlib.ExitStack()
        database = stack.enter_context(servers.database(DRIVERS[driver].database, tmp_path))
        engine = free_of_event_loops(database.through(driver).engine())
    except Unavailable as error:
        pytest.skip(str(error))
    with stack:
        plain, dialect = database.engine(), dialect_for(engine)
        odd.create(plain)
        fill(plain, odd, [{"new": 1, "se:lect %s": "100% :x"}])

        dialect.call(complete, engine, Odd)
        fill(plain, odd, [{"new": 2, "se:lect %s": "100% :x"}])
        with plain.begin() as connection:
            connection.execute(odd.update().values({"se:lect %s": "b"}))
        assert read(plain, odd, "c0") == 2 * ["b %s 'q' \\n ? :y $1 $backfill$ --"]
        assert is_installed(plain, Odd)
        assert all(len(name.encode()) < 64 for name in left_over(plain))

        dialect.call(sync.withdraw, Odd, dialect)
        assert left_over(plain) == []


@pytest.mark.parametrize(
    ("short", "other"), [("a", "A"), ("a.b", "a_b"), ("x" * 60, "x" * 61), ("é", "è")]
)
def test_names_of_triggers_are_one_each(short: str, other: str) -> None:
    assert sync.trigger_name(short).lower() != sync.trigger_name(other).lower()
    assert len(sync.trigger_name(other)) <= 48


class InSchema(FillNames):
    name = "fill_names"
    table = "S 1.people"


@pytest.mark.requires("schemas")
@pytest.mark.parametrize("of", [InSchema, "fill_names"])
def test_table_in_a_schema(engine: sa.Engine, of: sync.Sought) -> None:
    """Out of the search path, also when the class is gone."""
    make_people_in_a_schema(engine)
    complete(engine, InSchema)
    assert is_installed(engine, InSchema)
    sync.withdraw(of, dialect_for(engine))
    assert left_over(engine) == []


def make_people_in_a_schema(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("S 1"))
    make(
        engine,
        "people",
        *(sa.Column(c.name, c.type, primary_key=c.primary_key) for c in people.c),
        schema="S 1",
        rows=old_rows()[:10],
    )


@pytest.mark.requires("schemas")
def test_nobody_guesses_whose_triggers_a_name_means(engine: sa.Engine) -> None:
    """Two projects in one database may have backfills of one name."""
    for schema in ("one", "two"):
        with engine.begin() as connection:
            connection.execute(sa.schema.CreateSchema(schema))
        columns = (sa.Column(c.name, c.type, primary_key=c.primary_key) for c in people.c)
        make(engine, "people", *columns, schema=schema)
        place = {"schema": schema, "name": "fill_names"}
        install(engine, type("FillNames", (FillNames,), place))
    before = left_over(engine)
    with pytest.raises(RunFailed, match="in the schemas one, two, and nothing says whose"):
        sync.withdraw("fill_names", dialect_for(engine))
    assert left_over(engine) == before


@pytest.mark.requires("schemas")
def test_triggers_of_another_tenant_are_not_found_by_name(engine: sa.Engine) -> None:
    make_people_in_a_schema(engine)
    tenant, other = (
        sa.create_engine(
            engine.url.update_query_dict({"options": f"-csearch_path={path}"}),
            poolclass=sa.NullPool,
        )
        for path in ('"S\\ 1"', "public")
    )
    install(tenant, FillNames)
    assert not sync.withdraw("fill_names", dialect_for(other))
    assert left_over(engine) != []
    assert sync.withdraw("fill_names", dialect_for(tenant))
    assert left_over(engine) == []


class InText(FillNames):
    where = "people.full_name IS NULL -- not yet"
    values: ClassVar = {
        "full_name": "CASE WHEN first = people.last THEN 'same' ELSE people.last END /* % */",
        "initial": "substr(first, 1, 1) -- one",
    }


def test_sql_text_with_and_without_the_name_of_the_table(engine: sa.Engine) -> None:
    people.create(engine)
    install(engine, InText)
    fill(
        engine, people, [{"id": i, "first": "x", "last": last} for i, last in [(1, "x"), (2, "y")]]
    )
    assert read(engine, people, "full_name", "initial") == [("same", "x"), ("y", "x")]


class LookUp(FillNames):
    values: ClassVar = {"full_name": "(SELECT last FROM countries c WHERE c.code = people.last)"}


def test_lookup_in_another_table(engine: sa.Engine) -> None:
    """Inside the subquery `last` is the country's."""
    make(
        engine,
        "countries",
        sa.Column("code", sa.String(2), primary_key=True),
        sa.Column("last", sa.String(20)),
        rows=[{"code": "at", "last": "Austria"}, {"code": "br", "last": "Brazil"}],
    )
    people.create(engine)
    if engine.dialect.name == "mariadb":
        with pytest.raises(DeclarationError, match="have a subquery"):
            install(engine, LookUp)
        return
    install(engine, LookUp)
    fill(engine, people, [{"id": i, "last": code} for i, code in [(1, "at"), (2, "br")]])
    assert read(engine, people, "full_name") == ["Austria", "Brazil"]


class OwnRows(FillNames):
    values: ClassVar = {"full_name": "(SELECT max(p.first) FROM people p)"}


class Opaque(sa.types.UserDefinedType[str]):
    """A type that knows no literals."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TEXT"


class NoLiteral(FillNames):
    values: ClassVar = {"full_name": sa.literal("x", Opaque())}


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        (OwnRows, "look at other rows of 'people'|have a subquery"),
        (NoLiteral, "no literal form"),
    ],
)
def test_what_no_trigger_can_do_is_refused_by_the_plan(
    engine: sa.Engine, declaration: type[Backfill], said: str
) -> None:
    people.create(engine)
    with pytest.raises(DeclarationError, match=said):
        make_plan(bound(engine, declaration), Settings())


def test_plan_shows_the_triggers_and_makes_none(engine: sa.Engine) -> None:
    people.create(engine)
    plan = make_plan(bound(engine, FillNames), Settings())
    assert all(statement.startswith(("CREATE", "REVOKE")) for statement in plan.sync)
    assert "backfill_sync_fill_names" in plan.sync[-1]
    assert any('op.stop_backfill_sync("fill_names")' in warning for warning in plan.warnings)
    assert left_over(engine) == []


def test_a_column_that_triggers_do_not_know_yet_is_refused(engine: sa.Engine) -> None:
    """SQLite's triggers come after the row was stored, and know it."""
    counted = sa.Column("id", sa.Integer, primary_key=True)
    computed = sa.Column("double", sa.Integer, sa.Computed("n * 2", persisted=True))
    numbers = make(engine, "numbers", counted, sa.Column("n", sa.Integer), computed)
    numbers.append_column(sa.Column("x", sa.Integer))
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE numbers ADD COLUMN x integer")

    class FillX(Backfill):
        table = "numbers"
        where = numbers.c.x.is_(None)
        values: ClassVar = {"x": numbers.c.double}
        sync = True

    if is_lax(engine):
        install(engine, FillX)
        fill(engine, numbers, [{"id": 1, "n": 4}])
        assert read(engine, numbers, "x") == [8]
        return
    with pytest.raises(DeclarationError, match="'double', whose value a trigger does not know"):
        install(engine, FillX)


@pytest.mark.requires("late_numbers")
@pytest.mark.parametrize("key", ["id integer PRIMARY KEY, number", "id integer UNIQUE, number"])
def test_a_number_that_the_database_gives_is_refused(engine: sa.Engine, key: str) -> None:
    """In the primary key or outside of it."""
    primary = "PRIMARY KEY" if "UNIQUE" in key else "UNIQUE"
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE TABLE tickets ({key} integer AUTO_INCREMENT {primary}, code varchar(9))"
        )

    class FillCode(Backfill):
        table = "tickets"
        where = "code IS NULL"
        values: ClassVar = {"code": "CONCAT('T', number)"}
        sync = True

    with pytest.raises(DeclarationError, match="'number', whose value a trigger does not know"):
        install(engine, FillCode)


def test_a_unique_column_is_refused_where_it_could_cost_a_row(
    database: Database, engine: sa.Engine
) -> None:
    """An upsert or a REPLACE looks at what the triggers have written, but on PostgreSQL."""
    make(
        engine,
        "people",
        *(sa.Column(c.name, c.type, primary_key=c.primary_key) for c in people.c),
        sa.UniqueConstraint("full_name"),
    )
    if "schemas" not in database.capabilities:
        with pytest.raises(DeclarationError, match="'full_name' is unique"):
            install(engine, FillNames)
        return
    warnings = make_plan(bound(engine, FillNames), Settings()).warnings
    assert any("a constraint looks at 'full_name'" in warning for warning in warnings)


WHAT_REFUSES = {
    "expression": "CREATE UNIQUE INDEX one_each ON people (lower(full_name))",
    "predicate": "CREATE UNIQUE INDEX one_each ON people (id) WHERE full_name = 'a'",
    "exclusion": "ALTER TABLE people ADD EXCLUDE (full_name WITH =)",
}


@pytest.mark.requires("schemas")
@pytest.mark.parametrize("what", WHAT_REFUSES)
def test_an_index_on_more_than_a_column_is_told(engine: sa.Engine, what: str) -> None:
    people.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX not_unique ON people (lower(initial))")
        connection.exec_driver_sql(WHAT_REFUSES[what])
    warnings = make_plan(bound(engine, FillNames), Settings()).warnings
    told = [text for text in warnings if "a constraint" in text]
    assert [text.split(":")[0] for text in told] == ["a constraint looks at 'full_name'"]


@pytest.mark.parametrize("what", ["expression", "predicate"])
def test_an_index_on_more_than_a_column_is_refused_on_sqlite(tmp_path: Path, what: str) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'one.db'}", poolclass=sa.NullPool)
    people.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX not_unique ON people (lower(initial))")
        connection.exec_driver_sql(WHAT_REFUSES[what])
    with pytest.raises(DeclarationError, match="'full_name' is unique"):
        install(engine, FillNames)


@pytest.mark.requires("schemas")
def test_columns_that_an_index_only_carries_are_not_told(engine: sa.Engine) -> None:
    people.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX full_name ON people (id) INCLUDE (initial)")
    warnings = make_plan(bound(engine, FillNames), Settings()).warnings
    assert not any("a constraint" in text for text in warnings)


@pytest.mark.requires("schemas")
def test_triggers_that_fire_once_more_are_told(engine: sa.Engine) -> None:
    people.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
        )
        for name, event in (
            ("at_update", "BEFORE UPDATE"),
            ("at_ours", "AFTER INSERT OR UPDATE OF full_name"),
            ("at_another", "BEFORE UPDATE OF first"),
            ("at_insert", "BEFORE INSERT"),
            ("switched_off", "BEFORE UPDATE"),
        ):
            connection.exec_driver_sql(
                f"CREATE TRIGGER {name} {event} ON people FOR EACH ROW EXECUTE PROCEDURE note()"
            )
        connection.exec_driver_sql("ALTER TABLE people DISABLE TRIGGER switched_off")
    install(engine, FillNames)
    warnings = make_plan(bound(engine, FillNames), Settings()).warnings
    told = [text for text in warnings if "fires once more at an INSERT" in text]
    assert [text.split()[1] for text in told] == ["'at_ours'", "'at_update'"]
    assert not any("fires after those" in text for text in warnings)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TRIGGER at_update ON people RENAME TO zzz")
    warnings = make_plan(bound(engine, FillNames), Settings()).warnings
    assert [t.split()[1] for t in warnings if "fires after those" in t] == ["'zzz'"]


@pytest.mark.requires("schemas")
def test_nobody_else_makes_triggers_with_our_functions(engine: sa.Engine) -> None:
    """They have their owner's rights, and would be given records of anybody's types."""
    people.create(engine)
    install(engine, FillNames)
    is_open = sa.text(
        "SELECT bool_or(has_function_privilege('public', oid, 'EXECUTE')) FROM pg_proc"
        " WHERE proname LIKE 'backfill_sync_%'"
    )
    with engine.begin() as connection:
        assert connection.execute(is_open).scalar_one() is False
        connection.exec_driver_sql(
            "GRANT EXECUTE ON FUNCTION backfill_sync_fill_names_update TO PUBLIC"
        )
    assert install(engine, FillNames)
    with engine.begin() as connection:
        assert connection.execute(is_open).scalar_one() is False
    assert not install(engine, FillNames)


class Refer(Backfill):
    table = "pets"
    where = "owner_ref IS NULL"
    values: ClassVar = {"owner_ref": "owner_id"}
    sync = True


class ReferPlainly(Refer):
    where = "plain IS NULL"
    values: ClassVar = {"plain": "owner_id"}


def make_pets(engine: sa.Engine, action: str) -> None:
    references = "REFERENCES owners (id)"
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE owners (id integer PRIMARY KEY)",
            "CREATE TABLE pets (id integer PRIMARY KEY, owner_id integer,"
            f" owner_ref integer {references} {action}, plain integer {references})",
            "INSERT INTO owners VALUES (1)",
        ):
            connection.exec_driver_sql(statement)


@pytest.mark.requires("firing_actions")
@pytest.mark.parametrize(
    "action", ["ON DELETE SET NULL", "ON DELETE SET DEFAULT", "ON UPDATE CASCADE"]
)
def test_a_column_that_a_foreign_key_sets_is_refused(engine: sa.Engine, action: str) -> None:
    """The triggers would set it back, to an owner who is gone."""
    make_pets(engine, action)
    make_plan(bound(engine, ReferPlainly), Settings())
    with pytest.raises(DeclarationError, match=f"'owner_ref' is in a foreign key with {action}"):
        make_plan(bound(engine, Refer), Settings())


@pytest.mark.requires("silent_actions")
def test_foreign_keys_that_fire_no_triggers_are_none_of_their_business(engine: sa.Engine) -> None:
    make_pets(engine, "ON DELETE SET NULL")
    install(engine, Refer)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO pets (id, owner_id) VALUES (1, 1)")
        connection.exec_driver_sql("DELETE FROM owners")
    pets = sa.Table("pets", sa.MetaData(), autoload_with=engine)
    assert read(engine, pets, "owner_id", "owner_ref") == [(1, None)]


class Name(Refer):
    where = "plain IS NULL"
    values: ClassVar = {"plain": "owner_ref + 0"}


@pytest.mark.requires("silent_actions")
def test_a_source_that_changes_without_triggers_is_refused(engine: sa.Engine) -> None:
    make_pets(engine, "ON UPDATE CASCADE")
    make_plan(bound(engine, ReferPlainly), Settings())
    with pytest.raises(DeclarationError, match="'owner_ref' is in a foreign key with ON UPDATE"):
        make_plan(bound(engine, Name), Settings())


DISOWN = {
    "postgresql": (
        "ALTER TABLE people OWNER TO postgres",
        "GRANT ALL ON people TO app",
    ),
    "mariadb": (
        "CREATE USER poor@'%' IDENTIFIED BY 'p'",
        "GRANT CREATE, SELECT, INSERT, UPDATE, DELETE ON {database}.* TO poor@'%'",
    ),
}
OWN = {"postgresql": (), "mariadb": ("DROP USER poor@'%'",)}
MISSING = {
    "postgresql": "only its owner can remove one. Run as 'postgres', or GRANT postgres",
    "mariadb": "refuses this user the triggers of `sync` on 'people'. GRANT TRIGGER on the table",
}


@pytest.mark.requires("server")
def test_missing_privileges_are_named(database: Database, engine: sa.Engine) -> None:
    """The table is another user's, who granted what an application needs."""
    people.create(engine)
    url = engine.url
    if database.name == "mariadb":
        url = url.set(username="poor", password="p")
    options = {"no_parameters": True}  # a percent sign is just that
    admin = sa.create_engine(
        database.admin_url, isolation_level="AUTOCOMMIT", execution_options=options
    )
    with admin.connect() as connection:
        for statement in DISOWN[database.name]:
            connection.exec_driver_sql(statement.format(database=engine.url.database))
        try:
            with pytest.raises(RunFailed, match=re.escape(MISSING[database.name])):
                install(sa.create_engine(url, poolclass=sa.NullPool), FillNames)
        finally:
            for statement in OWN[database.name]:
                connection.exec_driver_sql(statement)
    admin.dispose()
    assert left_over(engine) == []


@pytest.mark.requires("transactional_ddl")
def test_a_removal_that_has_to_wait_spares_the_migration(engine: sa.Engine) -> None:
    """The gate runs in the migration's own transaction, with timeouts of its own."""
    people.create(engine)
    install(engine, FillNames)
    tries: list[float] = []

    def let_go(seconds: float) -> None:
        tries.append(seconds)
        reader.rollback()

    with engine.connect() as reader, engine.begin() as migration:
        reader.execute(sa.select(people)).all()
        migration.execute(sa.text("SET LOCAL lock_timeout = '7s'"))
        migration.execute(sa.text("CREATE TABLE earlier (id integer)"))
        assert sync.remove(FillNames, dialect_for(engine), migration, sleep=let_go)
        assert migration.execute(sa.text("SHOW lock_timeout")).scalar() == "7s"
    assert (len(tries), left_over(engine)) == (1, [])
    assert sa.inspect(engine).has_table("earlier")


def test_triggers_end_although_their_own_writes_fire_them(engine: sa.Engine) -> None:
    """`recursive_triggers` is SQLite's, and off unless the application turns it on."""
    numbers = make(
        engine,
        "numbers",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.Integer),
    )

    class StaysPending(Backfill):
        table = "numbers"
        where = numbers.c.n >= 0
        values: ClassVar = {"n": numbers.c.n + 1}
        sync = True

    install(engine, StaysPending)
    with engine.begin() as connection:
        if is_lax(engine):
            connection.exec_driver_sql("PRAGMA recursive_triggers = ON")
        connection.execute(numbers.insert(), [{"id": 1, "n": 0}])
        assert connection.execute(sa.select(numbers.c.n)).scalar() == 1
        connection.execute(numbers.update().values(n=10))
        assert connection.execute(sa.select(numbers.c.n)).scalar() == 11


def test_ctrl_c_ends_the_wait_for_the_table(engine: sa.Engine) -> None:
    people.create(engine)
    fill(engine, people, old_rows()[:50])
    budget = Budget()

    def busy(*_: Any) -> bool:
        budget.ask_to_stop("by SIGINT")
        raise TableBusy("people")

    with patch.object(sync, "install", side_effect=busy):
        ran = run(engine, FillNames, budget=budget)
    assert ran.outcome is Outcome.STOPPED
    assert ran.result.text == "stopped: by SIGINT; `backfill run fill_names` goes on"
    assert count(engine, people, people.c.full_name.is_not(None)) == 0
    complete(engine, FillNames)


@pytest.mark.requires("row_locks")  # elsewhere a cancel has to wait for the installation
def test_a_cancel_while_they_are_installed_leaves_none(engine: sa.Engine) -> None:
    people.create(engine)
    fill(engine, people, old_rows()[:50])
    run(engine, FillNames, budget=Budget(rows=10), chunk_size=10)
    dialect, install_now = dialect_for(engine), sync.install
    sync.withdraw(FillNames, dialect)

    def cancel_first(target: Target, connection: sa.Connection) -> bool:
        Store(dialect).move("fill_names", Status.CANCELLED)
        return install_now(target, connection)

    with patch.object(sync, "install", side_effect=cancel_first):
        ran = run(engine, FillNames)
    assert (ran.outcome, ran.result.text) == (Outcome.FAILED, "cancelled from outside")
    assert left_over(engine) == []


def test_runners_that_begin_at_once_make_one_set(engine: sa.Engine) -> None:
    people.create(engine)
    fill(engine, people, old_rows())
    outcomes: list[Outcome] = []
    threads = [
        Thread(target=lambda: outcomes.append(run(engine, FillNames, chunk_size=100).outcome))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert len(outcomes) == 3
    assert set(outcomes) <= {Outcome.COMPLETE, Outcome.HELD}
    assert Outcome.COMPLETE in outcomes
    fill(engine, people, [{"id": 5000, "first": "a", "last": "b"}])
    assert read(engine, people, "full_name")[-1] == "a b"


class NotItsOwn(FillNames):
    values: ClassVar = {"full_name": "CASE WHEN first REGEXP 'a' THEN first END"}


def test_functions_that_only_our_connection_has_are_refused(tmp_path: Path) -> None:
    """SQLAlchemy gives SQLite a `regexp`, and every INSERT without SQLAlchemy would fail."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'one.db'}", poolclass=sa.NullPool)
    people.create(engine)
    with pytest.raises(DeclarationError, match="'regexp' is no function of SQLite's own"):
        install(engine, NotItsOwn)


@pytest.mark.requires("schemas")
def test_a_table_with_children_is_refused(engine: sa.Engine) -> None:
    people.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE child () INHERITS (people)")
    with pytest.raises(DeclarationError, match="has child tables"):
        install(engine, FillNames)


@pytest.mark.requires("schemas")
def test_partitions_are_kept_up_with(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE people (id int PRIMARY KEY, first text, last text, full_name text,"
            " initial text) PARTITION BY RANGE (id)",
            "CREATE TABLE low PARTITION OF people FOR VALUES FROM (0) TO (100)",
        ):
            connection.exec_driver_sql(statement)
    install(engine, FillNames)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE high PARTITION OF people FOR VALUES FROM (100) TO (9000)"
        )
    fill(engine, people, [{"id": i, "first": "a", "last": "b"} for i in (1, 200)])
    assert read(engine, people, "full_name") == ["a b", "a b"]
    sync.withdraw(FillNames, dialect_for(engine))
    assert left_over(engine) == []
