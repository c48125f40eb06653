"""Look for duplicates and for bookings that lost their flight, without backfill."""

import os

import sqlalchemy as sa

URL = os.environ.get("DATABASE_URL", "sqlite:///remove_duplicates.sqlite3")

COUNTS = """
    SELECT (SELECT count(*) FROM flights),
    (SELECT count(*) FROM (SELECT DISTINCT month, day, carrier, flight, origin FROM flights) d),
    (SELECT count(*) FROM bookings),
    (SELECT count(*) FROM bookings b JOIN flights f ON f.id = b.flight_id)
"""

with sa.create_engine(URL).connect() as connection:
    flights, different, bookings, linked = connection.execute(sa.text(COUNTS)).one()
assert flights == different
assert bookings == linked
print(f"{flights:,} flights, {bookings:,} bookings")
