"""Triggers that somebody else has on the table, in the words of each database."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import sqlalchemy as sa

_CREATE: Mapping[str, str] = {
    "sqlite": "CREATE TRIGGER {name} AFTER UPDATE ON counters WHEN {when} BEGIN {action}; END",
    "postgresql": "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN IF {when} THEN {action}; END IF; RETURN NULL; END $$;"
    " CREATE {constraint} TRIGGER {name} AFTER UPDATE ON counters {deferred}"
    " FOR EACH ROW EXECUTE FUNCTION {name}()",
    "mariadb": "CREATE TRIGGER {name} AFTER UPDATE ON counters FOR EACH ROW"
    " BEGIN IF {when} THEN {action}; END IF; END",
}
_RANDOM: Mapping[str, str] = {"postgresql": "random()", "mariadb": "RAND()"}
_RAISES: Mapping[str, Mapping[str, str]] = {
    "refused": {
        "sqlite": "SELECT RAISE(ABORT, 'refused')",
        "postgresql": "RAISE EXCEPTION 'refused'",
        "mariadb": "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused'",
    },
    "conflict": {
        "postgresql": "RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'",
        "mariadb": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'conflict'",
    },
}


def raises(kind: str, what: str) -> str:
    """A trigger's action that fails the statement: the row is `refused`, or in `conflict`."""
    return _RAISES[what][kind]


def create_trigger(
    engine: sa.Engine, name: str, action: str, *, when: str = "1 = 1", at_commit: bool = False
) -> None:
    """Let every update of a row of `counters` do something, at once or when it is committed.

    In `when`, `{random}` is a number between 0 and 1.
    """
    is_deferred = at_commit and engine.name == "postgresql"
    statement = _CREATE[engine.name].format(
        name=name,
        action=action,
        when=when.format(random=_RANDOM.get(engine.name)),
        constraint="CONSTRAINT" if is_deferred else "",
        deferred="DEFERRABLE INITIALLY DEFERRED" if is_deferred else "",
    )
    _execute(engine, statement)


def drop_trigger(engine: sa.Engine, name: str) -> None:
    _execute(engine, f"DROP TRIGGER {name}" + " ON counters" * (engine.name == "postgresql"))


def _execute(engine: sa.Engine, statement: str) -> None:
    """A percent sign is just that."""
    with engine.begin() as connection:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
