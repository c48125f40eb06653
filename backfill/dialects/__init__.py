"""One file a database; `dialect_for` is the only place that looks at a database's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import NullPool, create_engine

from backfill.dialects.base import BINARY_TYPES, Dialect, ErrorKind, Explanation, Limits
from backfill.dialects.bulk import Overtaken
from backfill.dialects.mysql import MariaDB, MySQL
from backfill.dialects.postgresql import PostgreSQL
from backfill.dialects.sqlite import SQLite
from backfill.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = [
    "BINARY_TYPES",
    "Dialect",
    "ErrorKind",
    "Explanation",
    "Limits",
    "Overtaken",
    "dialect_for",
    "free_of_event_loops",
]

_DIALECTS: dict[str, type[Dialect]] = {
    "postgresql": PostgreSQL,
    "mariadb": MariaDB,
    "mysql": MySQL,
    "sqlite": SQLite,
}


def dialect_for(engine: sa.Engine) -> Dialect:
    """Return the dialect for an engine's database.

    Raises ConfigurationError for a database whose leases and retries were never tested.
    """
    name = engine.dialect.name
    if name == "mysql" and getattr(engine.dialect, "is_mariadb", False):
        name = "mariadb"
    if name not in _DIALECTS:
        raise ConfigurationError(
            f"Database {name!r} is not supported; supported are {', '.join(sorted(_DIALECTS))}."
        )
    return _DIALECTS[name](engine)


def free_of_event_loops(engine: sa.Engine) -> sa.Engine:
    """Return an engine without what belongs to the event loop in which env.py used it."""
    if not engine.dialect.is_async:
        return engine
    if engine.dialect.name == "sqlite":  # its asynchronous drivers are this one, in a thread
        return create_engine(engine.url.set(drivername="sqlite"), poolclass=NullPool)
    engine.dispose(close=False)
    return engine
