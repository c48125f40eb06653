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


class Readers:
    """One reader, and helpers, each of which opens a connection of its own in a thread.

    `opened` opens it; `call` calls a function in its thread as the driver needs it.
    """

    def __init__(
        self,
        first: Reader,
        helpers: int = 0,
        opened: Callable[[], AbstractContextManager[Reader]] | None = None,
        call: Callable[..., None] = lambda function, *given: function(*given),
    ) -> None:
        self.first = first
        self._helpers = helpers if opened is not None else 0
        self._opened = opened or (lambda: nullcontext(first))
        self._call = call

    @classmethod
    def alone(cls, connection: sa.Connection, reading: Reading = nullcontext) -> Readers:
        """Return one reader without helpers."""
        return cls(Reader(connection, reading))

    def ask(
        self, things: Iterable[T], looking: Callable[[Reader], Callable[[T], A | None]]
    ) -> A | None:
        """Return the first answer that a look at one of the things gives; None if none does.

        `looking` makes the function that a reader looks with. Each reader takes the next thing,
        so the looks begin in order. Raises the first error that one of them met.
        """
        question = _Question(things, looking)
        helpers = min(self._helpers, len(question.left) // _EACH)
        if not helpers:
            question.work_on(self.first)
            return question.answer
        with ThreadPoolExecutor(helpers, thread_name_prefix="backfill-reader") as pool:
            context = copy_context()
            futures = [
                pool.submit(context.copy().run, self._call, self._help, question)
                for _ in range(helpers)
            ]
            question.work_on(self.first)
        for future in futures:
            future.result()
        return question.answer

    def _help(self, question: _Question[Any, Any]) -> None:
        with ExitStack() as stack:
            try:
                reader = stack.enter_context(self._opened())
            except (sa.exc.DBAPIError, OSError) as error:  # as where no connection is free
                logger.debug("one reader less: %s", type(error).__name__)
                return
            question.work_on(reader)


class _Question(Generic[T, A]):
    """What is left to look at, and the answer."""

    def __init__(
        self, things: Iterable[T], looking: Callable[[Reader], Callable[[T], A | None]]
    ) -> None:
        self.left = deque(things)
        self.answer: A | None = None
        self._looking = looking

    def work_on(self, reader: Reader) -> None:
        """Look at one thing after the other, until nothing is left, or somebody has an answer."""
        look = self._looking(reader)
        try:
            while (thing := self._next()) is not None:
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
