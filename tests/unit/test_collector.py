"""Collector: its turns, with a fake clock; errors, missing privileges, and its thread."""

from __future__ import annotations

import time
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread, Timer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sqlalchemy as sa

from backfill import Backfill
from backfill.dialects import ErrorKind, dialect_for
from backfill.settings import Settings
from backfill.speed import throttles
from backfill.speed.collector import Collector, _collecting, throttled
from backfill.speed.readings import Budget, Reading, Unavailable, Unreadable
from backfill.speed.throttles import Throttle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill.dialects import Dialect, Limits
    from backfill.speed.readings import Reader, Signal

FREE = Reading(0.0, 1.0, 2.0, "free")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Scripted(Budget):
    """Says one thing after the other; what is an error is raised."""

    def __init__(self, *says: Reading | Exception, name: str = "a signal", every: float = 1.0):
        self.name = name
        self.every = every
        self._says = list(says)
        self.asked = 0

    def read(self, reader: Reader) -> Reading:
        said = self._says[min(self.asked, len(self._says) - 1)]
        self.asked += 1
        if isinstance(said, Exception):
            raise said
        return said

    def remedy(self, reader: Reader) -> str:
        return "GRANT pg_monitor TO app"


class Asking(Scripted):
    """Reads the database."""

    def read(self, reader: Reader) -> Reading:
        self.asked += 1
        with reader() as connection:
            connection.execute(sa.text("SELECT 1"))
        return FREE


class Watched:
    """A collector on an SQLite database, whose turns the test takes."""

    def __init__(self, *signals: Signal, dialect: Dialect | None = None) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.dialect = dialect or dialect_for(sa.create_engine("sqlite://"))
        self.throttle = Throttle(signals, clock=self.clock)
        self.collector = Collector(
            self.dialect, signals, self.throttle, self.said.append, clock=self.clock
        )

    def turns(self, *moments: float) -> None:
        for moment in moments:
            self.clock.now = moment
            self.collector.tick()


class Refusing:
    """A dialect whose database can be switched off."""

    def __init__(self) -> None:
        self._real = dialect_for(sa.create_engine("sqlite://"))
        self.is_up = False
        self.opened = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def open(self, limits: Limits) -> sa.Connection:
        self.opened += 1
        if not self.is_up:
            raise sa.exc.OperationalError(None, None, self._driver_error())
        return self._real.open(limits)

    def _driver_error(self) -> Exception:
        error: Exception = self._real.engine.dialect.loaded_dbapi.OperationalError("refused")
        return error

    @contextmanager
    def transaction(
        self, connection: sa.Connection, limits: Limits, *, write: bool = True
    ) -> Iterator[sa.Connection]:
        with self._real.transaction(connection, limits, write=write):
            if not self.is_up:
                raise sa.exc.OperationalError(None, None, self._driver_error())
            yield connection


def test_each_signal_is_read_when_it_is_due() -> None:
    often, seldom = Scripted(FREE), Scripted(FREE, every=5.0)
    Watched(often, seldom).turns(0, 0.5, 1, 2, 3, 4, 5)
    assert (often.asked, seldom.asked) == (6, 2)


def test_a_reading_reaches_the_throttle() -> None:
    watched = Watched(Scripted(Reading(3.0, 1.0, 2.0, "3 of 2")))
    watched.turns(0)
    assert (watched.throttle.verdict().stops, watched.throttle.verdict().reason) == (True, "3 of 2")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Unreadable("replica 10.0.0.5 is no replica"), "replica 10.0.0.5 is no replica"),
        (RuntimeError("with a secret"), "RuntimeError at test_collector.py"),
    ],
)
def test_an_error_is_told_when_the_reading_is_stale(error: Exception, told: str) -> None:
    watched = Watched(Scripted(FREE, error))
    watched.turns(0, 1, 10, 15)
    assert not watched.throttle.verdict().stops
    watched.turns(16)
    assert watched.throttle.verdict().stops
    assert f"not known for 16 s: {told}" in watched.throttle.verdict().reason
    assert "secret" not in watched.throttle.verdict().reason


def test_it_recovers_from_errors() -> None:
    watched = Watched(Scripted(FREE, *[RuntimeError()] * 20, FREE))
    watched.turns(*range(21))
    assert watched.throttle.verdict().stops
    watched.turns(21)
    assert not watched.throttle.verdict().stops


def test_what_can_never_be_read_is_said_once_with_its_remedy() -> None:
    hidden = Scripted(Unavailable(), name="replica lag")
    secret = Scripted(Unavailable(), name="active sessions")
    watched = Watched(hidden, Scripted(FREE), secret)
    watched.turns(0, 1, 2)
    assert watched.said == [
        "not watched, since it cannot be read here: replica lag, active sessions;"
        " to have it watched: GRANT pg_monitor TO app"
    ]
    assert (hidden.asked, secret.asked) == (1, 1)
    assert not watched.throttle.verdict().stops


@pytest.mark.parametrize("kind", [ErrorKind.RIGHTS, ErrorKind.SCHEMA])
def test_a_privilege_or_view_that_is_missing_is_the_same(kind: ErrorKind) -> None:
    signal = Scripted(RuntimeError())
    watched = Watched(signal)
    watched.dialect.error_kind = lambda error: kind  # type: ignore[method-assign]
    watched.turns(0, 1)
    assert signal.asked == 1
    assert "GRANT pg_monitor" in watched.said[0]


class Noting(Asking):
    """Notes the transactions that have begun when it is read, and whether one is open then."""

    def __init__(self, engine: sa.Engine, *, is_brief: bool) -> None:
        super().__init__()
        self.is_brief = is_brief
        self.seen: list[tuple[int, bool]] = []
        self._begun = 0
        self._is_open = False
        sa.event.listen(engine, "begin", lambda _: self._note(is_open=True))
        sa.event.listen(engine, "commit", lambda _: self._note(is_open=False))
        sa.event.listen(engine, "rollback", lambda _: self._note(is_open=False))

    def _note(self, *, is_open: bool) -> None:
        self._begun += is_open
        self._is_open = is_open

    def read(self, reader: Reader) -> Reading:
        self.seen.append((self._begun, self._is_open))
        return super().read(reader)


def test_brief_reads_of_a_turn_are_one_transaction_and_nothing_is_open_beside_others() -> None:
    dialect = dialect_for(sa.create_engine("sqlite://"))
    signals = [Noting(dialect.engine, is_brief=is_brief) for is_brief in (True, True, False, True)]
    watched = Watched(*signals, dialect=dialect)
    watched.turns(0)
    assert [one.seen for one in signals] == [[(0, False)], [(1, True)], [(1, False)], [(2, False)]]
    watched.turns(1)
    assert signals[0].seen[1] == (3, False), "the turn before has ended its transaction"


def test_an_error_ends_what_brief_reads_share() -> None:
    class Failing(Asking):
        def read(self, reader: Reader) -> Reading:
            with reader() as connection:
                connection.execute(sa.text("SELECT nothing FROM nowhere"))
            raise AssertionError

    dialect: Any = Refusing()
    dialect.is_up = True
    before, failing, after = Asking(name="before"), Failing(name="failing"), Asking(name="after")
    watched = Watched(before, failing, after, dialect=dialect)
    watched.turns(0)
    assert (before.asked, after.asked, dialect.opened) == (1, 1, 2)
    assert "failing" in watched.throttle.verdict().reason or watched.said


def test_a_missing_connection_is_asked_for_once_a_turn() -> None:
    dialect: Any = Refusing()
    signals = [Asking(name=name) for name in "abc"]
    watched = Watched(*signals, dialect=dialect)
    watched.turns(0, 1)
    assert dialect.opened == 2
    assert "is not known yet: the database accepts no conn" in watched.throttle.verdict().reason


def test_a_wrong_password_drops_no_signal() -> None:
    dialect: Any = Refusing()
    dialect.error_kind = lambda error: (
        ErrorKind.RIGHTS if isinstance(error, sa.exc.DBAPIError) else ErrorKind.UNKNOWN
    )
    watched = Watched(Asking(), dialect=dialect)
    watched.turns(0)
    assert watched.throttle.verdict().stops
    assert watched.said == []


def test_a_lost_connection_is_replaced() -> None:
    dialect: Any = Refusing()
    dialect.is_up = True
    watched = Watched(Asking(), dialect=dialect)
    watched.turns(0, 1, 2)
    assert dialect.opened == 1
    dialect.is_up = False
    watched.turns(3, 20)
    assert watched.throttle.verdict().stops
    dialect.is_up = True
    watched.turns(21)
    assert not watched.throttle.verdict().stops


def test_its_thread_ends_when_it_is_told_to() -> None:
    asked = Flag()

    class Telling(Scripted):
        def read(self, reader: Reader) -> Reading:
            asked.set()
            return FREE

    signals: Sequence[Signal] = [Telling(every=0.01)]
    watched = Collector(
        dialect_for(sa.create_engine("sqlite://")), signals, Throttle(signals), print
    )
    thread = Thread(target=watched.run)
    thread.start()
    assert asked.wait(10)
    asked.clear()
    assert asked.wait(10)  # again and again
    watched.end()
    thread.join(10)
    assert not thread.is_alive()


def test_its_thread_ends_when_nothing_is_left_to_watch() -> None:
    signals = [Scripted(Unavailable())]
    said: list[str] = []
    throttle = Throttle(signals)
    throttle.begin()
    watched = Collector(dialect_for(sa.create_engine("sqlite://")), signals, throttle, said.append)
    watched.run()
    assert_answers_at_once(throttle)
    assert len(said) == 1


def test_where_nothing_is_watched_nothing_is_waited_for() -> None:
    class CountUp(Backfill):
        table = "things"
        values: ClassVar = {"n": "n + 1"}

    target = SimpleNamespace(
        declaration=CountUp,
        dialect=dialect_for(sa.create_engine("sqlite://")),
        table=sa.Table("things", sa.MetaData()),
    )
    run = SimpleNamespace(name="count_up")
    with throttled(target, None, run, Settings(), print) as throttle:  # type: ignore[arg-type]
        assert_answers_at_once(throttle)


def assert_answers_at_once(throttle: Throttle) -> None:
    began = time.monotonic()
    throttle.verdict()
    assert time.monotonic() - began < 2


class Silent(Scripted):
    """Does not answer before it is let go."""

    stands_alone = True

    def __init__(self) -> None:
        super().__init__(FREE, name="a silent one")
        self.may_answer = Flag()

    def read(self, reader: Reader) -> Reading:
        self.may_answer.wait(30)
        return super().read(reader)


def test_one_that_keeps_silent_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the first verdict, for some seconds: what nobody knows yet stops in doubt."""
    monkeypatch.setattr(throttles, "_FIRST_SECONDS", 0.3)
    silent, other = Silent(), Scripted(FREE, every=0.01)
    throttle = Throttle([silent, other])
    with _collecting(dialect_for(sa.create_engine("sqlite://")), [silent, other], throttle, print):
        verdict = throttle.verdict()
        assert (verdict.stops, verdict.reason) == (True, "a silent one is not known yet")
        asked = other.asked
        time.sleep(0.2)
        assert other.asked > asked > 0
        silent.may_answer.set()
        while throttle.verdict().stops:
            time.sleep(0.01)


def test_the_first_verdict_waits_for_all() -> None:
    silent, other = Silent(), Scripted(FREE)
    throttle = Throttle([silent, other])
    with _collecting(dialect_for(sa.create_engine("sqlite://")), [silent, other], throttle, print):
        Timer(0.2, silent.may_answer.set).start()
        assert not throttle.verdict().stops
