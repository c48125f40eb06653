"""Event loops do not nest: what starts one steps out of a running one first."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def outside_of_loops(function: Callable[[], T]) -> T:
    """Call a function that may use `asyncio.run`, in a thread where a loop runs in this one.

    That loop stands still meanwhile, as for every call that is not awaited.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, function).result()
