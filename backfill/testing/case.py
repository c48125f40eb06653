"""What a user's test holds in its hands: a database at a backfill's revision."""

from __future__ import annotations

import random
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from backfill import tables
from backfill.discovery import discover, named
from backfill.testing import schema
from backfill.testing.checks import Check
from backfill.testing.contents import Tables, with_nulls
from backfill.testing.mortal import mortal
from backfill.testing.trials import Runs, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from backfill.declaration import Backfill
    from backfill.project import Project

T = TypeVar("T")

_KILLS = 4
_SEEDS = 1_000_000


@contextmanager
def new_case(
    name: str, *, config: str | None = None, url: str | None = None, directory: Path
) -> Iterator[Case]:
    """Make a database, bring it to the revision of the backfill `name`, and remove it afterwards.

    `config` is Alembic's configuration file, by default `$ALEMBIC_CONFIG` or `alembic.ini` here.
    Without a `url` the database is an SQLite file in `directory`; with one, another database on
    that server. Raises BackfillError.
    """
    with schema.fresh_database(url, directory) as place, ExitStack() as stack:
        project = schema.load_for(config, place, stack)
        try:
            (declared,) = named(discover(project.script, frozenset()), [name])
            version_table = schema.upgrade(project, declared.revision)
            yield Case(project, declared.declaration, version_table)
        finally:
            project.engine.dispose()


class Case:
    """A backfill on a database of its own, whose schema is that of the backfill's revision."""

    def __init__(self, project: Project, declaration: type[Backfill], version_table: str) -> None:
        self._project = project
        self._version_table = version_table
        self._declaration = declaration
        self._dialect = mortal(project.engine)
        self._runs = Runs(project.engine, declaration)
        self._checks = 0

    # -- rows ------------------------------------------------------------------------------

    def insert(self, table: str, *rows: Mapping[str, Any], **values: Any) -> None:
        """Insert rows: mappings of columns to values, or one row by its columns' names."""
        given = [*map(dict, rows), *([values] if values else [])]
        into = self._tables.named(table)

        def insert(connection: sa.Connection) -> None:
            for row in given:  # one by one, since each may have other columns
                connection.execute(into.insert().values(with_nulls(row)))

        self._transact(insert)

    def clear(self, *tables: str) -> None:
        """Delete all rows of tables, in this order: what the migrations themselves have put in."""
        found = [self._tables.named(table) for table in tables]

        def clear(connection: sa.Connection) -> None:
            for table in found:
                connection.execute(table.delete())

        self._transact(clear)

    def rows(self, table: str) -> Sequence[Any]:
        """Return a table's rows in the order of its primary key, with columns as attributes."""
        found = self._tables.named(table)
        return self.execute(sa.select(found).order_by(*found.primary_key.columns))

    def execute(self, statement: Any, parameters: Any = None) -> Sequence[Any]:
        """Execute SQL text or an SQLAlchemy statement, and commit; the rows that it returns."""
        what = sa.text(statement) if isinstance(statement, str) else statement

        def execute(connection: sa.Connection) -> Sequence[Any]:
            found = connection.execute(what, parameters)
            return found.all() if found.returns_rows else []

        return self._transact(execute)

    # -- running ---------------------------------------------------------------------------

    def run(self, chunk_size: int | None = None) -> None:
        """Run the backfill. Raises AssertionError unless it is complete then."""
        __tracebackhide__ = True
        self._runs.complete(Trial("", chunk_size))

    def upgrade(self, revision: str = "head") -> None:
        """Migrate on, through gates that the backfill has to open: as a deployment would.

        What such a revision raises is raised here.
        """
        schema.upgrade(self._project, revision)
        self.__dict__.pop("_tables", None)

    def check(
        self, *, seed: int | None = None, kills: int = _KILLS, ignore: Collection[str] = ()
    ) -> None:
        """Run the backfill in several ways on the rows that are there now, and compare.

        All rows in one chunk, a few in each, one in each; killed `kills` times before or after a
        commit and resumed; and, with a `where`, once more when it is complete. Each must be
        complete and leave the same rows in every table. `ignore` names columns
        (`"users.updated_at"`) which may differ, such as times. `seed` repeats the kills of a
        check that failed. Raises AssertionError; afterwards the rows are as the backfill has left
        them.
        """
        __tracebackhide__ = True
        seed = random.SystemRandom().randrange(_SEEDS) if seed is None else seed
        self._checks += 1
        check = Check(
            self._declaration, self._runs, self._tables, self._transact, ignore, self._checks
        )
        check.run(kills, seed)

    # -- small things ----------------------------------------------------------------------

    @cached_property
    def _tables(self) -> Tables:
        dotted = self._declaration.table.rpartition(".")[0]
        schemas = {None, self._declaration.schema or dotted or None}
        without = {*tables.NAMES, self._version_table}
        return self._transact(lambda connection: Tables(connection, schemas, without))

    def _transact(self, function: Callable[[sa.Connection], T]) -> T:
        def transact() -> T:
            with self._project.engine.begin() as connection:
                return function(connection)

        return self._dialect.call(transact)
