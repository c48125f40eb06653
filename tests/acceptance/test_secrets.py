"""No password and no value of a row is in anything that we print, log, store or call ourselves."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.acceptance.counting import wait_until
from tests.canaries import IN_ROWS, Cage, password_canary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.databases import Database
    from tests.projects import AlembicProject

ROWS = 40
BAD = 7

TABLE = f'''
from backfill import Backfill


def upgrade():
    items = op.create_table(
        "items",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("given", sa.String(60), nullable=False),
        sa.Column("checked", sa.String(60)),
        sa.Column("code", sa.String(60)),
        sa.Column("n", sa.Integer),
        sa.Column("slow", sa.Integer),
        sa.CheckConstraint("checked NOT LIKE '%refused%'", name="no_refused"),
        sa.UniqueConstraint("code", name="one_code"),
    )
    op.bulk_insert(items, [
        {{"id": i, "given": f"{IN_ROWS} refused" if i % {BAD} == 0 else f"{IN_ROWS} {{i}}"}}
        for i in range(1, {ROWS + 1})
    ])


class Checked(Backfill):
    """A CHECK refuses some."""

    table = "items"
    where = "checked IS NULL"
    values = {{"checked": "given"}}


class Coded(Backfill):
    """A unique constraint refuses some."""

    table = "items"
    where = "code IS NULL"
    reads = ["given"]
    writes = ["code"]

    def transform(self, row):
        return {{"code": row.given}}


class Numbered(Backfill):
    """Text for a column of numbers: SQLite takes it, and the others refuse it."""

    table = "items"
    where = "n IS NULL"
    reads = ["given"]
    writes = ["n"]

    def transform(self, row):
        return {{"n": row.given if "refused" in row.given else row.id}}


class Raising(Backfill):
    """Some rows raise."""

    table = "items"
    reads = ["given"]
    writes = ["slow"]

    def transform(self, row):
        if "refused" in row.given:
            raise ValueError(f"cannot do {{row.given}}")
        return {{"slow": None}}
'''
BROKEN = f'''
from backfill import Backfill


class Bug(Backfill):
    """Every row raises, with causes that carry values, too."""

    table = "items"
    reads = ["given"]
    writes = ["slow"]
    max_failures = 3

    def transform(self, row):
        try:
            int(row.given)
        except ValueError as error:
            raise KeyError(row.given) from error


class Misnamed(Backfill):
    """A value is where a column should be."""

    table = "items"
    reads = ["given"]
    writes = ["slow"]

    def transform(self, row):
        return {{row.given: 1}}


class Odd(Backfill):
    """What it returns is no mapping."""

    table = "items"
    reads = ["given"]
    writes = ["slow"]

    def transform(self, row):
        return row.given


class Applied(Backfill):
    """Statements of its own that fail, and name what they met."""

    table = "items"

    def apply(self, connection, chunk):
        (given,) = connection.execute(sa.text("SELECT max(given) FROM items")).one()
        raise RuntimeError(f"cannot do {{given}}")


class Inserted(Backfill):
    """A statement of its own that the database refuses, with its parameters."""

    table = "items"

    def apply(self, connection, chunk):
        statement = sa.text("INSERT INTO items (id, given) VALUES (1, :given)")
        connection.execute(statement, {{"given": "{IN_ROWS} twice"}})


class Drifted(Backfill):
    """The column that it writes is gone when the second chunk comes."""

    table = "items"
    chunk_size = 10
    reads = ["given"]
    writes = ["n"]

    def transform(self, row):
        if row.id == 11:
            import os
            engine = sa.create_engine(os.environ["TEST_URL"])
            with engine.begin() as connection:
                connection.execute(sa.text("ALTER TABLE items RENAME COLUMN given TO taken"))
            engine.dispose()
        return {{"n": row.id}}
'''
DEBUG = """
[logger_backfill]
level = DEBUG
handlers =
qualname = backfill
"""


def let_loggers_speak(project: AlembicProject) -> None:
    """All that we log comes out at stderr, through the project's own configuration."""
    text = project.ini.read_text()
    text, count = re.subn(r"(?m)^keys = root,sqlalchemy,alembic$", r"\g<0>,backfill", text)
    assert count == 1
    project.ini.write_text(text + DEBUG)


@pytest.fixture
def cage(project: AlembicProject, database: Database, engine: sa.Engine) -> Cage:
    project.revision("a1", body=TABLE)
    project.alembic("upgrade", "a1")
    let_loggers_speak(project)
    words = [IN_ROWS]
    if "server" in database.capabilities:
        words.append(password_canary(database.url))
    return Cage(project, words, engine)


def test_rows_that_are_refused(cage: Cage) -> None:
    """By CHECK, by UNIQUE, by their type, by Python; in every command that tells of them."""
    assert cage.ask("plan").returncode == 0
    assert cage.run("run", "checked", "--processes=2").returncode == 5
    assert cage.run("run", "--json").returncode == 5
    for command in ("status", "check", "doctor"):
        cage.ask(command)
    assert cage.ask("failures", "--retry").returncode == 5
    assert "no_refused" in cage.heard
    assert "ValueError at a1.py" in cage.heard
    cage.check()


@pytest.mark.by_turns
def test_classes_that_are_wrong(cage: Cage) -> None:
    cage.project.revision("b2", down="a1", body=BROKEN)
    cage.project.alembic("upgrade", "b2")
    for name in ("bug", "misnamed", "odd", "applied", "inserted"):
        assert cage.ask("plan", name).returncode in (0, 1), name
        assert cage.ask("run", name).returncode in (1, 5), name
    assert cage.ask("run", "bug", "--processes=2").returncode == 1
    for command in ("status", "failures", "doctor", "status --json"):
        cage.ask(*command.split())
    assert cage.heard.count("Traceback") == cage.heard.count("Traceback (most recent call last)")
    assert "in transform\n" in cage.heard, "the place of the bug is told"
    assert "RuntimeError at b2.py" in cage.heard
    cage.check()


@pytest.mark.by_turns
def test_table_that_changes_under_a_run(
    cage: Cage, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_URL", database.url)
    cage.project.revision("b2", down="a1", body=BROKEN)
    cage.project.alembic("upgrade", "b2")
    assert cage.run("run", "drifted").returncode == 1
    assert "no column 'given'" in cage.heard
    cage.ask("status")
    cage.ask("doctor")
    cage.check()


# -- connections ----------------------------------------------------------------------------


@contextmanager
def relay(url: sa.URL) -> Iterator[tuple[sa.URL, threading.Event]]:
    """A way to the server that is cut when the event is set."""
    cut = threading.Event()
    pairs: list[socket.socket] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)
            for one in (source, sink):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    if cut.is_set():
                        client.close()
                        continue
                    server = socket.create_connection((str(url.host), int(url.port or 0)))
                    pairs.extend((client, server))
                    for one, other in ((client, server), (server, client)):
                        threading.Thread(target=pump, args=(one, other), daemon=True).start()

        def sever() -> None:
            cut.wait()
            for one in pairs:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

        threads = [threading.Thread(target=one, daemon=True) for one in (accept, sever)]
        for thread in threads:
            thread.start()
        try:
            yield url.set(host="127.0.0.1", port=listener.getsockname()[1]), cut
        finally:
            cut.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for one in pairs:
                one.close()


WAITING = '''
from backfill import Backfill


class Waiting(Backfill):
    """Goes on until there is a file, so that its connection can be cut meanwhile."""

    table = "items"
    chunk_size = 1
    reads = ["given"]
    writes = ["n"]

    def transform(self, row):
        import pathlib, time
        pathlib.Path("began").touch()
        while row.id > 5 and not pathlib.Path("go_on").exists():
            time.sleep(0.01)
        return {"n": row.id}
'''


@pytest.mark.requires("server")
def test_server_that_is_gone(cage: Cage, database: Database) -> None:
    project = cage.project
    project.revision("b2", down="a1", body=WAITING)
    project.alembic("upgrade", "b2")
    with relay(sa.make_url(database.url)) as (url, cut):
        project.set_url(url.render_as_string(hide_password=False))
        project.ini.write_text(project.ini.read_text() + "\n[backfill]\nretry_seconds = 0.5\n")
        process = project.start("run", "waiting")
        wait_until((project.directory / "began").exists, process)
        cut.set()
        (project.directory / "go_on").touch()
        assert process.wait(60) in (1, 3)
        cage.listen("run", process.read_stdout(), process.read_stderr())
    project.set_url(database.url)
    assert "connection was lost" in cage.heard or "accepts no connection" in cage.heard
    cage.run("status")
    cage.check()


@pytest.mark.requires("server")
def test_urls_that_lead_nowhere(cage: Cage, database: Database) -> None:
    """Each of them with the right password or a wrong one, in the configuration."""
    url, project = sa.make_url(database.url), cage.project
    wrong = f"Ähem-%/@:{IN_ROWS}"
    given = [
        url.set(password=wrong),
        url.set(port=1),
        url.set(host="no-such-host.invalid"),
        url.set(database="no_such_database"),
        url.set(username=None, password=None, query={"user": "app", "password": wrong}),
    ]
    for one in given:
        project.set_url(one.render_as_string(hide_password=False))
        for command in ("doctor", "run"):
            assert cage.ask(command).returncode == 1, f"{command} {one!r}"
    cage.engine = None
    cage.check()


@pytest.mark.requires("server")
def test_urls_that_are_written_wrongly(cage: Cage, database: Database) -> None:
    """A password with special characters that nobody quoted, for URLs or for ini files."""
    url, project = sa.make_url(database.url), cage.project
    password = str(url.password)
    plain = f"{url.drivername}://app:{password}@127.0.0.1:{url.port}/{url.database}"
    spoiled = [
        ("sqlalchemy.url", plain),  # its percent sign is ConfigParser's
        ("sqlalchemy.url", plain.replace("%", "%%")),
        ("sqlalchemy.url", plain.replace("%", "%%").replace("://", ":/")),
        ("sqlalchemy.url", plain.replace("%", "%%").replace("+", "+no-such-driver-")),
    ]
    for name, value in spoiled:
        project.set_option(name, value)
        for command in ("list", "doctor"):
            assert cage.ask(command).returncode in (1, 2), value
    cage.engine = None
    cage.check()


@pytest.mark.requires("server")
def test_url_of_the_environment_that_is_not_quoted(
    cage: Cage, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver takes a part of its password for the host, and says so."""
    url, env = sa.make_url(database.url), cage.project.directory / "migrations/env.py"
    given = f"{url.drivername}://app:p@{IN_ROWS}/x@127.0.0.1:{url.port}/{url.database}"
    monkeypatch.setenv("DATABASE_URL", given)
    text = env.read_text().replace("import engine_from_config", "import create_engine")
    start = text.index("engine_from_config(")
    end = text.index(")\n\n    with connectable", start) + 1
    own = 'create_engine(__import__("os").environ["DATABASE_URL"])'
    env.write_text(text[:start] + own + text[end:])
    for command in ("list", "doctor"):
        assert cage.ask(command).returncode == 1
    assert "***" in cage.heard
    cage.engine = None
    cage.check()


@pytest.mark.by_turns
def test_settings_that_are_wrong(cage: Cage) -> None:
    """Of URLs and SQL that are refused, what may be a password is not repeated."""
    before = cage.project.ini.read_text()
    for line in (
        f"throttle_url = https://me:{IN_ROWS}@127.0.0.1:1/health",
        f"throttle_url = https://127.0.0.1:1/health?token={IN_ROWS}",
        f"throttle_query = SELECT 1 WHERE '{IN_ROWS}' LIKE 'a%'",
        "throttle_query = SELECT given FROM items",
        f"replicas = 127.0.0.1:1\n  postgresql://me:{IN_ROWS}@127.0.0.1:1/x",
        f"window = https://me:{IN_ROWS}@host/",
    ):
        cage.project.ini.write_text(f"{before}\n[backfill]\n{line}\nmax_replica_lag = 1\n")
        cage.ask("run", "checked", "--max-seconds=0.3")
        cage.ask("status")
        cage.ask("doctor")
    cage.project.ini.write_text(before)
    cage.check()


@pytest.mark.by_turns
def test_a_canary_that_gets_out_is_seen(cage: Cage) -> None:
    """The cage itself: by what is printed, by a title, in a state table."""
    assert cage.engine is not None
    cage.run("status", IN_ROWS)
    assert any(one.startswith("title: ") for one in cage.escapes)
    assert any(one.startswith(f"backfill status {IN_ROWS}: ") for one in cage.escapes)
    cage.run("run", "checked")
    cage.escapes.clear()
    with cage.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE backfill_run SET error = 'x {IN_ROWS}'")
    with pytest.raises(AssertionError, match=r"backfill_run\.error"):
        cage.check()
