from __future__ import annotations

import itertools
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from maintd.database import Database
from maintd.ratings.formulas import Bayesian, Formula, Mean, Wilson, bayesian, mean, score, score_sql, wilson

MEAN = Mean(name="mean")
ZS = {0.95: 1.959963984540054, 0.80: 1.281551565545}
WILSON_VECTORS = [
    (0.95, 1, 1, 0.206549),
    (0.95, 2, 2, 0.342380),
    (0.95, 100, 101, 0.946033),
    (0.95, 600, 1000, 0.569309),
    (0.95, 5500, 10000, 0.540232),
    (0.95, 9, 10, 0.595850),
    (0.95, 10, 10, 0.722467),
    (0.95, 50, 100, 0.403832),
    (0.95, 0, 10, 0.0),
    (0.80, 1, 1, 0.378448),
    (0.80, 600, 1000, 0.579998),
    (0.80, 5500, 10000, 0.543617),
]
IMDB_VECTORS = [(9.0, 25_000, 8.0), (10.0, 1, 7.00011999520), (9.3, 2_500_000, 9.27722772277)]

Case = tuple[float, int]
sums_and_counts = st.integers(0, 10**6).flatmap(
    lambda count: st.tuples(st.integers(-10 * count, 10 * count).map(lambda total: total / 2), st.just(count))
)
positives_and_counts = st.integers(0, 10**6).flatmap(
    lambda count: st.tuples(st.integers(0, count), st.just(count))
)


def in_database(
    database: Database, formula: Formula, cases: list[Case], *, prior_mean: float | None
) -> list[Any]:
    """The scores of the cases as the database computes them, in order."""
    columns = sa.column("place", sa.Integer), sa.column("total", sa.Double), sa.column("count", sa.BigInteger)
    rows = [(place, *case) for place, case in enumerate(cases)]
    table = sa.values(*columns, name="cases").data(rows).cte("cases")
    expression = score_sql(formula, total=table.c.total, count=table.c["count"], prior_mean=prior_mean)
    with database.read() as connection:
        return list(connection.execute(sa.select(expression).order_by(table.c.place)).scalars())


def in_python(formula: Formula, cases: list[Case], *, prior_mean: float | None) -> list[float | None]:
    return [score(formula, total=total, count=count, prior_mean=prior_mean) for total, count in cases]


@pytest.mark.parametrize(("confidence", "positives", "count", "expected"), WILSON_VECTORS)
def test_wilson_gives_the_known_bounds(
    confidence: float, positives: int, count: int, expected: float
) -> None:
    assert wilson(positives=positives, count=count, z=ZS[confidence]) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(("confidence", "z"), ZS.items())
def test_a_confidence_is_two_sided(confidence: float, z: float) -> None:
    formula = Wilson(name="wilson", positive_from=4, confidence=confidence)
    assert formula.z == pytest.approx(z, abs=1e-12)


@pytest.mark.parametrize("confidence", [5e-324, 1 - 2**-53])
def test_every_confidence_between_0_and_1_has_a_bound(confidence: float) -> None:
    z = Wilson(name="wilson", positive_from=4, confidence=confidence).z
    assert 0 <= wilson(positives=3, count=4, z=z) <= 0.75


@pytest.mark.parametrize(("own_mean", "votes", "expected"), IMDB_VECTORS)
def test_bayesian_gives_the_top_250s_known_ratings(own_mean: float, votes: int, expected: float) -> None:
    rating = bayesian(total=own_mean * votes, count=votes, prior_weight=25_000, prior_mean=7.0)
    assert rating == pytest.approx(expected, abs=5e-12)


@given(positives_and_counts, st.floats(0, 8))
def test_wilson_lies_between_0_and_the_share(case: tuple[int, int], z: float) -> None:
    positives, count = case
    bound = wilson(positives=positives, count=count, z=z)
    assert 0 <= bound <= (positives / count if count else 0)


def test_more_votes_of_the_same_share_raise_wilsons_bound() -> None:
    bounds = [wilson(positives=6 * n, count=10 * n, z=1.96) for n in (1, 10, 100, 1000)]
    assert all(less < more for less, more in itertools.pairwise(bounds))


@pytest.mark.parametrize(("positives", "count"), [(2, 1), (-1, 3)])
def test_positives_must_be_a_part_of_the_count(positives: int, count: int) -> None:
    with pytest.raises(ValueError, match="not a share"):
        wilson(positives=positives, count=count, z=1.96)


def test_an_item_without_events_has_no_mean_the_prior_or_zero() -> None:
    assert mean(total=0, count=0) is None
    assert bayesian(total=0, count=0, prior_weight=3, prior_mean=0.1) == 0.1
    assert wilson(positives=0, count=0, z=1.96) == 0.0


def test_without_any_event_and_prior_there_is_no_bayesian_score() -> None:
    assert score(Bayesian(name="bayesian", prior_weight=3), total=0, count=0, prior_mean=None) is None


def test_the_database_gives_the_known_values(database_url: str) -> None:
    database = Database(database_url, name="source app")
    for confidence in ZS:
        formula = Wilson(name="wilson", positive_from=4, confidence=confidence)
        vectors = [vector[1:] for vector in WILSON_VECTORS if vector[0] == confidence]
        found = in_database(database, formula, [vector[:2] for vector in vectors], prior_mean=None)
        assert found == pytest.approx([vector[2] for vector in vectors], abs=5e-7)
    imdb = Bayesian(name="bayesian", prior_weight=25_000, prior_mean=7.0)
    cases = [(own_mean * votes, votes) for own_mean, votes, _ in IMDB_VECTORS]
    found = in_database(database, imdb, cases, prior_mean=7.0)
    assert found == pytest.approx([vector[2] for vector in IMDB_VECTORS], abs=5e-12)
    database.dispose()


def test_the_database_gives_an_item_without_events_no_mean_the_prior_or_zero(database_url: str) -> None:
    database = Database(database_url, name="source app")
    bayes = Bayesian(name="bayesian", prior_weight=3)
    share = Wilson(name="wilson", positive_from=4)
    for formula, expected in ((MEAN, None), (bayes, 0.1), (share, 0.0)):
        assert in_database(database, formula, [(0, 0)], prior_mean=0.1) == [expected]
    assert in_database(database, bayes, [(0, 0)], prior_mean=None) == [None]
    database.dispose()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sums=st.lists(sums_and_counts, min_size=1, max_size=20),
    shares=st.lists(positives_and_counts, min_size=1, max_size=20),
    weight=st.floats(1e-3, 1e6),
    prior_mean=st.floats(-10, 10),
    confidence=st.floats(1e-6, 1 - 1e-6),
)
def test_the_database_and_python_agree_to_the_last_bit(
    database_url: str,
    sums: list[Case],
    shares: list[Case],
    weight: float,
    prior_mean: float,
    confidence: float,
) -> None:
    database = Database(database_url, name="source app")
    bayes = Bayesian(name="bayesian", prior_weight=weight)
    share = Wilson(name="wilson", positive_from=4, confidence=confidence)
    for formula, cases in ((MEAN, sums), (bayes, sums), (share, shares)):
        expected = in_python(formula, cases, prior_mean=prior_mean)
        assert in_database(database, formula, cases, prior_mean=prior_mean) == expected
    database.dispose()


@pytest.mark.parametrize(
    "formula",
    [
        {"name": "median"},
        {"name": "mean", "prior_weight": 3},
        {"name": "bayesian"},
        {"name": "bayesian", "prior_weight": 0},
        {"name": "bayesian", "prior_weight": float("inf")},
        {"name": "bayesian", "prior_weight": 3, "prior_mean": float("nan")},
        {"name": "wilson"},
        {"name": "wilson", "positive_from": 4, "confidence": 1},
        {"name": "wilson", "positive_from": 4, "confidence": 0},
    ],
)
def test_a_formula_that_makes_no_sense_is_refused(formula: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Formula).validate_python(formula)
