"""Several readers look at each thing once, and agree on one answer."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from backfill.dialects.readers import Helpers, Reader, Readers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 10


def reader(name: str) -> Reader:
    """Nothing is read here, so a name will do for its connection."""
    return Reader(cast("sa.Connection", name))


def call(function: Callable[..., None], *given: Any) -> None:
    function(*given)


class Crowd:
    """A reader with helpers, and how many connections these opened and closed."""

    def __init__(
        self,
        helpers: int,
        *,
        refuses: Exception | None = None,
        are_welcome: Callable[[], bool] = lambda: True,
    ) -> None:
        self.opened = self.closed = 0
        self.refuses = refuses
        self.readers = Readers(reader("first"), Helpers(helpers, self.another, call, are_welcome))

    @contextmanager
    def another(self) -> Iterator[Reader]:
        if self.refuses is not None:
            raise self.refuses
        self.opened += 1
        yield reader("helper")
        self.closed += 1


@given(
    things=st.lists(st.integers(0, 9), max_size=40),
    helpers=st.integers(0, 4),
    wanted=st.integers(0, 9),
)
def test_each_thing_is_looked_at_once_until_there_is_an_answer(
    things: list[int], helpers: int, wanted: int
) -> None:
    crowd, seen = Crowd(helpers), list[int]()

    def looking(_reader: Reader) -> Callable[[int], str | None]:
        def look(thing: int) -> str | None:
            seen.append(thing)
            return "found" if thing == wanted else None

        return look

    answer = crowd.readers.ask(things, looking)
    assert answer == ("found" if wanted in things else None)
    if wanted not in things:
        assert sorted(seen) == sorted(things)
    assert crowd.opened == crowd.closed <= helpers


def test_helpers_look_while_the_first_one_does() -> None:
    both = threading.Barrier(2, timeout=PATIENCE)
    names = set[Any]()

    def looking(of: Reader) -> Callable[[int], None]:
        def look(_thing: int) -> None:
            if of.connection not in names:
                names.add(of.connection)
                both.wait()

        return look

    Crowd(1).readers.ask(range(8), looking)
    assert names == {"first", "helper"}


@pytest.mark.parametrize("where", ["first", "helper"])
def test_error_of_one_ends_all(where: str) -> None:
    met = threading.Event()
    after = list[int]()

    def looking(of: Reader) -> Callable[[int], None]:
        def look(thing: int) -> None:
            if cast("str", of.connection) == where:
                met.set()
                raise ValueError
            assert met.wait(PATIENCE)
            time.sleep(0.001)  # so that the other one can say what it met
            after.append(thing)

        return look

    with pytest.raises(ValueError):
        Crowd(1).readers.ask(range(1000), looking)
    assert len(after) < 1000 - 1


def test_helper_that_gets_no_connection_is_done_without() -> None:
    refusal = sa.exc.OperationalError(None, None, Exception("too many connections"))
    crowd, seen = Crowd(3, refuses=refusal), list[int]()

    def looking(_reader: Reader) -> Callable[[int], None]:
        return seen.append

    assert crowd.readers.ask(range(50), looking) is None
    assert seen == list(range(50))


@given(helpers=st.integers(1, 4), asked=st.integers(0, 30))
def test_helpers_that_are_not_welcome_any_more_leave_the_rest(helpers: int, asked: int) -> None:
    answers = iter([True] * asked)
    crowd = Crowd(helpers, are_welcome=lambda: next(answers, False))
    seen = list[tuple[Any, int]]()

    def looking(of: Reader) -> Callable[[int], None]:
        def look(thing: int) -> None:
            seen.append((of.connection, thing))

        return look

    assert crowd.readers.ask(range(50), looking) is None
    assert sorted(thing for _, thing in seen) == list(range(50))
    assert sum(name == "helper" for name, _ in seen) <= asked
