"""A second connection that reads half of what a worker looks through."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from contextlib import ExitStack
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy as sa

    from backfill.dialects.readers import Helpers, Reader

    Errand = tuple[Future[Any], Callable[[sa.Connection], Any]]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Companion:
    """Reads beside one worker, in a thread of its own, while nobody else is at work.

    The first errand makes it connect. Until it is there, once it met an error, and in company it
    takes none: who asks reads alone.
    """

    def __init__(self, helpers: Helpers) -> None:
        self._helpers = helpers
        self._errands: SimpleQueue[Errand | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._is_there = False

    def is_ready(self) -> bool:
        """Whether it takes an errand now; makes it come where it may."""
        if not self._helpers.are_welcome():
            return False
        if self._thread is None:
            self._thread = self._started()
        return self._is_there

    def begin(self, read: Callable[[sa.Connection], T]) -> Future[T]:
        """Begin a short read, in a transaction of its own, where it is ready."""
        answer: Future[T] = Future()
        self._errands.put((answer, read))
        return answer

    def close(self) -> None:
        """Let it end, and close its connection."""
        thread, self._thread = self._thread, None
        self._errands.put(None)
        if thread is not None:
            thread.join()

    def _started(self) -> Thread:
        context, call = copy_context(), self._helpers.call
        thread = Thread(
            target=context.run, args=(call, self._serve), name="backfill-companion", daemon=True
        )
        thread.start()
        return thread

    def _serve(self) -> None:
        with ExitStack() as stack:
            try:
                reader = stack.enter_context(self._helpers.opened())
            except Exception as error:  # as where no connection is free
                logger.debug("no second reader: %s", type(error).__name__)
                return
            self._is_there = True
            while self._is_there and (errand := self._errands.get()) is not None:
                self._do(reader, *errand)
            self._is_there = False

    def _do(
        self, reader: Reader, answer: Future[Any], read: Callable[[sa.Connection], Any]
    ) -> None:
        try:
            with reader.reading():
                found = read(reader.connection)
        except BaseException as error:
            self._is_there = False
            answer.set_exception(error)
        else:
            answer.set_result(found)
