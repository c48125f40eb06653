"""A revision without a backfill: models count where upgrade() uses them."""

from alembic import op
from sqlalchemy.orm import Session
from tests.unit.doctor.shop import models
from tests.unit.doctor.shop.models import User  # <- live-models

revision = "queries_models"
down_revision = None


def upgrade():
    session = Session(bind=op.get_bind())
    session.query(User).filter(User.name.is_(None)).update({"name": ""})  # <- unbatched-write
    session.query(User).filter_by(id=5).delete()


def downgrade():
    print(models)
