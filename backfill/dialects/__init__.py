"""One file a database; `dialect_for` is the only place that looks at a database's name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import NullPool, create_engine, event

from backfill.dialects.base import BINARY_TYPES, Dialect, LogFill
from backfill.dialects.bulk import Overtaken
from backfill.dialects.columns import Columns, Place, Step
from backfill.dialects.driver_errors import PASSING, ErrorKind
from backfill.dialects.explaining import Explanation
from backfill.dialects.health import SIGNAL_LIMITS
from backfill.dialects.limits import Limits
from backfill.dialects.loops import outside_of_loops
from backfill.dialects.mysql import MariaDB, MySQL
from backfill.dialects.mysql_columns import MariaDBColumns, MySQLColumns
from backfill.dialects.postgresql import PostgreSQL
from backfill.dialects.postgresql_columns import PostgreSQLColumns
from backfill.dialects.sqlite import SQLite
from backfill.dialects.sqlite_columns import SQLiteColumns
from backfill.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

__all__ = [
    "BINARY_TYPES",
    "PASSING",
    "SIGNAL_LIMITS",
    "Columns",
    "Dialect",
    "ErrorKind",
    "Explanation",
    "Limits",
    "LogFill",
    "Overtaken",
    "Place",
    "Step",
    "columns_of",
    "dialect_for",
    "free_of_event_loops",
    "keep_place",
    "offline_check",
    "outside_of_loops",
]

_DIALECTS: dict[str, type[Dialect]] = {
    "postgresql": PostgreSQL,
    "mariadb": MariaDB,
    "mysql": MySQL,
    "sqlite": SQLite,
}
_COLUMNS: dict[str, Columns] = {
    "postgresql": PostgreSQLColumns(),
    "mariadb": MariaDBColumns(),
    "mysql": MySQLColumns(),
    "sqlite": SQLiteColumns(),
}


def dialect_for(engine: sa.Engine) -> Dialect:
    """Return the dialect for an engine's database.

    Raises ConfigurationError for a database whose leases and retries were never tested.
    """
    name = _name(engine.dialect)
    if name not in _DIALECTS:
        raise ConfigurationError(
            f"Database {name!r} is not supported; supported are {', '.join(sorted(_DIALECTS))}."
        )
    return _DIALECTS[name](engine)


def offline_check(dialect: sa.Dialect, conditions: Sequence[str], problem: str) -> str | None:
    """Return a script that fails where all conditions hold, for a database that is not there."""
    kind = _DIALECTS.get(dialect.name)
    return kind.offline_check(conditions, problem) if kind is not None else None


def columns_of(dialect: sa.Dialect) -> Columns:
    """Return how columns of live tables are changed there; by plain ALTER TABLE if unknown."""
    return _COLUMNS.get(_name(dialect), Columns())


def _name(dialect: sa.Dialect) -> str:
    is_mariadb = dialect.name == "mysql" and getattr(dialect, "is_mariadb", False)
    return "mariadb" if is_mariadb else dialect.name


def free_of_event_loops(engine: sa.Engine) -> sa.Engine:
    """Return an engine without what belongs to the event loop in which env.py used it."""
    if not engine.dialect.is_async:
        return engine
    if engine.dialect.name == "sqlite":  # its asynchronous drivers are this one, in a thread
        return create_engine(engine.url.set(drivername="sqlite"), poolclass=NullPool)
    engine.dispose(close=False)
    return engine


class _Place(NamedTuple):
    """Where a session looks for tables: how to ask for it if it was changed, how to go there."""

    query: str
    command: str


_SEARCH_PATH = _Place(
    "SELECT setting FROM pg_settings WHERE name = 'search_path' AND setting <> reset_val",
    "SET search_path TO {}",
)
_PLACES = {
    "postgresql": _SEARCH_PATH,
    "mysql": _Place("SELECT concat('`', database(), '`')", "USE {}"),
    "mariadb": _Place("SELECT concat('`', database(), '`')", "USE {}"),
}


def keep_place(connection: sa.Connection) -> sa.Engine:
    """Return a connection's engine, so that all its connections look for tables where this does.

    env.py may have chosen a schema for its own one alone, as in Alembic's recipe for tenants.
    """
    engine = connection.engine
    place = _PLACES.get(engine.dialect.name)
    found = connection.exec_driver_sql(place.query).scalar() if place else None
    if place is None or found in (None, f"`{engine.url.database}`"):
        return engine
    command = place.command.format(found)

    def go_there(driver_connection: Any, _record: Any) -> None:
        cursor = driver_connection.cursor()
        cursor.execute(command)
        cursor.close()
        driver_connection.commit()

    event.listen(engine, "connect", go_there)
    return engine
