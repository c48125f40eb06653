"""A revision with a backfill, and live models imported."""

from alembic import op
from backfill import Backfill
from tests.unit.doctor.shop import helpers  # a module with neither models nor harm
from tests.unit.doctor.shop.models import User  # <- live-models
from tests.unit.doctor.shop import db  # <- live-models

revision = "uses_models"
down_revision = None


def upgrade():
    op.drop_column("users", "x")


class FillFullName(Backfill):
    """Give every user a full name."""

    table = "users"
    where = "full_name IS NULL"
    reads = ["first"]
    writes = ["full_name"]

    def transform(self, row):
        return {"full_name": helpers.title(row.first), "by": (User, db)}
