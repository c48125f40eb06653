"""As Alembic's template for several databases has it."""

from alembic import op

revision = "several_databases"
down_revision = None


def upgrade(engine_name):
    globals()[f"upgrade_{engine_name}"]()


def downgrade(engine_name):
    globals()[f"downgrade_{engine_name}"]()


def upgrade_engine1():
    op.execute("DELETE FROM users")  # <- unbatched-write


def downgrade_engine1():
    pass


def upgrade_engine2():
    pass
