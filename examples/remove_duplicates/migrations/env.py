import os

import sqlalchemy as sa
from alembic import context

URL = os.environ.get("DATABASE_URL", "sqlite:///remove_duplicates.sqlite3")


def run_migrations_offline():
    context.configure(url=URL, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online():
    engine = sa.create_engine(URL, poolclass=sa.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
