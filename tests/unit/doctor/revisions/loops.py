"""Loops over rows and over batches; each is marked."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.orm import Session

revision = "loops"
down_revision = None

users = sa.table("users", sa.column("id"), sa.column("body"), sa.column("language"))


def guess(text):
    return text[:2]


def upgrade():
    bind = op.get_bind()
    for row in bind.execute(sa.select(users)):  # <- row-loop
        bind.execute(users.update().where(users.c.id == row.id).values(language=guess(row.body)))

    rows = bind.execute(sa.text("SELECT id, body FROM comments")).fetchall()
    for row in rows:  # <- row-loop
        language = guess(row["body"])
        op.execute(f"UPDATE comments SET language = '{language}' WHERE id = {row['id']}")

    for key, body in bind.exec_driver_sql("SELECT id, body FROM comments"):  # <- row-loop
        save(bind, key, body)

    session = Session(bind=bind)
    for user in session.query(users):  # <- row-loop
        user.language = guess(user.body)
    session.flush()

    for row in bind.execute(sa.text("SELECT id, body FROM comments")):  # <- row-loop
        bind.execute(sa.text("INSERT INTO archive VALUES (:id, :body)"), dict(row))

    while True:  # <- batch-loop
        done = bind.execute(sa.text("UPDATE users SET a = 1 WHERE a IS NULL LIMIT 1000"))
        if not done.rowcount:
            break


def save(bind, key, body):
    bind.execute(sa.text("UPDATE comments SET language = :x WHERE id = :id"), {"id": key})


def downgrade():
    pass
