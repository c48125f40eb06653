"""Add airports.place_version: 1 is {"lat": "40.6", "lon": "-73.8"}, 2 is a GeoJSON point.

Both are in the table for a while. The application reads either, and writes 2.
"""

import sqlalchemy as sa
from alembic import op
from backfill import Backfill

revision = "0002"
down_revision = "0001"


def upgrade():
    version = sa.Column("place_version", sa.Integer, nullable=False, server_default="1")
    op.add_column("airports", version)


def downgrade():
    op.drop_column("airports", "place_version")


class PlaceAsGeojson(Backfill):
    """Turn every airport's place into a GeoJSON point."""

    table = "airports"
    where = "place_version = 1"
    reads = ["place"]
    writes = ["place", "place_version"]

    def transform(self, row):
        old = row.place
        point = {"type": "Point", "coordinates": [float(old["lon"]), float(old["lat"])]}
        return {"place": point, "place_version": 2}
