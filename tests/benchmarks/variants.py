"""What is measured against what: the ways to do each job on each database, and the goals."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Sequence

DATABASES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "sqlite": "SQLite"}
JOBS = {"set": "set-based", "python": "Python", "busy": "Python, 50 µs a row"}
PLOTTED = ("set", "python")

ROWS = {"set": 1_000_000, "python": 300_000, "busy": 200_000}
ROWS_SHORT = {"set": 200_000, "python": 60_000, "busy": 60_000}
ROWS_SLOW = 30_000
"""Of the ways that take a hundred times as long; what counts is their rows a second."""
ROWS_SLOW_SHORT = 10_000

MODULES = {
    "psycopg": "psycopg",
    "psycopg2": "psycopg2",
    "asyncpg": "asyncpg",
    "pymysql": "pymysql",
    "mysqldb": "MySQLdb",
    "mariadbconnector": "mariadb",
}
DRIVERS = {
    "postgresql": ("psycopg", "psycopg2", "asyncpg"),
    "mariadb": ("pymysql", "mysqldb", "mariadbconnector"),
    "sqlite": (),
}
"""The first one is the one that the project recommends."""
PACKAGES = {"MySQLdb": "mysqlclient", "mariadb": "MariaDB Connector/Python"}


@dataclass(frozen=True)
class Ours:
    """`backfill run`, with its defaults or with options."""

    name: str
    title: str
    driver: str | None = None
    options: tuple[str, ...] = ()
    goal: float | None = None
    """Of one with options: so many times as fast as without."""
    every_row: bool = False
    """Declared without `where`, as the peers' statements are: nothing is left to be proved."""
    in_short: bool = False


@dataclass(frozen=True)
class Peer:
    """Another way, in a module of `peers`."""

    name: str
    title: str
    module: str
    way: str
    driver: str | None = None
    needs: tuple[str, ...] = ()
    """Modules beside the driver."""
    programs: tuple[str, ...] = ()
    goal: float | None = None
    """We are to be so many times as fast."""
    is_slow: bool = False
    in_short: bool = False
    only_beside_ours: bool = False
    """Only of interest where ours runs on the same driver."""
    column: str = "full_name"
    """What it fills."""


Variant = Ours | Peer


def variants(database: str, job: str, drivers: Sequence[str]) -> list[Variant]:
    """All ways to do a job, those of the project first, which run on these drivers."""
    if job == "busy":
        return busy(database, drivers)
    peers = [p for p in PEERS[database, job] if not p.only_beside_ours or p.driver in drivers]
    return [*ours(database, job, drivers), *peers]


def ours(database: str, job: str, drivers: Sequence[str]) -> list[Ours]:
    """With its first driver it is just `backfill`."""
    first, every = next(iter(drivers), None), "no `where`"
    found = [
        Ours("backfill", "backfill", first, in_short=True),
        Ours("backfill_all", f"backfill, {every}", first, every_row=True, in_short=True),
    ]
    if database == "postgresql":
        two = ("--workers", "2")
        title = "backfill --workers 2"
        found.append(Ours("backfill_2", title, first, two, 1.5, job == "python"))
    more = (
        Ours(f"backfill_{driver}", f"backfill, {driver}, {every}", driver, every_row=True)
        for driver in drivers[1:]
    )
    return [*found, *more]


def busy(database: str, drivers: Sequence[str]) -> list[Variant]:
    """What processes gain, where the transform is what takes the time."""
    if database != "postgresql":
        return []
    two, driver = ("--processes", "2"), next(iter(drivers), None)
    return [
        Ours("backfill", "backfill", driver),
        Ours("backfill_processes", "backfill --processes 2", driver, two, 1.7),
    ]


def compared_with(
    variant: Variant, candidates: Sequence[Variant]
) -> tuple[Variant, Variant] | None:
    """Which of two is to be how much faster than the other one, if the two are there.

    A peer stands against ours on the same driver, or else on the first one; against the one that
    does what it does, where there is one.
    """
    plain = [other for other in candidates if isinstance(other, Ours) and not other.options]
    same = [other for other in plain if other.driver == variant.driver] or plain
    if isinstance(variant, Ours):
        rival = next((other for other in same if not other.every_row), None)
        is_special = bool(variant.options) or variant.every_row
        return (variant, rival) if is_special and rival is not None else None
    rival = min(same, key=lambda other: not other.every_row, default=None)
    return None if rival is None else (rival, variant)


def missing(variant: Variant) -> list[str]:
    """What would have to be installed to run it."""
    modules = [MODULES[variant.driver]] if variant.driver in MODULES else []
    programs: Sequence[str] = ()
    if isinstance(variant, Peer):
        modules += variant.needs
        programs = variant.programs
    return [name for name in programs if not shutil.which(name)] + [
        PACKAGES.get(module, module) for module in modules if not importlib.util.find_spec(module)
    ]


def url_for(variant: Variant, url: str) -> str:
    """The same database through the variant's driver."""
    if variant.driver is None:
        return url
    parsed = sa.make_url(url)
    parsed = parsed.set(drivername=f"{parsed.get_backend_name()}+{variant.driver}")
    if variant.driver == "mysqldb":
        parsed = parsed.set(query={"charset": "utf8mb4"})
    elif variant.driver == "mariadbconnector":
        parsed = parsed.set(query={})
    return parsed.render_as_string(hide_password=False)


def orms(driver: str | None, django_goal: float | None) -> list[Peer]:
    """What works on every database; too slow for the whole table."""
    return [
        Peer("django", "Django bulk_update", "django_orm", "bulk_update", driver, ("django",),
             goal=django_goal, is_slow=True, in_short=True),
        Peer("sqlalchemy_orm", "SQLAlchemy ORM objects", "sqlalchemy_orm", "objects", driver,
             is_slow=True),
        Peer("sqlalchemy_core", "SQLAlchemy Core executemany", "sqlalchemy_orm", "executemany",
             driver, is_slow=True),
    ]  # fmt: skip


def json_table(title: str, driver: str) -> Peer:
    return Peer(f"{driver}_json_table", f"{title}, JSON_TABLE", "mysql", "json_table", driver,
                goal=0.8, in_short=True, only_beside_ours=True)  # fmt: skip


PEERS: dict[tuple[str, str], list[Peer]] = {
    ("postgresql", "set"): [
        Peer("single_update", "one UPDATE", "postgresql", "single_update", "psycopg",
             goal=0.95, in_short=True),
        Peer("server_loop", "PL/pgSQL loop", "postgresql", "server_loop", "psycopg"),
        Peer("psycopg_loop", "psycopg loop", "postgresql", "set_loop", "psycopg",
             goal=1.0, in_short=True),
    ],
    ("postgresql", "python"): [
        Peer("psycopg_unnest", "psycopg, binary arrays", "postgresql", "unnest", "psycopg",
             goal=0.8, in_short=True),
        Peer("psycopg_copy", "psycopg, binary COPY", "postgresql", "copy", "psycopg", goal=0.8),
        *orms("psycopg", 18),
    ],
    ("mariadb", "set"): [
        Peer("single_update", "one UPDATE", "mysql", "single_update", "pymysql",
             goal=0.95, in_short=True),
        Peer("server_loop", "stored procedure", "mysql", "server_loop", "pymysql"),
        Peer("mysqlclient_loop", "mysqlclient loop", "mysql", "set_loop", "mysqldb"),
        Peer("pt_osc", "pt-online-schema-change", "percona", "schema_change",
             programs=("pt-online-schema-change",), column="computed_name"),
    ],
    ("mariadb", "python"): [
        json_table("PyMySQL", "pymysql"),
        json_table("mysqlclient", "mysqldb"),
        json_table("MariaDB connector", "mariadbconnector"),
        *orms("mysqldb", 8),
    ],
    ("sqlite", "set"): [
        Peer("single_update", "one UPDATE", "sqlite", "single_update", goal=0.85, in_short=True),
        Peer("sqlite3_loop", "sqlite3 loop", "sqlite", "set_loop"),
    ],
    ("sqlite", "python"): [
        Peer("function", "Python function in UPDATE", "sqlite", "function",
             goal=0.8, in_short=True),
        Peer("executemany", "sqlite3 executemany", "sqlite", "executemany"),
        *orms(None, None),
    ],
}  # fmt: skip
