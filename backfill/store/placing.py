"""Where our tables are: in the schema that a connection knows of, or where it finds all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from backfill.dialects import dialect_for
from backfill.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlalchemy as sa

    Place = TypeVar("Place", sa.Engine, sa.Connection)

_OPTION = "backfill_state_schema"
"""Of a connection's execution options; those of an engine come to all its connections."""


def keep_in(place: Place, schema: str | None) -> Place:
    """Return an engine, or a connection, that finds our tables in a schema; without one, as it is.

    Raises ConfigurationError where the database has no schemas.
    """
    if schema is None:
        return place
    if not dialect_for(place.engine).has_schemas:
        raise ConfigurationError(
            f"`state_schema` is {schema!r}, and this database has no schemas. Take it out of the"
            " configuration: our tables are in the database's own file."
        )
    return place.execution_options(**{_OPTION: schema})


def schema_of(connection: sa.Connection) -> str | None:
    """Return the schema of our tables; None: where the connection looks for tables."""
    schema: str | None = connection.get_execution_options().get(_OPTION)
    return schema


def execute(
    connection: sa.Connection, statement: sa.Executable, parameters: Any = None
) -> sa.CursorResult[Any]:
    """Execute a statement on our tables, and no others."""
    schema = schema_of(connection)
    if schema is None:
        return connection.execute(statement, parameters)
    options: Any = {"schema_translate_map": {None: schema}}
    return connection.execute(statement, parameters, execution_options=options)
