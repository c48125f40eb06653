"""Whether another sweep helps where rows are pending again; and if not, what keeps them so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfill.declaration import Level
from backfill.errors import RunFailed

if TYPE_CHECKING:
    from backfill.targets import Target

_ALIKE = 3
"""So many sweeps that change the same number of rows may go nowhere."""


class Sweeps:
    """The passes that one command has seen to their end."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._changed: dict[int, int] = {}

    def note(self, number: int, changed: int) -> None:
        """Note the rows that a pass changed; once, however often it is told."""
        self._changed[number] = changed

    def are_suspect(self, most: int) -> bool:
        """Whether there were so many, or the last ones were so much alike, that one looks what is
        pending before another one."""
        return len(self._changed) > most or self._are_alike

    @property
    def _are_alike(self) -> bool:
        last = [*self._changed.values()][-_ALIKE:]
        return len(last) == _ALIKE and len(set(last)) == 1

    def judge(self, walked: int, behind: int, most: int) -> None:
        """Raise RunFailed where another sweep would not help: so many rows are pending where the
        last one has been, and behind its end."""
        changed = [*self._changed.values()][-1]
        if self._are_alike and not behind and changed in (0, walked):
            raise RunFailed(
                f"{_ALIKE} sweeps in a row changed {changed:,} rows, and {walked:,} still match"
                " `where`: it seems that what is written leaves them pending (perhaps NULL, or"
                " transform() returned None), or that somebody undoes it each time. Narrow `where`,"
                " or write a value that ends it, and run again."
            )
        if len(self._changed) > most:
            raise RunFailed(
                f"rows are still pending after {len(self._changed)} sweeps, of which the last"
                f" changed {changed:,}: somebody keeps writing rows that match `where`, now"
                f" {behind:,} behind the last sweep's highest key (inserted since) and"
                f" {walked:,} up to it (inserted or changed since). Deploy the code that fills"
                f" the columns{self._or_sync()}, then run again."
            )

    def _or_sync(self) -> str:
        declaration = self._target.declaration
        can_sync = declaration.level is Level.SET and self._target.dialect.triggers is not None
        return ", or say `sync = True`" if can_sync and not declaration.sync else ""
