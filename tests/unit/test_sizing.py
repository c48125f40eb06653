"""The sizer, on simulated chunks."""

from __future__ import annotations

import random
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import pytest

from backfill.sizing import CEILING, FIRST, Sizer

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET = 0.05


def walk(sizer: Sizer, seconds: Callable[[int], float], chunks: int) -> list[int]:
    """Feed full chunks that take `seconds(rows)`; the size before each, and after the last."""
    sizes = [sizer.size]
    for _ in range(chunks):
        sizer.observe(sizer.size, seconds(sizer.size))
        sizes.append(sizer.size)
    return sizes


def largest_step(size: int, seconds: float) -> int:
    """Where even four times the chunk is within its time, that may be the next one."""
    return int(size * (4 if seconds * 4 < TARGET else 1.5)) + 1


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
    taken: list[float] = []

    def cost(rows: int) -> float:
        taken.append(rows * 1e-6 * noise.lognormvariate(0, 1))
        return taken[-1]

    sizes = walk(Sizer(TARGET), cost, 300)
    steps = zip(pairwise(sizes), taken, strict=False)
    assert all(after <= largest_step(before, seconds) for (before, after), seconds in steps)


def test_grows_as_fast_as_it_may() -> None:
    first, *sizes = walk(Sizer(TARGET), lambda _: 0.0, 4)
    assert first == FIRST
    for size in sizes:
        assert size == largest_step(first, 0.0)
        first = size


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
    assert min(walk(sizer, lambda _: 60.0, 20)) == 1
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
