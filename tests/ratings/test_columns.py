from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from maintd.database import Database
from maintd.errors import JobFailed
from maintd.ratings.recompute import dry_run, examine, recompute
from maintd.ratings.spec import RatingsSpec

SPEC = {
    "source": "app",
    "formula": {"name": "mean"},
    "events": {"table": "rating", "item": "title_id", "value": "stars"},
    "target": {"table": "title_score", "item": "title_id", "score": "score", "count": "votes"},
}
TARGET = "title_id INTEGER PRIMARY KEY, score REAL, votes INTEGER, name VARCHAR(9)"


@pytest.fixture
def source(database_url: str) -> Iterator[Database]:
    database = Database(database_url, name="source app")
    yield database
    database.dispose()


def make(source: Database, *, target: str = TARGET, also: str = "") -> None:
    with source.write() as connection:
        connection.exec_driver_sql("CREATE TABLE rating (title_id INTEGER, stars REAL, remark VARCHAR(9))")
        connection.exec_driver_sql(f"CREATE TABLE title_score ({target})")
        if also:
            connection.exec_driver_sql(also)


def spec(part: str = "", **keys: str) -> RatingsSpec:
    return RatingsSpec.model_validate(SPEC | ({part: {**SPEC[part], **keys}} if part else {}))  # type: ignore[dict-item]


WRONG = [
    (
        "events",
        "table",
        "ratings",
        'events.table: the source has no table "ratings"; did you mean "rating"',
    ),
    (
        "events",
        "item",
        "title",
        'events.item: table "rating" has no column "title"; did you mean "title_id"',
    ),
    (
        "events",
        "value",
        "star",
        'events.value: table "rating" has no column "star"; did you mean "stars"',
    ),
    ("events", "value", "remark", 'events.value: column "remark" of table "rating" must be a number'),
    ("target", "table", "title_scores", 'target.table: .* did you mean "title_score"'),
    ("target", "item", "title_ids", 'target.item: .* did you mean "title_id"'),
    ("target", "score", "scores", 'target.score: .* did you mean "score"'),
    ("target", "count", "vote", 'target.count: .* did you mean "votes"'),
    ("target", "score", "name", 'target.score: column "name" .* must be REAL, .* its type is VARCHAR'),
    ("target", "count", "name", 'target.count: column "name" .* must be a number'),
    ("target", "item", "name", 'target.item: column "name" .* nor unique by itself; add a unique index'),
    ("target", "count", "score", "target: .* three different columns"),
]


def test_a_column_that_cannot_do_its_part_is_named_with_its_key(source: Database) -> None:
    make(source)
    for part, key, name, message in WRONG:
        with pytest.raises(JobFailed, match=message):
            examine(spec(part, **{key: name}), source)


@pytest.mark.parametrize("act", [dry_run, recompute])
def test_a_run_looks_again_because_tables_change(
    source: Database, act: Callable[[RatingsSpec, Database], object]
) -> None:
    make(source)
    with pytest.raises(JobFailed, match=r"target.item: .* nor unique"):
        act(spec("target", item="name"), source)


def test_a_whole_number_cannot_hold_a_score(source: Database) -> None:
    make(source, target="title_id INTEGER PRIMARY KEY, score INTEGER, votes INTEGER")
    with pytest.raises(JobFailed, match=r"target.score: .* its type is INTEGER"):
        examine(spec(), source)


def test_mean_needs_a_score_that_may_be_null(source: Database) -> None:
    make(source, target="title_id INTEGER PRIMARY KEY, score REAL NOT NULL, votes INTEGER")
    with pytest.raises(JobFailed, match=r"target.score: .* NOT NULL.* use the formula bayesian"):
        examine(spec(), source)
    bayesian = spec().model_dump() | {"formula": {"name": "bayesian", "prior_weight": 1}}
    examine(RatingsSpec.model_validate(bayesian), source)


BARE = "title_id INTEGER NOT NULL, score REAL, votes INTEGER"


@pytest.mark.parametrize(
    ("target", "also"),
    [
        (f"{BARE}, PRIMARY KEY (title_id)", ""),
        (f"{BARE}, UNIQUE (title_id)", ""),
        (BARE, "CREATE UNIQUE INDEX by_title ON title_score (title_id)"),
    ],
)
def test_an_item_is_unique_by_key_constraint_or_index(source: Database, target: str, also: str) -> None:
    make(source, target=target, also=also)
    examine(spec(), source)
    recompute(spec(), source)


@pytest.mark.parametrize(
    ("target", "also"),
    [
        (BARE, ""),
        (f"{BARE}, PRIMARY KEY (title_id, votes)", ""),
        (f"{BARE}, UNIQUE (title_id, votes)", ""),
        (BARE, "CREATE INDEX by_title ON title_score (title_id)"),
        (BARE, "CREATE UNIQUE INDEX by_title ON title_score (title_id) WHERE votes > 0"),
    ],
)
def test_an_item_is_not_unique_by_less(source: Database, target: str, also: str) -> None:
    make(source, target=target, also=also)
    with pytest.raises(JobFailed, match="nor unique by itself"):
        examine(spec(), source)
