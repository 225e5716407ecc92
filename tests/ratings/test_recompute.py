from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maintd.database import Database
from maintd.errors import JobFailed, Unavailable
from maintd.ratings.formulas import score
from maintd.ratings.recompute import Change, Plan, Recomputed, dry_run, examine, recompute
from maintd.ratings.spec import RatingsSpec

MEAN = {"name": "mean"}
BAYESIAN = {"name": "bayesian", "prior_weight": 25}
WILSON = {"name": "wilson", "positive_from": 4}
RATING = "CREATE TABLE rating (title_id INTEGER, stars {stars})"
TARGET = """
    CREATE TABLE title_score (
        title_id INTEGER PRIMARY KEY, score {score}, votes INTEGER NOT NULL DEFAULT 0, note VARCHAR(9) DEFAULT 'new'
    )
"""


def rating_spec(formula: dict[str, Any], **keys: dict[str, str]) -> RatingsSpec:
    events = {"table": "rating", "item": "title_id", "value": "stars"}
    target = {"table": "title_score", "item": "title_id", "score": "score", "count": "votes"}
    return RatingsSpec.model_validate({
        "source": "app",
        "formula": formula,
        "events": events | keys.get("events", {}),
        "target": target | keys.get("target", {}),
    })  # fmt: skip


def execute(source: Database, *statements: str) -> None:
    with source.write() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def rows(source: Database, query: str) -> list[tuple[Any, ...]]:
    with source.read() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def make(source: Database, *, stars: str = "INTEGER", score: str = "DOUBLE PRECISION") -> None:
    execute(source, RATING.format(stars=stars), TARGET.format(score=score))


def rate(source: Database, *ratings: tuple[object, object]) -> None:
    table = sa.table("rating", sa.column("title_id"), sa.column("stars"))
    with source.write() as connection:
        if ratings:
            connection.execute(
                sa.insert(table), [{"title_id": item, "stars": stars} for item, stars in ratings]
            )


def scores(source: Database) -> dict[int, tuple[float | None, int]]:
    found = rows(source, "SELECT title_id, score, votes FROM title_score")
    return {item: (None if value is None else float(value), votes) for item, value, votes in found}


@pytest.fixture
def source(database_url: str) -> Iterator[Database]:
    database = Database(database_url, name="source app")
    yield database
    database.dispose()


@pytest.fixture
def postgresql(postgresql_url: str) -> Iterator[Database]:
    database = Database(postgresql_url, name="source app")
    yield database
    database.dispose()


def expected_scores(
    spec: RatingsSpec, ratings: list[tuple[int, float]]
) -> dict[int, tuple[float | None, int]]:
    """The scores of the items that have ratings, by the formulas in Python."""
    stars: dict[int, list[float]] = {}
    for item, value in ratings:
        stars.setdefault(item, []).append(value)
    prior_mean = sum(value for _, value in ratings) / len(ratings) if ratings else None
    found: dict[int, tuple[float | None, int]] = {}
    for item, values in stars.items():
        total = sum(value >= 4 for value in values) if spec.formula.name == "wilson" else sum(values)
        expected = score(spec.formula, total=total, count=len(values), prior_mean=prior_mean)
        found[item] = expected, len(values)
    return found


ratings_of_items = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 10).map(lambda half: half / 2)))


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(formula=st.sampled_from([MEAN, BAYESIAN, WILSON]), before=ratings_of_items, after=ratings_of_items)
def test_scores_follow_the_events_and_only_changes_are_written(
    source: Database,
    formula: dict[str, Any],
    before: list[tuple[int, float]],
    after: list[tuple[int, float]],
) -> None:
    spec = rating_spec(formula)
    execute(source, "DROP TABLE IF EXISTS rating", "DROP TABLE IF EXISTS title_score")
    make(source, stars="DOUBLE PRECISION")
    for ratings in (before, after):
        execute(source, "DELETE FROM rating")
        rate(source, *ratings)
        old, plan, done, new = scores(source), dry_run(spec, source), recompute(spec, source), scores(source)

        expected = expected_scores(spec, ratings)
        changed = {item for item in new if new[item] != old.get(item)}
        assert {item: new[item] for item in expected} == expected
        assert set(new) == set(old) | set(expected)
        assert done == Recomputed(
            items=len(expected),
            events=len(ratings),
            changed=len(changed),
            emptied=len(changed - set(expected)),
        )
        assert (plan.items, plan.events) == (done.items, done.events)
        assert (plan.changed, plan.emptied) == (done.changed, done.emptied)
        assert recompute(spec, source).changed == dry_run(spec, source).changed == 0


@pytest.mark.parametrize("score_type", ["NUMERIC(4,2)", "REAL", "DOUBLE PRECISION"])
def test_a_second_run_writes_nothing_whatever_the_columns_keep(source: Database, score_type: str) -> None:
    for stars_type in ("INTEGER", "NUMERIC(3,1)", "REAL"):
        execute(source, "DROP TABLE IF EXISTS rating", "DROP TABLE IF EXISTS title_score")
        make(source, stars=stars_type, score=score_type)
        rate(source, (1, 1), (1, 1), (1, 5), (2, 4), (3, 2), (3, 5), (3, 5), (3, 5), (3, 5), (3, 5), (3, 4))
        execute(source, "INSERT INTO title_score (title_id, score, votes) VALUES (9, 3, 7)")
        for spec in (rating_spec(MEAN), rating_spec(BAYESIAN), rating_spec(WILSON)):
            assert recompute(spec, source).changed > 0
            assert recompute(spec, source) == Recomputed(items=3, events=11, changed=0, emptied=0)


def test_rows_without_an_item_or_a_value_are_ignored(source: Database) -> None:
    make(source)
    rate(source, (1, 4), (1, None), (None, 5), (2, None))
    assert recompute(rating_spec(MEAN), source) == Recomputed(items=1, events=1, changed=1, emptied=0)
    assert scores(source) == {1: (4.0, 1)}


@pytest.mark.parametrize(("formula", "empty"), [(MEAN, None), (BAYESIAN, 4.5), (WILSON, 0.0)])
def test_an_item_that_lost_its_last_event_is_emptied_once_and_never_deleted(
    source: Database, formula: dict[str, Any], empty: float | None
) -> None:
    make(source)
    rate(source, (1, 4), (1, 5))
    execute(source, "INSERT INTO title_score VALUES (7, 3.5, 2, 'kept')")
    spec = rating_spec(formula)
    assert recompute(spec, source).emptied == 1
    assert rows(source, "SELECT * FROM title_score WHERE title_id = 7") == [(7, empty, 0, "kept")]
    assert recompute(spec, source).emptied == 0


def test_a_row_of_no_item_is_left_alone(source: Database) -> None:
    execute(
        source,
        RATING.format(stars="INTEGER"),
        "CREATE TABLE title_score (title_id INTEGER UNIQUE, score DOUBLE PRECISION, votes INTEGER)",
        "INSERT INTO title_score VALUES (NULL, 3.5, 2)",
    )
    assert dry_run(rating_spec(WILSON), source).changed == recompute(rating_spec(WILSON), source).changed == 0
    assert rows(source, "SELECT * FROM title_score") == [(None, 3.5, 2)]


@pytest.mark.parametrize("held", ["4.0, 7", "3.0, 1", "NULL, 1", "NULL, 0"])
def test_a_row_is_written_if_its_score_or_its_count_is_not_right(source: Database, held: str) -> None:
    make(source)
    rate(source, (1, 4))
    execute(source, f"INSERT INTO title_score (title_id, score, votes) VALUES (1, {held})")
    assert recompute(rating_spec(MEAN), source).changed == 1
    assert scores(source) == {1: (4.0, 1)}


def test_other_columns_keep_their_values_or_get_their_defaults(source: Database) -> None:
    make(source)
    rate(source, (1, 4), (2, 5))
    execute(source, "INSERT INTO title_score VALUES (1, 3.5, 2, 'kept')")
    recompute(rating_spec(MEAN), source)
    assert sorted(rows(source, "SELECT * FROM title_score")) == [(1, 4.0, 1, "kept"), (2, 5.0, 1, "new")]


def test_a_given_prior_mean_is_used_and_else_the_mean_of_all_events(source: Database) -> None:
    make(source)
    rate(source, (1, 5), (2, 2), (2, 2))
    recompute(rating_spec({"name": "bayesian", "prior_weight": 1}), source)
    assert scores(source) == {1: (4.0, 1), 2: (7 / 3, 2)}
    recompute(rating_spec({"name": "bayesian", "prior_weight": 1, "prior_mean": 8}), source)
    assert scores(source) == {1: (6.5, 1), 2: (4.0, 2)}


def test_the_mean_of_all_events_is_not_rounded(source: Database) -> None:
    make(source, stars="NUMERIC")
    rate(source, (1, 0.123456789012345))
    execute(source, "INSERT INTO title_score (title_id) VALUES (2)")
    recompute(rating_spec(BAYESIAN), source)
    assert scores(source)[2] == (0.123456789012345, 0)


def test_without_any_event_a_bayesian_score_is_unknown(source: Database) -> None:
    make(source)
    execute(source, "INSERT INTO title_score VALUES (1, 3.5, 2, 'old')")
    assert recompute(rating_spec(BAYESIAN), source) == Recomputed(items=0, events=0, changed=1, emptied=1)
    assert scores(source) == {1: (None, 0)}


@pytest.mark.parametrize("stars_type", ["INTEGER", "NUMERIC(3,1)", "REAL", "DOUBLE PRECISION"])
def test_a_value_at_the_threshold_is_positive_whatever_the_column_keeps(
    source: Database, stars_type: str
) -> None:
    make(source, stars=stars_type)
    whole = stars_type == "INTEGER"
    rate(source, *((1, 4), (2, 3)) if whole else ((1, 4.1), (2, 4.0)))
    recompute(rating_spec({"name": "wilson", "positive_from": 3.5 if whole else 4.1}), source)
    found = scores(source)
    assert found[1] > (0, 1)
    assert found[2] == (0, 1)


def test_a_dry_run_shows_a_few_changes_and_makes_none(source: Database) -> None:
    make(source)
    rate(source, *((item, 4) for item in range(2, 10)))
    execute(source, "INSERT INTO title_score VALUES (1, 3.5, 2, 'old')")
    plan = dry_run(rating_spec(MEAN), source)
    assert plan == Plan(items=8, events=8, changed=9, emptied=1, samples=plan.samples)
    assert plan.samples[:2] == (
        Change(item="1", old=3.5, new=None, events=0),
        Change(item="2", old=None, new=4.0, events=1),
    )
    assert len(plan.samples) == 5
    assert scores(source) == {1: (3.5, 2)}


def test_a_run_that_fails_writes_nothing_and_says_what_the_database_said(source: Database) -> None:
    check = "votes INTEGER CONSTRAINT never_empty CHECK (votes > 0)"
    execute(
        source,
        RATING.format(stars="INTEGER"),
        f"CREATE TABLE title_score (title_id INTEGER PRIMARY KEY, score REAL, {check})",
    )
    rate(source, (1, 4))
    execute(source, "INSERT INTO title_score VALUES (2, 3.5, 2)")
    with pytest.raises(
        JobFailed, match=r'to table "title_score" of the source app: .*never_empty'
    ) as failure:
        recompute(rating_spec(MEAN), source)
    assert "\n" not in str(failure.value)
    assert scores(source) == {2: (3.5, 2)}


def test_a_score_that_may_not_be_null_fails_the_run_when_there_is_none(source: Database) -> None:
    make(source, score="REAL NOT NULL")
    execute(source, "INSERT INTO title_score VALUES (2, 3.5, 2, 'old')")
    with pytest.raises(JobFailed, match=r"(?i)not.null"):
        recompute(rating_spec(BAYESIAN), source)
    assert scores(source) == {2: (3.5, 2)}


@pytest.mark.parametrize("act", [examine, dry_run, recompute])
@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/none", "sqlite:////nowhere/at/all.db"])
def test_a_source_that_does_not_answer_is_unavailable(
    url: str, act: Callable[[RatingsSpec, Database], object]
) -> None:
    with pytest.raises(Unavailable):
        act(rating_spec(MEAN), Database(url, name="source app"))


def test_identifiers_are_quoted_and_events_may_be_a_view(source: Database) -> None:
    execute(
        source,
        'CREATE TABLE "all ratings" ("Item" VARCHAR(9), "select" INTEGER, trusted INTEGER)',
        """INSERT INTO "all ratings" VALUES ('a', 4, 1), ('a', 1, 0), ('O''B', 5, 1)""",
        'CREATE VIEW "trusted ratings" AS SELECT "Item", "select" FROM "all ratings" WHERE trusted = 1',
        'CREATE TABLE "table" ("Item" VARCHAR(9) PRIMARY KEY, "order" REAL, "count" INTEGER)',
    )
    spec = rating_spec(
        MEAN,
        events={"table": "trusted ratings", "item": "Item", "value": "select"},
        target={"table": "table", "item": "Item", "score": "order", "count": "count"},
    )
    examine(spec, source)
    assert recompute(spec, source).changed == 2
    assert sorted(rows(source, 'SELECT * FROM "table"')) == [("O'B", 5.0, 1), ("a", 4.0, 1)]
    execute(source, """UPDATE "all ratings" SET trusted = 0 WHERE "Item" = 'a'""")
    assert recompute(spec, source).emptied == 1


def test_tables_may_be_in_a_schema(postgresql: Database) -> None:
    execute(
        postgresql,
        "CREATE SCHEMA shop",
        RATING.format(stars="INTEGER").replace("rating", "shop.rating"),
        TARGET.format(score="REAL").replace("title_score", "shop.title_score"),
        "INSERT INTO shop.rating VALUES (1, 4)",
        "INSERT INTO shop.title_score VALUES (1, 2, 3), (2, 2, 3)",
    )
    spec = rating_spec(MEAN, events={"table": "shop.rating"}, target={"table": "shop.title_score"})
    assert recompute(spec, postgresql).changed == dry_run(spec, postgresql).changed + 2 == 2


def test_a_domain_is_the_type_it_is_made_of(postgresql: Database) -> None:
    execute(
        postgresql,
        "CREATE DOMAIN stars AS REAL CHECK (VALUE <= 5)",
        "CREATE SCHEMA shop",
        "CREATE DOMAIN shop.score AS NUMERIC(4,2)",
    )
    make(postgresql, stars="stars", score="shop.score")
    rate(postgresql, (1, 5), (1, 5), (1, 4))
    assert recompute(rating_spec(MEAN), postgresql).changed == 1
    assert (
        recompute(rating_spec(MEAN), postgresql).changed
        == dry_run(rating_spec(MEAN), postgresql).changed
        == 0
    )
    assert scores(postgresql) == {1: (4.67, 3)}


def test_the_order_of_the_events_does_not_change_a_score(postgresql: Database) -> None:
    make(postgresql, stars="DOUBLE PRECISION")
    rate(postgresql, (1, 0.1), (1, 0.2), (1, 0.3), (2, 0.3), (2, 0.2), (2, 0.1))
    recompute(rating_spec(MEAN), postgresql)
    assert scores(postgresql) == {1: (0.6 / 3, 3), 2: (0.6 / 3, 3)}


def test_a_row_that_is_right_is_not_even_locked(postgresql: Database) -> None:
    make(postgresql)
    rate(postgresql, (1, 4), (2, 5))
    execute(postgresql, "INSERT INTO title_score VALUES (1, 4, 1), (2, 3, 1), (3, NULL, 0)")
    assert recompute(rating_spec(MEAN), postgresql).changed == 1
    # xmax names the last transaction that locked or replaced a row version, xmin the one that wrote it.
    touched = rows(postgresql, "SELECT title_id FROM title_score WHERE xmax <> 0 OR score = 5 ORDER BY 1")
    assert touched == [(2,)]


@pytest.mark.parametrize(("theirs", "written"), [(4.0, 0), (3.0, 1)])
def test_a_row_that_somebody_inserts_meanwhile_is_met_with_grace(
    postgresql: Database, theirs: float, written: int
) -> None:
    make(postgresql)
    rate(postgresql, (1, 4))
    done: list[Recomputed] = []
    run = threading.Thread(target=lambda: done.append(recompute(rating_spec(MEAN), postgresql)))
    with postgresql.write() as connection:
        connection.exec_driver_sql("INSERT INTO title_score VALUES (1, %s, 1)", (theirs,))
        run.start()
        while rows(postgresql, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
            pass
    run.join()
    assert done == [Recomputed(items=1, events=1, changed=written, emptied=0)]
    assert scores(postgresql) == {1: (4.0, 1)}


def test_the_applications_own_table_of_the_same_name_is_safe(source: Database) -> None:
    make(source)
    execute(source, "CREATE TABLE maintd_tallies (precious INTEGER)")
    rate(source, (1, 4))
    assert recompute(rating_spec(MEAN), source).changed == 1
    assert rows(source, "SELECT precious FROM maintd_tallies") == []


def test_a_job_reads_as_documented() -> None:
    text = """
        source  = "app"
        formula = { name = "bayesian", prior_weight = 25 }
        events  = { table = "rating", item = "title_id", value = "stars" }
        target  = { table = "title_score", item = "title_id", score = "score", count = "votes" }
    """
    spec = RatingsSpec.model_validate(tomllib.loads(text))
    assert spec == rating_spec(BAYESIAN)
    assert RatingsSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_every_key_of_a_job_is_documented() -> None:
    schema = RatingsSpec.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        for name, key in model["properties"].items():
            assert key.get("description"), f"{model['title']}.{name}"
