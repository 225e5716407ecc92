"""What a job file says of a rating job."""

from __future__ import annotations

from maintd.ratings.formulas import Formula
from maintd.spec import Spec


class Events(Spec):
    """Where the single ratings are. Rows whose item or value is NULL are ignored."""

    table: str
    """The table or view of the single ratings: `rating` or, with a schema, `shop.rating`."""

    item: str
    """The column that says which item a rating is of."""

    value: str
    """The column of the rating itself, a number."""


class Target(Spec):
    """Where the scores go. Rows are inserted and updated, never deleted; other columns are left alone."""

    table: str
    """The table of the scores, one row an item."""

    item: str
    """The column that names the item. It must be the table's primary key, or be unique, by itself."""

    score: str
    """The column that takes the score: REAL, DOUBLE PRECISION or NUMERIC, and for `mean` not NOT NULL."""

    count: str
    """The column that takes the number of events."""


class RatingsSpec(Spec):
    """A job that recomputes scores from single ratings."""

    source: str
    """The database to work in, by the name in `MAINTD_SOURCE_<NAME>_URL`."""

    formula: Formula
    """How the score is made from an item's ratings: `mean`, `bayesian` or `wilson`."""

    events: Events
    """Where the single ratings are."""

    target: Target
    """Where the scores go."""
