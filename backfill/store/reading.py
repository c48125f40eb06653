"""What is read of our tables was written by this version, or is told to be something else."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from backfill.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def as_written(read: Callable[P, T]) -> Callable[P, T]:
    """Let a function that reads our tables raise StateError for what it cannot understand."""

    @wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise StateError(
                "The tables backfill_* hold something that this version does not write: somebody"
                " edited them, or a newer version of backfill wrote it. Take that back; or"
                " `backfill cancel NAME`, and run it again from its beginning."
            ) from error

    return reading
