"""Only GeoJSON is left, so that its version need not be told."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade():
    op.require_backfill("place_as_geojson")
    with op.batch_alter_table("airports") as airports:
        airports.drop_column("place_version")


def downgrade():
    version = sa.Column("place_version", sa.Integer, nullable=False, server_default="2")
    op.add_column("airports", version)
