"""Whether a connection to PostgreSQL is a session of the server, or a pooler is in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_IS_DIRECT = "backfill_is_direct"


def is_direct(connection: sa.Connection) -> bool:
    """Whether all transactions of a connection are one session's, which nobody else uses.

    A pooler answers for the server when a client connects, and makes up the number of its process
    (BackendKeyData), for cancel requests. Asks the server once a connection, in the caller's
    transaction.
    """
    known: MutableMapping[Any, Any] = connection.info
    if _IS_DIRECT not in known:
        told = _number_when_it_began(connection)
        known[_IS_DIRECT] = told is not None and told == connection.execute(_NUMBER).scalar_one()
    return bool(known[_IS_DIRECT])


def _number_when_it_began(connection: sa.Connection) -> int | None:
    """Return the server's process as the driver was told; None where it does not say."""
    adapted: Any = connection.connection.dbapi_connection
    driver: Any = connection.dialect.get_driver_connection(adapted)
    if hasattr(driver, "get_server_pid"):  # asyncpg
        return int(driver.get_server_pid())
    number = getattr(getattr(driver, "info", None), "backend_pid", None)  # psycopg, psycopg2
    return None if number is None else int(number)


_NUMBER = sa.text("SELECT pg_backend_pid()")
