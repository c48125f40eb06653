"""Where a pass has been: keys about a stride apart, so that the proof need not search for any."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfill.chunks import LONGEST_STRIDE
from backfill.keys import START, KeyValues

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backfill.chunks import Chunk
    from backfill.runs import KeyRange


@dataclass(frozen=True, slots=True)
class Stretch:
    """Keys in (after, upto]."""

    after: KeyValues
    upto: KeyValues
    rows: int | None = None
    """Rows that were there when it was walked; None: nobody here walked it."""


class Trail:
    """The stretches that the workers of this command walked in one pass, about a stride each."""

    def __init__(self) -> None:
        self._walked: defaultdict[int, list[Stretch]] = defaultdict(list)

    def note(self, range_id: int, chunk: Chunk) -> None:
        """Note a chunk that was committed. Each range is walked by one thread at a time."""
        after = chunk.after
        for upto, rows in chunk.strides or ((chunk.upto, chunk.scanned),):
            self._add(self._walked[range_id], Stretch(after, upto, rows))
            after = upto

    def _add(self, walked: list[Stretch], new: Stretch) -> None:
        assert new.rows is not None
        last = walked[-1] if walked else None
        if last is not None and last.upto == new.after:
            rows = (last.rows or 0) + new.rows
            if rows <= LONGEST_STRIDE:
                walked[-1] = Stretch(last.after, new.upto, rows)
                return
        walked.append(new)

    def stretches(self, ranges: Sequence[KeyRange]) -> Iterator[Stretch]:
        """Give the pass's whole key space in order, with what others walked in between."""
        following = {found.lower: found for found in ranges}
        position: KeyValues = START
        while (found := following.pop(position, None)) is not None:
            for stretch in self._walked[found.id]:
                if stretch.after != position:
                    yield Stretch(position, stretch.after)
                yield stretch
                position = stretch.upto
            if position != found.upper:
                yield Stretch(position, found.upper)
                position = found.upper
