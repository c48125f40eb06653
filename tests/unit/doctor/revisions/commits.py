"""Commits of Alembic's own transaction, marked; and what is none."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.orm import Session

revision = "commits"
down_revision = None


def upgrade():
    op.create_table("roles", sa.Column("id", sa.Integer, primary_key=True))
    op.get_bind().commit()  # <- commit-in-revision
    bind = op.get_bind()
    bind.commit()  # <- commit-in-revision
    connection = op.get_context().connection
    connection.commit()  # <- commit-in-revision
    op.execute("COMMIT")  # <- commit-as-sql
    finish(bind)

    with Session(bind=op.get_bind()) as session:
        session.commit()  # SQLAlchemy leaves a transaction alone that was begun outside
    with sa.create_engine("sqlite://").connect() as other:
        other.commit()
    with op.get_context().autocommit_block():
        op.execute("VACUUM")


def finish(bind):
    op.get_bind().commit()  # <- commit-in-revision


def unused():
    op.get_bind().commit()


def downgrade():
    op.drop_table("roles")
    op.get_bind().commit()  # <- commit-in-revision
