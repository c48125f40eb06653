"""Whole tables in one transaction, by SQL text and by constructs; each is marked."""

import textwrap

import sqlalchemy as sa
from alembic import op
from sqlalchemy import delete, text, update

revision = "unbatched"
down_revision = None

users = sa.table("users", sa.column("id"), sa.column("first"), sa.column("full_name"), sa.column("manager_id"))
AGAIN = users.update()
AGAIN = AGAIN.values(full_name="x")
LOWER = "UPDATE users SET email = lower(email)"


def upgrade():
    op.add_column("users", sa.Column("full_name", sa.Text))
    op.execute("UPDATE users SET full_name = first || ' ' || last")  # <- unbatched-write
    op.execute(text("update users set email = lower(email) where email <> lower(email)"))  # <- unbatched-write
    op.execute(LOWER)  # <- unbatched-write
    op.execute(  # <- unbatched-write
        """
        -- the newest address of each
        UPDATE users AS u
           SET city = (SELECT city FROM addresses a WHERE a.user_id = u.id ORDER BY id LIMIT 1)
        """
    )
    op.execute("UPDATE orders SET total = s.sum FROM sums s WHERE s.order_id = orders.id")  # <- unbatched-write
    op.execute("UPDATE orders o JOIN sums s ON s.order_id = o.id SET o.total = s.sum")  # <- unbatched-write
    op.execute("SET lock_timeout = '1s'; DELETE FROM sessions WHERE seen < now()")  # <- unbatched-write
    op.execute("DO $$ BEGIN UPDATE users SET tries = 0; END $$")  # <- unbatched-write
    op.execute("WITH old AS (SELECT id FROM users) DELETE FROM logs WHERE user_id IN (SELECT id FROM old)")  # <- unbatched-write
    op.execute("UPDATE memberships SET role = 'owner' WHERE tenant_id = 3 AND role = 'admin'")  # <- unbatched-write
    op.execute("UPDATE users SET tries = 0 WHERE id = 1 OR tries > 3")  # <- unbatched-write
    op.execute("UPDATE users SET tries = 0 WHERE id IN (SELECT user_id FROM sessions)")  # <- unbatched-write

    bind = op.get_bind()
    bind.execute(sa.text(textwrap.dedent("""DELETE FROM logs""")))  # <- unbatched-write
    bind.exec_driver_sql("UPDATE users SET tries = 0 WHERE tries IS NULL")  # <- unbatched-write
    bind.execute(sa.update(users).values(full_name=users.c.first))  # <- unbatched-write
    op.execute(users.update().where(users.c.full_name.is_(None)).values({"full_name": ""}))  # <- unbatched-write
    statement = update(users).where(users.c.id == users.c.manager_id)
    bind.execute(statement.values(full_name="nobody"))  # <- unbatched-write
    bind.execute(AGAIN)  # <- unbatched-write
    bind.execute(delete(users))  # <- unbatched-write
    ids = [{"key": row.id} for row in bind.execute(sa.select(users.c.id))]
    bind.execute(sa.update(users).where(users.c.id == sa.bindparam("key")), ids)  # <- unbatched-write
    for table in ("users", "orders"):
        op.execute(f"UPDATE {table} SET version = 1")  # <- unbatched-write # <- unbatched-write
    for sql in ["UPDATE users SET a = 1", "CREATE INDEX ix ON users (a)"]:
        op.execute(sql)  # <- unbatched-write
    helper(bind)


def helper(connection):
    connection.execute(sa.text("UPDATE users SET tries = 0"))  # <- unbatched-write


def unused(connection):
    connection.execute(sa.text("UPDATE users SET tries = 0"))


def downgrade():
    op.execute("UPDATE users SET full_name = NULL")
