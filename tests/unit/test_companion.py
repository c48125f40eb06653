"""A second reader takes errands while it is welcome, and is done without when it is lost."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from backfill.companion import Companion
from backfill.dialects.readers import Helpers, Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    import sqlalchemy as sa

PATIENCE = 10


class Place:
    """Where companions connect: how many connections are open, and what they read."""

    def __init__(self) -> None:
        self.opened = self.open = self.transactions = 0
        self.refuses: Exception | None = None
        self.is_free = True
        self.waits = threading.Event()
        self.waits.set()

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        assert self.waits.wait(PATIENCE)
        if self.refuses is not None:
            raise self.refuses
        self.opened, self.open = self.opened + 1, self.open + 1
        yield Reader(cast("sa.Connection", "second"), self.reading)
        self.open -= 1

    @contextmanager
    def reading(self) -> Iterator[None]:
        self.transactions += 1
        yield
        self.transactions -= 1

    def companion(self) -> Companion:
        def call(function: Callable[..., None], *given: Any) -> None:
            function(*given)

        return Companion(Helpers(1, self.reader, call, lambda: self.is_free))


@pytest.fixture
def place() -> Place:
    return Place()


def arrived(companion: Companion, read: Callable[[Any], Any] = str) -> Future[Any]:
    """Wait until it is there; what it answers."""
    deadline = time.monotonic() + PATIENCE
    while not companion.is_ready():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)
    return companion.begin(read)


def test_it_reads_in_a_thread_and_a_transaction_of_its_own(place: Place) -> None:
    companion = place.companion()

    def read(connection: Any) -> tuple[Any, int, int]:
        return connection, place.transactions, threading.get_ident()

    connection, transactions, thread = arrived(companion, read).result(PATIENCE)
    assert (connection, transactions) == ("second", 1)
    assert thread != threading.get_ident()
    for number in range(3):
        assert arrived(companion, lambda _, n=number: n).result(PATIENCE) == number
    companion.close()
    assert (place.opened, place.open, place.transactions) == (1, 0, 0)


def test_nobody_waits_until_it_is_connected(place: Place) -> None:
    place.waits.clear()
    companion = place.companion()
    assert not companion.is_ready()
    assert not companion.is_ready()
    place.waits.set()
    assert arrived(companion).result(PATIENCE) == "second"
    companion.close()
    assert (place.opened, place.open) == (1, 0)


def test_it_does_not_come_while_others_are_at_work(place: Place) -> None:
    place.is_free = False
    companion = place.companion()
    assert not companion.is_ready()
    companion.close()
    assert place.opened == 0


def test_it_stands_back_while_others_are_at_work(place: Place) -> None:
    companion = place.companion()
    assert arrived(companion).result(PATIENCE) == "second"
    place.is_free = False
    assert not companion.is_ready()
    place.is_free = True
    assert companion.is_ready()
    assert companion.begin(str).result(PATIENCE) == "second"
    companion.close()
    assert (place.opened, place.open) == (1, 0)


@pytest.mark.parametrize("error", [OSError("none is free"), RuntimeError("a driver's own")])
def test_it_is_done_without_where_it_gets_no_connection(place: Place, error: Exception) -> None:
    place.refuses = error
    companion = place.companion()
    assert not companion.is_ready()
    companion.close()
    assert not companion.is_ready()
    companion.close()


def test_it_goes_after_an_error(place: Place) -> None:
    companion = place.companion()

    def fail(connection: Any) -> None:
        raise ValueError(connection)

    answer = arrived(companion, fail)
    assert isinstance(answer.exception(PATIENCE), ValueError)
    assert not companion.is_ready()
    companion.close()
    assert (place.opened, place.open) == (1, 0)


def test_close_waits_for_what_it_reads(place: Place) -> None:
    companion = place.companion()
    arrived(companion).result(PATIENCE)
    goes_on = threading.Event()
    answer = arrived(companion, lambda _: goes_on.wait(PATIENCE))
    threading.Timer(0.05, goes_on.set).start()
    companion.close()
    assert answer.done()
    assert answer.result() is True
    assert place.open == 0
