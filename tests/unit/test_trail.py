"""What a pass walked is known stretch by stretch; all else is said to be unknown."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from backfill.chunks import LONGEST_STRIDE, Chunk
from backfill.keys import START, KeyValues
from backfill.runs import KeyRange
from backfill.trail import Stretch, Trail

steps = st.lists(st.integers(1, 40_000), max_size=12)


def key(number: int) -> KeyValues:
    return (number,) if number else START


def key_range(number: int, lower: int, upper: int) -> KeyRange:
    return KeyRange(
        id=number,
        run_id=1,
        pass_number=1,
        lower=key(lower),
        upper=key(upper),
        cursor=key(upper),
        rows_scanned=0,
        rows_changed=0,
        rows_per_second=0.0,
        finished=True,
        token=None,
        owner=None,
        lease_expires=None,
        lease_is_live=False,
        size=None,
        throttled=None,
        quiet_seconds=0.0,
    )


@given(st.lists(steps, max_size=4), st.sets(st.integers(0, 50)))
def test_stretches_cover_the_key_space_and_claim_only_what_was_walked(
    walks: list[list[int]], by_others: set[int]
) -> None:
    trail, ranges, walked, low, number = Trail(), [], set(), 0, 0
    for range_id, rows in enumerate(walks):
        ends = list(accumulate(rows, initial=low))
        for after, upto in pairwise(ends):
            number += 1
            if number not in by_others:
                trail.note(range_id, Chunk(key(after), key(upto), upto - after, is_last=False))
                walked.add((after, upto))
        if rows:
            ranges.append(key_range(range_id, low, ends[-1]))
        low = ends[-1]
    found = list(trail.stretches(ranges[::-1]))
    assert [one.after for one in found] == [START, *(one.upto for one in found)][: len(found)]
    assert (found[-1].upto if found else START) == key(low)
    known = [one for one in found if one.rows is not None]
    assert sum(one.rows or 0 for one in known) == sum(high - low for low, high in walked)
    for one in known:
        low_end, high_end = (end[0] if end else 0 for end in (one.after, one.upto))
        inside = [(a, b) for a, b in walked if low_end <= a and b <= high_end]
        assert sum(b - a for a, b in inside) == one.rows == high_end - low_end
        assert one.rows <= LONGEST_STRIDE


def test_strides_of_a_chunk_are_stretches_of_their_own() -> None:
    trail = Trail()
    strides = (((50_000,), 50_000), ((90_000,), 40_000))
    trail.note(1, Chunk(START, (90_000,), 90_000, is_last=True, strides=strides))
    assert list(trail.stretches([key_range(1, 0, 90_000)])) == [
        Stretch(START, (50_000,), 50_000),
        Stretch((50_000,), (90_000,), 40_000),
    ]
