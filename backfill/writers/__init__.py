"""The three ways in which a chunk is applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill.declaration import Level
from backfill.writers.base import Writer, Written
from backfill.writers.custom import CustomWriter
from backfill.writers.rows import RowsWriter
from backfill.writers.setbased import SetBasedWriter

if TYPE_CHECKING:
    from backfill.scans import Scans
    from backfill.targets import Target

__all__ = ["Writer", "Written", "writer_for"]


def writer_for(target: Target, scans: Scans) -> Writer:
    """Return the writer of a declaration's level."""
    kinds: dict[Level, type[Writer]] = {
        Level.SET: SetBasedWriter,
        Level.ROWS: RowsWriter,
        Level.CUSTOM: CustomWriter,
    }
    return kinds[target.declaration.level](target, scans)
