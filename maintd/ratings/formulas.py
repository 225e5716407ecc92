"""What a rating is: each formula once as plain Python and once as SQL, and both give the same bits.

Every formula needs two numbers of an item: how many events it has (`count`) and what they add up to (`total`). Both
forms do the same IEEE 754 double operations on these, in the same order.
"""

from __future__ import annotations

import math
import statistics
from typing import Annotated, Any, Literal, TypeAlias

import sqlalchemy as sa
from pydantic import Field

from maintd.database import Dialect
from maintd.spec import Spec

Finite = Annotated[float, Field(allow_inf_nan=False)]
SqlNumber: TypeAlias = sa.ColumnElement[Any]


class Mean(Spec):
    """The plain average. An item without events has none: its score becomes NULL."""

    name: Literal["mean"]
    """The plain average of an item's events; NULL for an item without any."""


class Bayesian(Spec):
    """The average of an item's events and a prior that weighs as much as so many events."""

    name: Literal["bayesian"]
    """The average, drawn towards `prior_mean` as long as an item has few events: the formula of IMDb's Top 250."""

    prior_weight: Annotated[Finite, Field(gt=0)]
    """How many events the prior counts for. At that many events of its own, an item stands half-way."""

    prior_mean: Finite | None = None
    """What an item without events scores. Left out: the mean of all events, the same for all items of a run."""


class Wilson(Spec):
    """The lower bound of the share of positive events, at a confidence."""

    name: Literal["wilson"]
    """The lower bound of the Wilson interval of the share of positive events, from 0 to 1; 0 without events."""

    positive_from: Finite
    """An event counts as positive if its value is this or more."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """How sure the bound is: at 0.95, z = 1.96 standard deviations of a two-sided interval."""

    @property
    def z(self) -> float:
        """The standard normal quantile of the two-sided `confidence`."""
        # From the lower tail: near a confidence of 1 the upper one rounds to 1, which has no quantile.
        return -statistics.NormalDist().inv_cdf((1 - self.confidence) / 2)


Formula: TypeAlias = Annotated[Mean | Bayesian | Wilson, Field(discriminator="name")]


def mean(*, total: float, count: int) -> float | None:
    """The arithmetic mean; None without events."""
    return total / count if count else None


def bayesian(*, total: float, count: int, prior_weight: float, prior_mean: float) -> float:
    """The posterior mean under a normal conjugate prior, known from the note below IMDb's Top 250.

    There it is written (v/(v+m))·R + (m/(v+m))·C, with v votes of mean R = total/v, the weight m and the prior mean C.
    """
    return (total + prior_weight * prior_mean) / (count + prior_weight) if count else prior_mean


def wilson(*, positives: int, count: int, z: float) -> float:
    """The lower bound of the score interval of E. B. Wilson, JASA 22 (1927) 209–212; 0 without events.

    The bounds are the roots of (1 + z²/n)·x² − (2p + z²/n)·x + p². The lower one is taken as p² over the other times
    the leading term: nothing cancels, so it stays within 0 and 1 whatever is rounded.

    Raises:
        ValueError: The positives are not a part of the count.
    """
    if not 0 <= positives <= count:
        raise ValueError(f"{positives} of {count} is not a share")
    if not positives:
        return 0.0
    p = positives / count
    return (
        p * p / (p + z * z / (2.0 * count) + z * math.sqrt((p * (1.0 - p) + z * z / (4.0 * count)) / count))
    )


def score(formula: Formula, *, total: float, count: int, prior_mean: float | None) -> float | None:
    """An item's score.

    Args:
        formula: Which one, with its parameters.
        total: The sum of its values; for `wilson`, how many of them are positive.
        count: How many events it has.
        prior_mean: For `bayesian`; None when there is no event at all, and then there is no score.
    """
    match formula:
        case Mean():
            return mean(total=total, count=count)
        case Bayesian(prior_weight=weight):
            if prior_mean is None:
                return None
            return bayesian(total=total, count=count, prior_weight=weight, prior_mean=prior_mean)
        case Wilson(z=z):
            return wilson(positives=int(total), count=count, z=z)


def total_sql(formula: Formula, value: SqlNumber, *, dialect: Dialect) -> SqlNumber:
    """The aggregate that gives an item's total: the sum of its values or the number of the positive ones."""
    if isinstance(formula, Wilson):
        return sa.func.count().filter(value >= _threshold_sql(formula, value))
    if dialect == "postgresql" and isinstance(value.type, sa.Float):
        # Parallel workers add in any order, and a sum of floats would differ in its last bits from run to run.
        return sa.func.sum(sa.cast(value, sa.Numeric))
    return sa.func.sum(value)


def _threshold_sql(formula: Wilson, value: SqlNumber) -> SqlNumber:
    # As the column keeps it: 4.1 as a REAL is below 4.1 as a DOUBLE PRECISION. But never as an INTEGER: 3.5 is not 4.
    kind = next((kind for kind in (sa.Numeric, sa.REAL) if isinstance(value.type, kind)), sa.Double)
    return sa.cast(sa.literal(formula.positive_from, sa.Double), kind)


def score_sql(formula: Formula, *, total: SqlNumber, count: SqlNumber, prior_mean: float | None) -> SqlNumber:
    """The SQL of `score`, as a double."""
    total, count = sa.cast(total, sa.Double), sa.cast(count, sa.Double)
    match formula:
        case Mean():
            return _mean_sql(total=total, count=count)
        case Bayesian(prior_weight=weight):
            return _bayesian_sql(total=total, count=count, prior_weight=weight, prior_mean=prior_mean)
        case Wilson(z=z):
            return _wilson_sql(positives=total, count=count, z=z)


def _mean_sql(*, total: SqlNumber, count: SqlNumber) -> SqlNumber:
    return total / sa.func.nullif(count, 0.0, type_=sa.Double)


def _bayesian_sql(
    *, total: SqlNumber, count: SqlNumber, prior_weight: float, prior_mean: float | None
) -> SqlNumber:
    prior = sa.cast(sa.literal(prior_mean, sa.Double), sa.Double)
    return sa.case((count == 0.0, prior), else_=(total + prior_weight * prior) / (count + prior_weight))


def _wilson_sql(*, positives: SqlNumber, count: SqlNumber, z: float) -> SqlNumber:
    p = positives / count
    root = sa.func.sqrt((p * (1.0 - p) + z * z / (4.0 * count)) / count, type_=sa.Double)
    return sa.case((positives == 0.0, 0.0), else_=p * p / (p + z * z / (2.0 * count) + z * root))
