"""Who else is there while a run works: an application that uses the same table, and an
administrator who looks at the server's own views of sessions and locks.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.databases import Database

PATIENCE_SECONDS = 30.0


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in {seconds} s"
        time.sleep(0.002)


@contextmanager
def errors_kept_from_the_run() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Give what does a test's things at a moment of a run, and raise their first error at the end:
    the run would take it for one of its own, and try again."""
    errors: list[Exception] = []

    def do(something: Callable[[], object]) -> None:
        try:
            something()
        except Exception as error:
            errors.append(error)

    yield do
    if errors:
        raise errors[0]


@contextmanager
def after_each_statement(
    engine: sa.Engine, look: Callable[[sa.Connection, str], object]
) -> Iterator[None]:
    """Call a function whenever a statement of this engine has been executed, with it and its
    connection: in that thread, and with all the locks that are held by then.
    """
    with errors_kept_from_the_run() as do:

        def after(connection: sa.Connection, _cursor: Any, text: str, *_: Any) -> None:
            do(lambda: look(connection, text))

        sa.event.listen(engine, "after_cursor_execute", after)
        try:
            yield
        finally:
            sa.event.remove(engine, "after_cursor_execute", after)


# -- the application -----------------------------------------------------------------------------


class Neighbour:
    """An application that uses the table too, and waits for 3 s at most: more than enough for what
    is in passing, and in vain for a run that a test holds where it is. Its statements go
    through no engine that a test watches.
    """

    impatient: ClassVar[str]
    """What makes a session wait no longer."""
    whole_table: ClassVar[str]
    """Takes a table for oneself alone."""
    given_back: ClassVar[str] = "ROLLBACK"
    isolation_level: ClassVar[str] = "READ COMMITTED"

    def __init__(self, database: Database, table: str) -> None:
        self._engine = database.engine().execution_options(isolation_level=self.isolation_level)
        self._table = table

    @contextmanager
    def session(self, *, is_patient: bool = False) -> Iterator[sa.Connection]:
        """A connection in a transaction that is committed at the end."""
        with self._engine.connect() as connection:
            if not is_patient:
                connection.exec_driver_sql(self.impatient)
            yield connection
            connection.commit()

    def execute(self, statement: str) -> None:
        with self.session() as connection:
            connection.exec_driver_sql(statement)

    def keys(self) -> set[int]:
        return self._keys("")

    def locked_keys(self) -> set[int]:
        """The keys of the rows that the application could not lock now."""
        return self.keys() - self._keys("FOR UPDATE SKIP LOCKED")

    def keys_closed_to_children(self) -> set[int]:
        """The keys of the rows to which no foreign key could be checked now."""
        return self.keys() - self._keys("FOR KEY SHARE SKIP LOCKED")

    @contextmanager
    def alone(self, *, is_patient: bool = False) -> Iterator[sa.Connection]:
        """Have the whole table for oneself: nobody holds a lock on it or its rows, nor reads it."""
        with self.session(is_patient=is_patient) as connection:
            connection.exec_driver_sql(self.whole_table.format(self._table))
            try:
                yield connection
            finally:
                connection.exec_driver_sql(self.given_back)

    def _keys(self, lock: str) -> set[int]:
        with self.session() as connection:
            found = connection.exec_driver_sql(f"SELECT id FROM {self._table} {lock}")
            return set(found.scalars())


class PostgreSQLNeighbour(Neighbour):
    impatient = "SET lock_timeout = '3s'"
    whole_table = "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE"


class MariaDBNeighbour(Neighbour):
    impatient = "SET innodb_lock_wait_timeout = 3, lock_wait_timeout = 3"
    whole_table = "LOCK TABLES {} WRITE"
    given_back = "UNLOCK TABLES"


class SQLiteNeighbour(Neighbour):
    impatient = "PRAGMA busy_timeout = 3000"
    whole_table = "BEGIN EXCLUSIVE"
    isolation_level = "AUTOCOMMIT"  # of the driver: BEGIN is ours to say


NEIGHBOURS: Mapping[str, type[Neighbour]] = {
    "postgresql": PostgreSQLNeighbour,
    "mariadb": MariaDBNeighbour,
    "sqlite": SQLiteNeighbour,
}


# -- the administrator ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """A session of the test's database, as the server shows it."""

    name: str
    """What tells an administrator who it is; MariaDB shows it while a statement runs."""
    is_open: bool
    """It is in a transaction, or has a snapshot."""
    is_waiting: bool = False
    """For a lock."""
    locks: frozenset[str] = field(default=frozenset())
    """Modes of its locks on the table, and of those on its rows that the server shows."""


class Administrator:
    """Looks at the server's views, on a connection of its own."""

    weakest: ClassVar[frozenset[str]]
    """Modes that keep nobody from reading, writing other rows or inserting."""
    writing: ClassVar[str]
    """The mode that whoever writes has to take."""
    isolation: ClassVar[str]
    """Asks a session for the isolation level of its transaction."""
    cursors: ClassVar[str] = ""
    """Asks a session for its open cursors."""

    def __init__(self, database: Database, table: str) -> None:
        engine = sa.create_engine(database.admin_url, poolclass=sa.NullPool)
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._table = table

    def close(self) -> None:
        self._connection.close()

    def sessions(self) -> Sequence[Session]:
        """All sessions of the database, but for this one."""
        raise NotImplementedError

    @contextmanager
    def serializable_by_default(self) -> Iterator[None]:
        """Let the server begin transactions as strictly as it can, where nobody says otherwise."""
        raise NotImplementedError
        yield


class PostgreSQLAdministrator(Administrator):
    weakest = frozenset({"AccessShareLock", "RowShareLock", "RowExclusiveLock"})
    writing = "RowExclusiveLock"
    isolation = "SHOW transaction_isolation"
    cursors = "SELECT name FROM pg_cursors WHERE name <> ''"
    _sessions = sa.text(
        "SELECT application_name, state <> 'idle' OR xact_start IS NOT NULL"
        " OR backend_xmin IS NOT NULL OR backend_xid IS NOT NULL AS is_open,"
        " wait_event_type = 'Lock' AS is_waiting,"
        " ARRAY(SELECT DISTINCT mode FROM pg_locks WHERE pg_locks.pid = a.pid"
        "  AND locktype = 'relation'"  # and not while it extends the file, or waits for a row
        "  AND relation = CAST(:table AS regclass)) AS modes"
        " FROM pg_stat_activity AS a WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )

    def sessions(self) -> Sequence[Session]:
        found = self._connection.execute(self._sessions, {"table": self._table})
        return [Session(name, o, bool(w), frozenset(modes)) for name, o, w, modes in found]

    @contextmanager
    def serializable_by_default(self) -> Iterator[None]:
        """For this database, which is the test's own."""
        name = self._connection.engine.url.database
        self._connection.exec_driver_sql(
            f"ALTER DATABASE {name} SET default_transaction_isolation = serializable"
        )
        yield


class MariaDBAdministrator(Administrator):
    """Reads InnoDB's monitor: it tells of every lock, and now. (`INNODB_TRX` is a copy that is
    made anew only if nobody has read it for 0.1 s, and `INNODB_LOCKS` shows conflicts alone.)
    """

    weakest = frozenset({"IS", "IX", "X rec but not gap", "S rec but not gap"})
    writing = "IX"
    isolation = "SELECT @@tx_isolation"
    _transaction = re.compile(r"^---TRANSACTION .*?(?=^---|\Z)", re.MULTILINE | re.DOTALL)
    _thread = re.compile(r"^MariaDB thread id (\d+)", re.MULTILINE)
    _label = re.compile(r"/\* (.*?) \*/")
    _sessions = sa.text(
        "SELECT id, COALESCE(info, ''), COALESCE(state, '')"
        " FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    )

    def __init__(self, database: Database, table: str) -> None:
        super().__init__(database, table)
        self._connection.exec_driver_sql("SET GLOBAL innodb_status_output_locks = ON")

    def sessions(self) -> Sequence[Session]:
        locks = self._locks()
        return [
            Session(
                name=(self._label.findall(text) or [""])[0],
                is_open=number in locks,
                is_waiting="lock" in state,
                locks=locks.get(number, frozenset()),
            )
            for number, text, state in self._connection.execute(self._sessions)
        ]

    def _locks(self) -> Mapping[int, frozenset[str]]:
        """The modes of the locks on the table, by thread; all that have a transaction."""
        shown = self._connection.exec_driver_sql("SHOW ENGINE INNODB STATUS").one()[-1]
        table = rf"of table `\w+`\.`{self._table}` .*?lock[_ ]mode (\w+)(?: locks )?(.*)$"
        on_rows = re.compile(rf"^RECORD LOCKS .* {table}", re.MULTILINE)
        on_table = re.compile(rf"^TABLE LOCK {table.removeprefix('of ')}", re.MULTILINE)
        found = {}
        for text in self._transaction.findall(shown.partition("LIST OF TRANSACTIONS")[2]):
            thread = self._thread.search(text)
            if thread and ", not started" not in text.partition("\n")[0]:
                modes = on_table.findall(text) + on_rows.findall(text)
                found[int(thread[1])] = frozenset(" ".join(mode).strip() for mode in modes)
        return found

    @contextmanager
    def serializable_by_default(self) -> Iterator[None]:
        before = self._connection.exec_driver_sql("SELECT @@GLOBAL.tx_isolation").scalar_one()
        self._connection.exec_driver_sql("SET GLOBAL tx_isolation = 'SERIALIZABLE'")
        try:
            yield
        finally:
            self._connection.exec_driver_sql(f"SET GLOBAL tx_isolation = '{before}'")


ADMINISTRATORS: Mapping[str, type[Administrator]] = {
    "postgresql": PostgreSQLAdministrator,
    "mariadb": MariaDBAdministrator,
}
