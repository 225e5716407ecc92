"""Dividing connections between relays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise


def shares(total: int, *, weights: Sequence[int], limits: Sequence[int], start: float) -> list[int]:
    """Divides connections by weight; what a limit takes from one goes to the others.

    Without limits each gets its exact share, rounded up or down, and on average over `start` its exact share
    (systematic sampling; W. G. Madow, 1949).

    Args:
        total: How many there are to divide.
        weights: At least 1 each.
        limits: The most that each may get.
        start: From 0.0 up to 1.0, drawn by the caller: decides who gets the fractions.

    Returns:
        How many each gets, in order: `total` in all, or the sum of the limits if that is less.
    """
    limited: dict[int, int] = {}
    while True:
        free = [each for each in range(len(weights)) if each not in limited]
        drawn = _divided(total - sum(limited.values()), [weights[each] for each in free], start=start)
        given = dict(zip(free, drawn, strict=True))
        over = {each: limits[each] for each, count in given.items() if count > limits[each]}
        if not over:
            return [(given | limited)[each] for each in range(len(weights))]
        limited |= over


def _divided(total: int, weights: Sequence[int], *, start: float) -> list[int]:
    ends = accumulate(weights, initial=0)
    # The last end is the total itself, also where adding to it would round up.
    borders = (min(total, math.floor(total * end / sum(weights) + start)) for end in ends) if weights else ()
    return [after - before for before, after in pairwise(borders)]
