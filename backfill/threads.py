"""Workers in threads of one process, side by side."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

from backfill.budget import Stopped
from backfill.errors import RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from backfill.budget import Budget
    from backfill.workers import Worker

_LOOK_SECONDS = 0.2


def work_in_threads(new_worker: Callable[[], Worker], count: int, budget: Budget) -> None:
    """Let so many workers walk side by side. Raises the worst error that one of them met."""
    workers = [new_worker() for _ in range(count)]
    with ThreadPoolExecutor(count, thread_name_prefix="backfill") as pool:
        futures = [
            # In the caller's context: a transform may ask for Flask's `current_app`.
            pool.submit(copy_context().run, partial(worker.dialect.call, worker.work))
            for worker in workers
        ]
        while wait(futures, timeout=_LOOK_SECONDS, return_when=FIRST_EXCEPTION).not_done:
            if any(f.done() and f.exception() for f in futures):
                budget.break_off()
    errors = [e for e in (future.exception() for future in futures) if e is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, Stopped)):
        if not isinstance(error, Exception):
            raise RunFailed(
                f"the declaration's code ended the worker ({type(error).__name__}); it must raise"
                " an ordinary error instead."
            ) from error
        raise error
