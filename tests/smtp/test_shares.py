from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from maintd.smtp.shares import shares

UNLIMITED = 10**9
TOTALS = st.integers(0, 200)
WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=6)
STARTS = st.floats(0, 1, exclude_max=True)


@given(TOTALS, st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 50)), min_size=1, max_size=6), STARTS)
def test_all_is_given_away_and_nobody_gets_more_than_its_limit(
    total: int, relays: list[tuple[int, int]], start: float
) -> None:
    weights, limits = zip(*relays, strict=True)
    given_away = shares(total, weights=weights, limits=limits, start=start)
    assert sum(given_away) == min(total, sum(limits))
    assert all(0 <= count <= limit for count, limit in zip(given_away, limits, strict=True))


@given(TOTALS, WEIGHTS, STARTS)
def test_nobody_is_further_from_its_exact_share_than_rounding(
    total: int, weights: list[int], start: float
) -> None:
    given_away = shares(total, weights=weights, limits=[UNLIMITED] * len(weights), start=start)
    for count, weight in zip(given_away, weights, strict=True):
        exact = total * weight / sum(weights)
        assert math.floor(exact - 1e-6) <= count <= math.ceil(exact + 1e-6)


@given(st.integers(1, 8), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_over_many_draws_everybody_gets_its_exact_share(total: int, weights: list[int]) -> None:
    draws = 8 * sum(weights)
    drawn = [
        shares(total, weights=weights, limits=[UNLIMITED] * len(weights), start=draw / draws)
        for draw in range(draws)
    ]
    for each, weight in enumerate(weights):
        assert sum(one[each] for one in drawn) == draws * total * weight // sum(weights)


def test_what_a_limit_takes_from_one_goes_to_the_others_by_weight() -> None:
    assert shares(12, weights=[6, 2, 1], limits=[3, UNLIMITED, UNLIMITED], start=0.0) == [3, 6, 3]
