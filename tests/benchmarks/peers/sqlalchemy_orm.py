"""SQLAlchemy: objects in a session, and Core's executemany."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.benchmarks.peers.common import (
    CHUNK_ORM,
    CHUNK_ROWS,
    Address,
    full_name,
    main,
    working,
)


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "people"

    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    first: Mapped[str]
    last: Mapped[str]
    note: Mapped[str | None]
    full_name: Mapped[str | None]


def objects(address: Address) -> None:
    with Session(sa.create_engine(address.url)) as session:
        session.connection()
        with working():
            low = 0
            page = sa.select(Person).order_by(Person.id).limit(CHUNK_ORM)
            while people := session.scalars(page.where(Person.id > low)).all():
                low = people[-1].id
                for person in people:
                    person.full_name = full_name(person.first, person.last)
                session.commit()
                session.expunge_all()


PEOPLE = sa.table(
    "people", sa.column("id"), sa.column("first"), sa.column("last"), sa.column("full_name")
)


def executemany(address: Address) -> None:
    key = PEOPLE.c.id
    page = sa.select(key, PEOPLE.c.first, PEOPLE.c.last).order_by(key).limit(CHUNK_ROWS)
    update = sa.update(PEOPLE).where(key == sa.bindparam("key"))
    update = update.values(full_name=sa.bindparam("name"))
    with sa.create_engine(address.url).connect() as connection, working():
        low = 0
        while rows := connection.execute(page.where(key > low)).all():
            low = rows[-1].id
            connection.execute(
                update,
                [{"key": row.id, "name": full_name(row.first, row.last)} for row in rows],
            )
            connection.commit()


if __name__ == "__main__":
    main({"objects": objects, "executemany": executemany})
