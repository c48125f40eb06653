"""Everything that looks like a trap, and is none."""

import backfill  # noqa: F401
import sqlalchemy as sa
from alembic import op

revision = "clean"
down_revision = None

users = sa.table("users", sa.column("id"), sa.column("tries"))
options = sa.table("options", sa.column("name"), sa.column("value"))
ids = [1, 2, 3]


def upgrade():
    # UPDATE users SET tries = 0
    op.execute("SET lock_timeout = '5s'")
    op.require_backfill("fill_full_name")
    op.require_backfill("fill_city")
    op.alter_column("users", "full_name", nullable=False)

    # by the primary key, or some other narrow key
    op.execute("UPDATE users SET tries = 0 WHERE id = 1")
    op.execute("UPDATE users u SET tries = 0 WHERE u.id IN (1, 2, 3) AND tries > 5")
    op.execute(f"UPDATE users SET tries = 0 WHERE id IN ({', '.join(map(str, ids))})")
    op.execute(sa.text("DELETE FROM users WHERE id BETWEEN :low AND :high").bindparams(low=1, high=9))
    op.execute("UPDATE users SET tries = 0 WHERE id > 10 AND id <= 20")
    op.execute("UPDATE users SET tries = 0 WHERE uuid = 'a3c7'::uuid")
    op.execute(users.update().where(users.c.id == 1).values(tries=0))
    op.execute(sa.delete(users).where(users.c.id.in_(ids)))
    op.execute(sa.update(users).where(sa.and_(users.c.tries > 2, users.c.id == 3)).values(tries=0))
    op.execute("UPDATE options SET value = 'on' WHERE name = 'sync'")  # unique in its revision
    op.execute(options.delete().where(options.c.name == "sync"))
    op.get_bind().execute(
        sa.update(users).where(users.c.id == sa.bindparam("key")).values(tries=sa.bindparam("n")),
        [{"key": 1, "n": 2}, {"key": 2, "n": 3}],
    )

    # with a limit
    op.execute("DELETE FROM users WHERE id IN (SELECT id FROM users WHERE tries > 3 LIMIT 100)")
    op.execute("DELETE FROM logs ORDER BY id LIMIT 1000")
    op.execute("WITH b AS (SELECT id FROM logs LIMIT 9) UPDATE logs SET a = 1 FROM b WHERE b.id = logs.id")

    # a table that this revision creates
    roles = op.create_table(
        "roles",
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=True),
    )
    op.bulk_insert(roles, [{"code": "a", "name": "update roles set x = 1"}])
    op.execute("UPDATE roles SET rank = 1")
    op.execute(roles.update().values(rank=2))
    op.add_column("roles", sa.Column("flag", sa.Boolean(), nullable=False))
    op.alter_column("roles", "rank", nullable=False)
    for row in op.get_bind().execute(sa.select(roles)):
        op.execute(f"UPDATE roles SET rank = 3 WHERE code = '{row.code}'")
    op.execute("CREATE TABLE IF NOT EXISTS colours (name text)")
    op.execute("DELETE FROM colours")

    # statements of other kinds
    op.execute("ALTER TABLE users ADD FOREIGN KEY (boss) REFERENCES users ON UPDATE CASCADE")
    op.execute("SELECT * FROM users WHERE id = 1 FOR UPDATE")
    op.execute("INSERT INTO options VALUES ('a', 'DELETE FROM users; UPDATE users SET a = 1')")
    op.execute("INSERT INTO options VALUES ('a', 'b') ON CONFLICT DO UPDATE SET value = 'b'")
    op.execute("COMMENT ON TABLE users IS $$; UPDATE users SET a = 1$$")
    op.execute("CREATE FUNCTION f() RETURNS trigger AS $x$ BEGIN UPDATE users SET a = 1; END $x$ LANGUAGE plpgsql")
    op.execute("CREATE TRIGGER t AFTER INSERT ON users BEGIN UPDATE users SET a = 1; DELETE FROM logs; END")
    op.execute("GRANT UPDATE, DELETE ON users TO app")

    # loops over something else than rows, or without writes
    for name in ("a", "b"):
        op.execute(f"UPDATE users SET {name} = 0 WHERE id = 1")
    for table in sa.inspect(op.get_bind()).get_table_names():
        op.create_index(f"ix_{table}", table, ["id"])
    for row in op.get_bind().execute(sa.text("SELECT conname FROM pg_constraint")):
        op.drop_constraint(row.conname, "users")
    found = op.get_bind().execute(sa.text("SELECT count(*) FROM users")).scalar()
    assert found is not None
    {"a": 1}.update(b=2)
    with op.get_context().autocommit_block():
        while op.get_bind().execute(sa.text("DELETE FROM logs WHERE a LIMIT 1000")).rowcount:
            pass

    # NOT NULL that has values
    op.add_column("users", sa.Column("n", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("users", sa.Column("serial", sa.Integer(), sa.Identity(), nullable=False))
    op.add_column("users", sa.Column("free", sa.Integer()))
    with op.batch_alter_table("users") as batch_op:
        batch_op.alter_column("tries", existing_nullable=False, nullable=False, server_default="0")
        batch_op.add_column(sa.Column("city", sa.Text(), nullable=True))


def never_called():
    op.execute("UPDATE users SET tries = 0")
    for row in op.get_bind().execute(sa.select(users)):
        op.execute(f"UPDATE users SET tries = 0 WHERE id = {row.id}")


def downgrade():
    op.execute("UPDATE users SET full_name = NULL")
