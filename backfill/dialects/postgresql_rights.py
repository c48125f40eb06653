"""What it takes to see what other users' sessions do on PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from backfill.readings import Reader

SEES_ALL = "pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"
"""SQL: whether this user does."""
_ME = sa.text("SELECT quote_ident(current_user)")


class Monitored:
    """Needs to see what other users' sessions do."""

    def remedy(self, reader: Reader) -> str:
        with reader() as connection:
            return f"GRANT pg_monitor TO {connection.execute(_ME).scalar()}"
