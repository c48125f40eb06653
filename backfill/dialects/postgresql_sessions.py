"""Sessions on PostgreSQL: what tells that one is ours, whether a pooler is in between, and the
limits that its transactions have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from backfill.dialects.postgresql_triggers import LABEL
from backfill.dialects.watchdog import is_connecting

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from backfill.dialects.limits import Limits

_IS_DIRECT = "backfill_is_direct"
_KEPT = "backfill_kept_limits"
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


# -- limits --------------------------------------------------------------------------------------


def limit(connection: sa.Connection, limits: Limits) -> None:
    """Set a transaction's limits, unless its session keeps the same."""
    if connection.info.get(_KEPT) != limits:
        _tell(connection, limits, is_local=True)


def keep_limits(connection: sa.Connection, limits: Limits) -> None:
    """Let all transactions of a new session have these limits, if it is ours alone; in a
    transaction of the caller's, who closes the connection if that does not end well."""
    if is_direct(connection):
        _tell(connection, limits, is_local=False)
        connection.info[_KEPT] = limits


def _tell(connection: sa.Connection, limits: Limits, *, is_local: bool) -> None:
    connection.execute(
        _SET_BY_INDEX if limits.by_index else _SET,
        {
            "lock": _milliseconds(limits.lock_timeout),
            "statement": _milliseconds(limits.statement_timeout),
            "idle": _milliseconds(limits.idle_timeout),
            "label": limits.label,
            "pooled": not is_direct(connection),
            "awaits_disk": limits.awaits_disk,
            "is_local": is_local,
        },
    )


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def _set(
    name: str, value: str | sa.ColumnElement[Any], is_local: str = "is_local"
) -> sa.ColumnElement[Any]:
    """Return SQL that sets something to a parameter of this name, or to an expression."""
    given = sa.bindparam(value, type_=sa.Text()) if isinstance(value, str) else value
    return sa.func.set_config(name, given, sa.bindparam(is_local, type_=sa.Boolean()))


# Where there are synchronous standbys, COMMIT waits for them as it was told to: the application's
# do, and would stand behind all that we had written before.
_SYNCHRONOUS_COMMIT = sa.case(
    (
        sa.or_(
            sa.bindparam("awaits_disk", type_=sa.Boolean()),
            sa.func.current_setting("synchronous_standby_names") != "",
        ),
        sa.func.current_setting("synchronous_commit"),
    ),
    else_="off",
)
_SET = sa.select(
    _set("lock_timeout", "lock"),
    _set("statement_timeout", "statement"),
    _set("idle_in_transaction_session_timeout", "idle"),
    _set("application_name", "label", "pooled"),
    _set(LABEL, "label"),  # the same in full length, for the triggers of `sync`
    _set("synchronous_commit", _SYNCHRONOUS_COMMIT),
)
# The planner judges row values by their first column alone: where one value of it holds most of
# the table, it would scan all of it for each chunk.
_SET_BY_INDEX = _SET.add_columns(
    _set("enable_seqscan", sa.literal("off")),
    _set("enable_bitmapscan", sa.literal("off")),
)
