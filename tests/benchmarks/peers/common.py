"""What every peer shares: where the database is, when the clock runs, and the job itself."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Ways = Mapping[str, Callable[["Address"], None]]

T = TypeVar("T")

CHUNK_SET = 10_000
"""Rows: from here on a loop is as fast as one UPDATE."""
CHUNKS = (1_000, 10_000, 50_000)
"""Rows that people choose, where others use the table meanwhile."""
CHUNK_ROWS = 5_000
"""Rows that Python transforms at once: more gain nothing."""
CHUNK_ORM = 1_000
"""Rows: from 250 to 2,000 ORMs are equally fast."""


class Address(NamedTuple):
    """Where a database is, and who may use it."""

    url: str
    """As SQLAlchemy takes it."""
    dialect: str
    driver: str
    user: str
    password: str
    host: str
    port: int
    database: str
    """Its name, or its file."""

    @classmethod
    def parse(cls, url: str) -> Address:
        parts = urlsplit(url)
        dialect, _, driver = parts.scheme.partition("+")
        return cls(
            url=url,
            dialect=dialect,
            driver=driver,
            user=parts.username or "",
            password=unquote(parts.password or ""),
            host=parts.hostname or "",
            port=parts.port or 0,
            database=unquote(parts.path.removeprefix("/")),
        )


def main(ways: Ways) -> None:
    """Fill the column in the way that the command line names, at the URL that it gives."""
    way, url = sys.argv[1:]
    ways[way](Address.parse(url))


@contextlib.contextmanager
def working() -> Iterator[None]:
    """What is inside is the work; connecting comes before."""
    tell("started")
    yield
    tell("finished")


def tell(event: str) -> None:
    print(json.dumps({"event": event}), flush=True)


def full_name(first: str, last: str) -> str:
    """The job, where Python does it."""
    return f"{first} {last}"


def batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def transformed(rows: Iterable[Any]) -> list[tuple[int, str]]:
    """The key and the new value of each row that was read as (id, first, last)."""
    return [(key, full_name(first, last)) for key, first, last in rows]
