from __future__ import annotations

import pytest

from maintd.errors import did_you_mean

MANY = [f"n{number:05}" for number in range(10_000)]


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ([], ""),
        (["b", "a"], "known: a, b"),
        (["b", "weekly"], 'did you mean "weekly"?'),
        (MANY[:10], f"known: {', '.join(MANY[:10])}"),
        (MANY, f"known: {', '.join(MANY[:10])}, … and 9,990 more"),
    ],
)
def test_a_hint_is_the_nearest_name_or_a_short_list(names: list[str], hint: str) -> None:
    assert did_you_mean("weakly", names) == hint


def test_a_hint_lists_no_names_where_that_is_not_wanted() -> None:
    assert did_you_mean("weakly", ["a", "b"], listing=False) == ""
