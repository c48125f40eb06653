"""Give destinations a table of their own, and flights a link to it."""

import sqlalchemy as sa
from alembic import op
from backfill import Backfill

revision = "0002"
down_revision = "0001"


def upgrade():
    op.create_table(
        "destinations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("code", sa.String(3), nullable=False, unique=True),
    )
    op.add_column("flights", sa.Column("destination_id", sa.Integer))


def downgrade():
    op.drop_column("flights", "destination_id")
    op.drop_table("destinations")


class LinkDestinations(Backfill):
    """Copy each flight's destination into destinations, and link it.

    Both statements are in the chunk's transaction, so that no flight is linked to nothing. For one
    worker: two could insert the same code at once.
    """

    table = "flights"
    where = "destination_id IS NULL"
    workers = 1

    def apply(self, connection, chunk):
        destinations = sa.table("destinations", sa.column("id"), sa.column("code"))
        code = chunk.table.c.dest
        known = sa.select(destinations.c.code)
        new = chunk.select(code).where(code.not_in(known)).distinct()
        connection.execute(destinations.insert().from_select(["code"], new))

        link = sa.select(destinations.c.id).where(destinations.c.code == code)
        connection.execute(chunk.update().values(destination_id=link.scalar_subquery()))
