"""Django: iterator() and bulk_update(), as its documentation has it."""

from __future__ import annotations

import django
from django.conf import settings

from tests.benchmarks.peers.common import CHUNK_ORM, Address, batches, full_name, main, working

ENGINES = {"postgresql": "postgresql", "mariadb": "mysql", "sqlite": "sqlite3"}


def bulk_update(address: Address) -> None:
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": f"django.db.backends.{ENGINES[address.dialect]}",
                "HOST": address.host,
                "PORT": address.port or "",
                "USER": address.user,
                "PASSWORD": address.password,
                "NAME": address.database,
            }
        }
    )
    django.setup()
    from django.db import connection, models

    class Person(models.Model):
        id = models.BigIntegerField(primary_key=True)
        first = models.CharField(max_length=60)
        last = models.CharField(max_length=60)
        note = models.CharField(max_length=200, null=True)
        full_name = models.CharField(max_length=200, null=True)

        class Meta:
            app_label = "benchmark"
            db_table = "people"

    connection.ensure_connection()
    with working():
        people = Person.objects.order_by("id").iterator(chunk_size=CHUNK_ORM)
        for batch in batches(people, CHUNK_ORM):
            for person in batch:
                person.full_name = full_name(person.first, person.last)
            Person.objects.bulk_update(batch, ["full_name"], batch_size=CHUNK_ORM)


if __name__ == "__main__":
    main({"bulk_update": bulk_update})
