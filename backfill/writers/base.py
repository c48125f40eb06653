"""What the runner asks of a writer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import sqlalchemy as sa

    from backfill.chunks import Chunk
    from backfill.runs import Failure
    from backfill.scans import Scans
    from backfill.targets import Target


@dataclass(frozen=True, slots=True)
class Written:
    """What a chunk's writes came to."""

    changed: int
    failures: Sequence[Failure] = field(default=())


class Writer:
    """Applies chunks of one target; each worker has its own."""

    computes: ClassVar[bool] = False
    """Python works between reading and writing: then the chunk is cut and read in a
    transaction of its own, and `compute` runs in none."""

    def __init__(self, target: Target, scans: Scans) -> None:
        self.target = target
        self.scans = scans
        self.pulses = True
        """`compute` calls `pulse` often; else somebody else must keep the lease meanwhile."""
        self.compute_seconds = 0.0
        """How long the last chunk was computed."""
        self.row_bytes: int | None = None
        """About how many bytes a row of it has, as read and as written; None: nobody saw them."""

    def forget(self) -> None:
        """A new chunk begins: what was computed for the last one is of no use any more."""

    def be_careful(self) -> None:
        """Lock rows before they are compared and written, from now on."""

    def wait_for_locks(self) -> None:
        """Wait for rows that others have locked, as long as the connection would, rather than fail
        at once: there is nobody who would come again."""

    def compute(self, chunk: Chunk, pulse: Callable[[], None]) -> Chunk:
        """Work out what to write; `pulse` is called now and then, and raises to stop it."""
        return chunk

    def write(self, connection: sa.Connection, chunk: Chunk) -> Written:
        """Write the chunk in the open transaction."""
        raise NotImplementedError
