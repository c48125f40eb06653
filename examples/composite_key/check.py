"""Count the flights of each kind, and compute them again, without backfill."""

import os

import sqlalchemy as sa

URL = os.environ.get("DATABASE_URL", "sqlite:///composite_key.sqlite3")

COUNT = "SELECT punctuality, count(*) FROM flights GROUP BY punctuality ORDER BY punctuality"
WRONG = """
    SELECT count(*) FROM flights
    WHERE (punctuality = 'cancelled') <> (dep_delay IS NULL)
    OR (punctuality = 'late') <> (coalesce(dep_delay, 0) > 15)
"""

with sa.create_engine(URL).connect() as connection:
    for kind, count in connection.execute(sa.text(COUNT)):
        print(f"{kind}: {count:,}")
    assert connection.execute(sa.text(WRONG)).scalar() == 0
