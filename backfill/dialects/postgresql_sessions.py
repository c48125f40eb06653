"""Sessions on PostgreSQL: what tells that one is ours, and whether a pooler is in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.watchdog import is_connecting

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_IS_DIRECT = "backfill_is_direct"
_AT_FIRST = "backfill: begins"
"""Until its first transaction says what it does."""


def name_at_once(engine: sa.Engine) -> None:
    """Let connections of ours be known as such from their first moment on, and leave all others
    alone: another thread, or runner, would take a nameless one for company."""
    if not sa.event.contains(engine.dialect, "do_connect", _name):
        sa.event.listen(engine.dialect, "do_connect", _name)


def _name(dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
    if not is_connecting():
        return
    if dialect.driver == "asyncpg":
        given = options.get("server_settings", {})
        options["server_settings"] = {**given, "application_name": _AT_FIRST}
    elif dialect.driver.startswith("psycopg"):
        options["application_name"] = _AT_FIRST


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
