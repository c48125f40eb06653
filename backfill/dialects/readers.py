"""Connections that read a table side by side, for one answer."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    Reading = Callable[[], AbstractContextManager[Any]]
    """Wraps each short read, in a transaction of its own where the caller has none open."""

logger = logging.getLogger(__name__)

A = TypeVar("A")
T = TypeVar("T")

_EACH = 4
"""Reads for which it is worth to open a connection."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A connection, and what wraps each read on it."""

    connection: sa.Connection
    reading: Reading = nullcontext


@dataclass(frozen=True, slots=True)
class Helpers:
    """Readers more, each in a thread of its own."""

    count: int
    opened: Callable[[], AbstractContextManager[Reader]]
    """Opens a connection for one of them."""
    call: Callable[..., None]
    """Calls a function in such a thread as the driver needs it."""
    are_welcome: Callable[[], bool]
    """Asked before each read; who is not welcome any more leaves the rest to the first one."""


class Readers:
    """One reader, and helpers where there may be some."""

    def __init__(self, first: Reader, helpers: Helpers | None = None) -> None:
        self.first = first
        self._helpers = helpers

    def ask(
        self, things: Iterable[T], looking: Callable[[Reader], Callable[[T], A | None]]
    ) -> A | None:
        """Return the first answer that a look at one of the things gives; None if none does.

        `looking` makes the function that a reader looks with. Each reader takes the next thing,
        so the looks begin in order. Raises the first error that one of them met.
        """
        question = _Question(things, looking)
        helpers = self._helpers
        count = min(helpers.count, len(question.left) // _EACH) if helpers else 0
        if not helpers or not count:
            question.work_on(self.first)
            return question.answer
        with ThreadPoolExecutor(count, thread_name_prefix="backfill-reader") as pool:
            futures = [
                pool.submit(copy_context().run, helpers.call, _help, helpers, question)
                for _ in range(count)
            ]
            question.work_on(self.first)
        for future in futures:
            future.result()
        return question.answer


def _help(helpers: Helpers, question: _Question[Any, Any]) -> None:
    if not helpers.are_welcome():
        return
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(helpers.opened())
        except (sa.exc.DBAPIError, OSError) as error:  # as where no connection is free
            logger.debug("one reader less: %s", type(error).__name__)
            return
        question.work_on(reader, helpers.are_welcome)


class _Question(Generic[T, A]):
    """What is left to look at, and the answer."""

    def __init__(
        self, things: Iterable[T], looking: Callable[[Reader], Callable[[T], A | None]]
    ) -> None:
        self.left = deque(things)
        self.answer: A | None = None
        self._looking = looking

    def work_on(self, reader: Reader, goes_on: Callable[[], bool] = lambda: True) -> None:
        """Look at one thing after the other, until nothing is left, or somebody has an answer."""
        look = self._looking(reader)
        try:
            while goes_on() and (thing := self._next()) is not None:
                answer = look(thing)
                if answer is not None:
                    self.answer = answer
                    self.left.clear()
        except BaseException:
            self.left.clear()  # so that the others stop, too
            raise

    def _next(self) -> T | None:
        try:
            return self.left.popleft()  # atomic, so that two readers never take the same
        except IndexError:
            return None
