"""The size at which chunks become far too long, once it was met twice: arithmetic without I/O.

A plan is another one from there on, or a cache ends.
"""

from __future__ import annotations

_ALIKE = 2
"""Sizes less than so many times apart are about the same."""
_BELOW = 0.6
_WARY = 50
_WARIEST = 3_200
"""Who took fright twice at about the same size stays below it for so many chunks, and longer each
time."""


class Brink:
    """Remembers the size of the last chunk that was far too long, and keeps below it for a while
    when it was the second one."""

    def __init__(self) -> None:
        self._rows: int | None = None
        self._wary = 0
        """Chunks for which sizes stay below."""
        self._wary_for = _WARY // 2

    def pass_chunk(self) -> None:
        """Count one more chunk, whatever it took."""
        self._wary -= 1

    def below(self, rows: int) -> int:
        """Return so many rows, or as many as are far enough below."""
        if self._wary > 0 and self._rows:
            return min(rows, int(_BELOW * self._rows))
        return rows

    def learn(self, rows: int) -> None:
        """A chunk of so many rows was far too long. Twice at about the same size may be the size;
        below it, that was none."""
        is_below = self._wary > 0 and self._rows is not None and rows < self._rows
        if is_below:
            self._wary, self._wary_for = 0, _WARY // 2
        elif self._rows and self._rows < _ALIKE * rows and rows < _ALIKE * self._rows:
            self._wary = self._wary_for = min(2 * self._wary_for, _WARIEST)
        self._rows = None if is_below else rows
