"""The tables. `punctuality` is written by every new flight; the backfill fills the old ones."""

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

db = SQLAlchemy()


def punctuality(context):
    delay = context.get_current_parameters()["dep_delay"]
    if delay is None:
        return "cancelled"
    return "late" if delay > 15 else "on time"


class Flight(db.Model):
    __tablename__ = "flights"

    id: Mapped[int] = mapped_column(primary_key=True)
    carrier: Mapped[str] = mapped_column(sa.String(2))
    flight: Mapped[int]
    dep_delay: Mapped[int | None]
    punctuality: Mapped[str] = mapped_column(sa.String(10), default=punctuality)
