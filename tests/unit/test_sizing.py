"""The sizer, on simulated chunks."""

from __future__ import annotations

import random
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill.speed.sizing import CEILING, Sizer
from backfill.speed.widths import row_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET = 0.05
MAX_BYTES = 8 * 1024 * 1024


def walk(sizer: Sizer, seconds: Callable[[int], float], chunks: int) -> list[int]:
    """Feed full chunks that take `seconds(rows)`; the size before each, and after the last."""
    sizes = [sizer.size]
    for _ in range(chunks):
        sizer.observe(sizer.size, seconds(sizer.size))
        sizes.append(sizer.size)
    return sizes


def largest_step(size: int) -> int:
    return int(size * 1.5) + 1


def chunks_until(sizer: Sizer, seconds: Callable[[int], float], share: float = 0.9) -> int:
    """How many chunks it takes to come up to that share of the target, and stay there."""
    taken = [seconds(size) for size in walk(sizer, seconds, 200)]
    short = [i for i, took in enumerate(taken) if took < share * TARGET]
    return short[-1] + 1 if short else 0


@pytest.mark.parametrize("micros_per_row", [2, 10, 100, 1_000, 10_000])
def test_constant_cost_ends_at_the_target(micros_per_row: float) -> None:
    cost = micros_per_row / 1e6
    size = walk(Sizer(TARGET), lambda rows: rows * cost, 60)[-1]
    assert 0.9 * TARGET <= size * cost <= TARGET


@pytest.mark.parametrize("overhead", [0.001, 0.01, 0.03])
def test_overhead_of_a_chunk_counts(overhead: float) -> None:
    cost = 0.000_01
    size = walk(Sizer(TARGET), lambda rows: overhead + rows * cost, 200)[-1]
    assert 0.9 * TARGET <= overhead + size * cost <= 1.02 * TARGET


@pytest.mark.parametrize("seed", range(5))
def test_growth_is_gentle(seed: int) -> None:
    noise = random.Random(seed)
    sizes = walk(Sizer(TARGET), lambda rows: rows * 1e-6 * noise.lognormvariate(0, 1), 300)
    assert all(after <= largest_step(before) for before, after in pairwise(sizes))


def test_grows_as_fast_as_it_may() -> None:
    first, *sizes = walk(Sizer(TARGET), lambda _: 0.0, 4)
    assert first == 500
    for size in sizes:
        assert size == largest_step(first)
        first = size


@pytest.mark.parametrize("overhead", [0.0, 0.001, 0.01, 0.03])
@pytest.mark.parametrize("micros_per_row", [1, 10, 100, 1_000])
def test_does_not_creep_towards_the_target(overhead: float, micros_per_row: float) -> None:
    """From 500 rows to the right size, a hundred times as many: most of these chunks are short."""
    needed = chunks_until(Sizer(TARGET), lambda rows: overhead + rows * micros_per_row / 1e6)
    assert needed <= (15 if overhead <= TARGET / 5 else 60)


def test_five_times_over_the_target_is_cut_to_a_tenth_at_once() -> None:
    sizer = Sizer(TARGET, first=5_000)
    sizer.observe(5_000, 5.1 * TARGET)
    assert sizer.size == 500


def test_a_little_over_the_target_is_no_panic() -> None:
    sizer = Sizer(TARGET, first=5_000)
    sizer.observe(5_000, 4.9 * TARGET)
    assert sizer.size == pytest.approx(5_000 / 4.9, abs=1)


def test_panic_forgets_what_was_fast() -> None:
    sizer = Sizer(TARGET)
    walk(sizer, lambda rows: rows * 1e-5, 50)
    slow = 1e-3
    sizes = walk(sizer, lambda rows: rows * slow, 12)
    assert sizes[1] == sizes[0] // 10
    first_calm = next(i for i, size in enumerate(sizes) if size * slow <= 5 * TARGET)
    assert max(sizes[first_calm + 1 :]) * slow <= 1.02 * TARGET
    assert sizes[-1] * slow == pytest.approx(TARGET, rel=0.1)


@pytest.mark.parametrize(
    ("was", "now"), [(1e-5, 3e-5), (1e-5, 1e-3), (1e-3, 1e-5)], ids=["3x", "100x", "faster"]
)
def test_follows_a_change_of_cost(was: float, now: float) -> None:
    sizer = Sizer(TARGET)
    walk(sizer, lambda rows: rows * was, 50)
    size = walk(sizer, lambda rows: rows * now, 50)[-1]
    assert size * now == pytest.approx(TARGET, rel=0.1)


def test_one_slow_chunk_in_ten_decides() -> None:
    """The target is for nearly all chunks, not for the average one."""
    sizer = Sizer(TARGET)
    turn = iter(range(10**6))
    sizes = walk(sizer, lambda rows: rows * (2e-5 if next(turn) % 5 == 0 else 1e-5), 100)
    assert median(sizes[-20:]) * 2e-5 == pytest.approx(TARGET, rel=0.1)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("overhead", [0.0, 0.005])
def test_noise_makes_it_neither_saw_nor_creep(seed: int, overhead: float) -> None:
    noise = random.Random(seed)
    cost = 1e-5
    sizes = walk(
        Sizer(TARGET),
        lambda rows: (overhead + rows * cost) * noise.lognormvariate(0, 0.2),
        600,
    )
    settled = sizes[100:]
    middle = median(settled)
    assert 0.5 * TARGET <= overhead + middle * cost <= 1.1 * TARGET
    assert min(settled) > middle / 2
    assert max(settled) < middle * 2
    turns = sum(abs(after - before) > middle / 3 for before, after in pairwise(settled))
    assert turns < len(settled) / 20
    half = len(settled) // 2
    assert median(settled[:half]) == pytest.approx(median(settled[half:]), rel=0.15)


def test_never_above_the_ceiling() -> None:
    assert max(walk(Sizer(TARGET), lambda _: 0.0, 50)) == CEILING


def test_stored_size_is_no_way_around_the_ceiling() -> None:
    assert Sizer(TARGET, first=10 * CEILING).size == CEILING


def test_never_below_one_row() -> None:
    sizer = Sizer(TARGET)
    assert min(walk(sizer, lambda rows: 60.0 * rows, 20)) == 1
    sizer.halve()
    assert sizer.size == 1


def test_recovers_from_one_row() -> None:
    sizer = Sizer(TARGET, first=1)
    assert walk(sizer, lambda rows: rows * 1e-5, 60)[-1] * 1e-5 == pytest.approx(TARGET, rel=0.1)


@pytest.mark.parametrize("rows", [0, 1, 200, 249])
def test_chunk_that_used_less_than_half_says_nothing(rows: int) -> None:
    sizer = Sizer(TARGET, first=500)
    sizer.observe(rows, 0.2 * TARGET)
    assert sizer.size == 500


def test_chunk_that_used_half_counts() -> None:
    sizer = Sizer(TARGET, first=500)
    sizer.observe(250, TARGET)
    assert sizer.size == 250


def test_empty_chunks_may_take_long() -> None:
    sizer = Sizer(TARGET, first=500)
    sizer.observe(0, 100 * TARGET)
    assert sizer.size == 500


def test_half_after_a_lock() -> None:
    sizer = Sizer(TARGET, first=500)
    sizer.halve()
    assert sizer.size == 250


@pytest.mark.parametrize("seconds", [0.0, TARGET, 100 * TARGET])
def test_fixed_size_does_not_follow_time(seconds: float) -> None:
    assert set(walk(Sizer(TARGET, fixed=700), lambda _: seconds, 20)) == {700}


def test_fixed_size_gives_way_and_comes_back() -> None:
    sizer = Sizer(TARGET, fixed=1_000)
    for _ in range(3):
        sizer.halve()
    assert sizer.size == 125
    assert walk(sizer, lambda _: TARGET, 5) == [125, 250, 500, 1_000, 1_000, 1_000]


def test_fixed_size_may_be_any() -> None:
    assert Sizer(TARGET, fixed=1).size == 1
    assert Sizer(TARGET, fixed=2 * CEILING).size == 2 * CEILING


# -- stalls, caches, widths: what happens to a real database ---------------------------------


@pytest.mark.parametrize("stall", [0.2, 1.0, 30.0])
def test_a_single_stall_is_forgotten_within_a_dozen_chunks(stall: float) -> None:
    sizer = Sizer(TARGET)
    before = walk(sizer, lambda rows: rows * 1e-5, 60)[-1]
    sizer.observe(before, stall)
    sizes = walk(sizer, lambda rows: rows * 1e-5, 30)
    assert sizes[0] >= before // 10
    assert max(sizes) <= before
    assert min(sizes[12:]) >= 0.9 * before


@pytest.mark.parametrize("every", [5, 10, 25])
def test_stalls_again_and_again_cost_speed_but_not_the_target(every: int) -> None:
    turn = iter(range(10**6))
    sizes = walk(
        Sizer(TARGET), lambda rows: 0.4 if next(turn) % every == 0 else rows * 1e-5, 40 * every
    )
    settled = sizes[5 * every :]
    assert max(settled) * 1e-5 <= 1.02 * TARGET
    assert min(settled) >= 5_000 // 10 // 10


def test_a_cold_cache_that_warms_up() -> None:
    """Ten times the cost for a while: small chunks first, then the usual ones, none too long."""
    sizer = Sizer(TARGET)
    walk(sizer, lambda rows: rows * 1e-4, 30)
    taken = [size * 1e-5 for size in walk(sizer, lambda rows: rows * 1e-5, 40)]
    assert max(taken) <= 1.02 * TARGET
    assert min(taken[20:]) >= 0.9 * TARGET


def test_a_warm_cache_that_ends() -> None:
    """One chunk may be ten times too long, the next is cut; then the target holds."""
    sizer = Sizer(TARGET)
    walk(sizer, lambda rows: rows * 1e-5, 40)
    taken = [size * 1e-4 for size in walk(sizer, lambda rows: rows * 1e-4, 40)]
    assert taken[0] > 5 * TARGET
    assert max(taken[1:]) <= 1.02 * TARGET
    assert min(taken[20:]) >= 0.9 * TARGET


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Phases with a cost a row each, and the noise and stalls of each chunk."""
    costs = draw(st.lists(st.floats(1e-7, 1e-1), min_size=1, max_size=4))
    noise = st.one_of(st.floats(0.7, 1.4), st.sampled_from([1.0, 1.0, 10.0, 1_000.0]))
    return costs, draw(st.lists(noise, min_size=20, max_size=60))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(histories(), st.integers(1, 10 * CEILING), st.integers(1, CEILING), st.integers(1, 10**7))
def test_whatever_happens(
    history: tuple[list[float], list[float]], first: int, ceiling: int, row_bytes: int
) -> None:
    costs, noise = history
    has_panicked = False
    sizer = Sizer(TARGET, None, first, ceiling, max_bytes=MAX_BYTES, row_bytes=row_bytes)
    largest = sizer.size  # but for a look at a smaller size
    for cost in costs:
        for factor in noise:
            before, seconds = sizer.size, sizer.size * cost * factor
            has_panicked = has_panicked or sizer._overhead.is_known
            assert 1 <= before <= ceiling
            assert before == 1 or before * row_bytes <= MAX_BYTES
            sizer.observe(before, seconds)
            assert sizer.size <= largest_step(largest)
            largest = max(before, sizer.size)
            if seconds > 5 * TARGET and before > 1 and not has_panicked:
                assert sizer.size == max(1, before // 10)
                has_panicked = True


# -- what the size cannot change -------------------------------------------------------------


@pytest.mark.parametrize("overhead", [0.06, 0.1, 0.4, 2.0])
def test_a_long_way_to_the_server_is_no_reason_for_single_rows(overhead: float) -> None:
    """Each chunk takes longer than the target however small it is, so it may as well be large."""
    sizes = walk(Sizer(TARGET), lambda rows: overhead + rows * 1e-5, 120)
    assert sizes[-1] * 1e-5 == pytest.approx(min(overhead / 2, 2 * TARGET), rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_a_long_way_with_noise(seed: int) -> None:
    noise = random.Random(seed)
    sizes = walk(
        Sizer(TARGET), lambda rows: (0.1 + rows * 1e-5) * noise.lognormvariate(0, 0.2), 400
    )
    assert min(sizes[120:]) >= 100
    assert max(sizes[120:]) * 1e-5 <= 4 * TARGET


def test_a_way_that_becomes_short_again_is_noticed_at_once() -> None:
    sizer = Sizer(TARGET)
    walk(sizer, lambda rows: 0.4 + rows * 1e-5, 120)
    taken = [size * 1e-5 for size in walk(sizer, lambda rows: rows * 1e-5, 30)]
    assert max(taken[8:]) <= 1.02 * TARGET
    assert taken[-1] >= 0.9 * TARGET


@pytest.mark.parametrize("seconds", [0.06, 0.1, 0.5, 5.0])
def test_rows_that_are_slow_themselves_go_one_by_one(seconds: float) -> None:
    """Now and then two are tried: they might take no longer than one."""
    settled = walk(Sizer(TARGET), lambda rows: rows * seconds, 200)[30:]
    assert max(settled) <= 2
    assert settled.count(1) >= 0.8 * len(settled)


@pytest.mark.parametrize("commit", [0.05, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_commits_of_any_length_do_not_leave_single_rows(commit: float, seed: int) -> None:
    """A commit that takes now this long, now that, and not because of the rows."""
    noise, sizer, rows, seconds = random.Random(seed), Sizer(TARGET), 0, 0.0
    sizes = []
    for _ in range(2_000):
        sizes.append(sizer.size)
        took = commit * noise.lognormvariate(0, 0.7) + sizer.size * 1e-5
        sizer.observe(sizer.size, took)
        rows, seconds = rows + sizes[-1], seconds + took
    settled = sorted(sizes[60:])
    assert settled[len(settled) // 5] >= 10
    assert settled[len(settled) // 2] >= 1_000
    assert settled[-len(settled) // 20] * 1e-5 <= 4 * TARGET
    assert rows / seconds >= 12_000, "of 100,000 without commits"


@pytest.mark.parametrize("seconds", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("brink", [20, 100, 3_000])
def test_a_plan_that_flips_above_some_size_is_met_ever_more_seldom(
    brink: int, seconds: float
) -> None:
    sizer = Sizer(TARGET)
    sizes = walk(sizer, lambda rows: rows * 1e-5 + (seconds if rows > brink else 0), 3_000)
    assert max(sizes[1:]) <= max(largest_step(brink), 500)
    assert sum(size > brink for size in sizes) <= 12
    assert median(sizes) >= brink / 2


# -- bytes -----------------------------------------------------------------------------------


def test_the_first_chunk_of_wide_rows_is_small() -> None:
    assert Sizer(TARGET, max_bytes=MAX_BYTES, row_bytes=MAX_BYTES // 20).size == 20
    assert Sizer(TARGET, max_bytes=MAX_BYTES, row_bytes=2 * MAX_BYTES).size == 1
    assert Sizer(TARGET, max_bytes=MAX_BYTES).size == 500


def test_rows_that_grow_wide_are_cut_at_once_and_come_back_gently() -> None:
    sizer = Sizer(TARGET, max_bytes=MAX_BYTES)
    for _ in range(40):
        sizer.observe(sizer.size, sizer.size * 1e-5, 100)
    narrow = sizer.size
    sizer.observe(narrow, narrow * 1e-5, MAX_BYTES // 50)
    assert sizer.size == 50
    sizes = [sizer.size]
    for _ in range(40):
        sizer.observe(sizer.size, sizer.size * 1e-5, 100)
        sizes.append(sizer.size)
    assert sizes[5] == 50
    assert sizes[-1] == narrow
    assert all(after <= largest_step(before) for before, after in pairwise(sizes))


def test_a_page_that_was_far_from_full_tells_its_width_all_the_same() -> None:
    sizer = Sizer(TARGET, first=500, max_bytes=MAX_BYTES)
    sizer.observe(3, 0.001, MAX_BYTES // 10)
    assert sizer.size == 10


def test_bytes_do_not_change_a_size_that_was_told() -> None:
    assert Sizer(TARGET, fixed=700, max_bytes=MAX_BYTES, row_bytes=MAX_BYTES).size == 700


def test_widths_of_a_few_rows() -> None:
    """About what they take: text and bytes as they are, eight bytes for anything else."""
    assert row_bytes([]) == 0
    assert row_bytes([(1, "x" * 100, b"y" * 50, None)] * 3) == 8 + 100 + 50 + 8
    assert row_bytes([{"a": "x" * 40, "b": [1.5] * 300}]) == 40 + 8 * 300
    assert row_bytes([None, {"a": "x" * 40}]) == 20
    assert row_bytes([("x" * i,) for i in range(10_000)]) == pytest.approx(5_000, rel=0.05)
    assert row_bytes([({"tags": ["ab", "cd"], "n": 1},)]) == len("tagsn") + 4 + 8
