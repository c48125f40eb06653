"""Index what makes a flight the same flight, so that a chunk finds its duplicates quickly."""

import sqlalchemy as sa
from alembic import op
from backfill import Backfill

revision = "0002"
down_revision = "0001"

SAME = ["month", "day", "carrier", "flight", "origin"]


def upgrade():
    op.create_index("flights_same", "flights", SAME)


def downgrade():
    op.drop_index("flights_same", "flights")


def earlier(flight):
    """Select the first flight which is the same as the given row."""
    first = sa.table("flights", sa.column("id"), *map(sa.column, SAME)).alias("first")
    return sa.select(sa.func.min(first.c.id)).where(*(first.c[n] == flight.c[n] for n in SAME))


class RemoveDuplicates(Backfill):
    """Keep the first of each flight; its bookings and those of the others are its own then."""

    table = "flights"

    def where(self, flight):
        return flight.c.id > earlier(flight).correlate(flight).scalar_subquery()

    def apply(self, connection, chunk):
        flight = chunk.table
        bookings = sa.table("bookings", sa.column("flight_id"))
        first = earlier(flight).where(flight.c.id == bookings.c.flight_id)
        connection.execute(
            bookings.update()
            .where(bookings.c.flight_id.in_(chunk.select(flight.c.id)))
            .values(flight_id=first.scalar_subquery())
        )
        connection.execute(chunk.delete())
