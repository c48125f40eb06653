"""Our own tables, in the target database."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

SCHEMA_VERSION = 1
"""Raised with every change of the tables below; `store` knows the steps between."""

metadata = sa.MetaData()

# Compared for equality in the guard, so letter case must count on MariaDB too.
_Exact = sa.Text().with_variant(
    mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
_Name = sa.String(200).with_variant(
    mysql.VARCHAR(200, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
_Moment = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_INNODB: dict[str, Any] = {"mysql_engine": "InnoDB", "mariadb_engine": "InnoDB"}

schema = sa.Table(
    "backfill_schema",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    **_INNODB,
)

run = sa.Table(
    "backfill_run",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", _Name, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # 1 for a backfill's first run
    sa.Column("revision", sa.String(255), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("pass_number", sa.Integer, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),  # JSON
    sa.Column("rows_estimated", sa.BigInteger),
    sa.Column("horizon", sa.String(64)),
    sa.Column("error", sa.Text),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("updated_at", _Moment, nullable=False),
    sa.Column("finished_at", _Moment),
    sa.UniqueConstraint("name", "number"),
    **_INNODB,
)

key_range = sa.Table(
    "backfill_range",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.ForeignKey(run.c.id), nullable=False, index=True),
    sa.Column("pass_number", sa.Integer, nullable=False),
    sa.Column("lower", _Exact, nullable=False),  # exclusive; [] is before the first key
    sa.Column("upper", _Exact, nullable=False),  # inclusive
    sa.Column("cursor", _Exact, nullable=False),  # the last key committed
    sa.Column("rows_scanned", sa.BigInteger, nullable=False),
    sa.Column("rows_changed", sa.BigInteger, nullable=False),
    sa.Column("rows_per_second", sa.Float, nullable=False),
    sa.Column("chunks", sa.BigInteger, nullable=False),
    sa.Column("finished", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("token", sa.String(32)),  # random: fences the owner before
    sa.Column("claims", sa.Integer, nullable=False),  # a counter, for people to read
    sa.Column("owner", sa.String(255)),
    sa.Column("lease_expires", _Moment),
    sa.Column("size", sa.Integer),
    sa.Column("throttled", sa.Text),
    sa.Column("updated_at", _Moment, nullable=False),
    **_INNODB,
)

failure = sa.Table(
    "backfill_failure",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.ForeignKey(run.c.id), nullable=False, index=True),
    sa.Column("key", _Exact, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("updated_at", _Moment, nullable=False),
    **_INNODB,
)

event = sa.Table(
    "backfill_event",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", _Name, nullable=False),
    sa.Column("run_id", sa.Integer, index=True),
    sa.Column("happened_at", _Moment, nullable=False),
    sa.Column("what", sa.String(64), nullable=False),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    **_INNODB,
)

NAMES = frozenset(metadata.tables)
