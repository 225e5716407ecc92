"""The shipped jobs, queries and templates: they fit the imagined application, and each other."""

from __future__ import annotations

import functools
import tomllib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
import sqlalchemy as sa

from maintd.database import Database
from maintd.demo.application import METADATA, Population, create
from maintd.demo.people import FEWEST

ROOT = Path(__file__).parents[2]


def populate(url: str) -> tuple[Database, Population]:
    database = Database(url, name="source app")
    return database, create(database, seed=7, users=FEWEST, now=datetime(2026, 11, 20, 3, 10, tzinfo=UTC))


def rows(database: Database, statement: str) -> list[dict[str, Any]]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(sa.text(statement)).mappings()]


def score(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO title_score (title_id, score, votes) "
            "SELECT title_id, AVG(stars), COUNT(*) FROM rating GROUP BY title_id"
        )


def sample(name: str) -> str:
    return (ROOT / "schedules" / name).read_text(encoding="utf-8")


def test_the_audience_is_everybody_opted_in_with_what_they_rated(database_url: str) -> None:
    database, population = populate(database_url)
    audience = rows(database, sample("digest.sql"))
    people = {row["id"]: row for row in rows(database, "SELECT * FROM app_user WHERE wants_digest")}
    counts = Counter(row["user_id"] for row in rows(database, "SELECT user_id FROM rating"))
    assert len(audience) == population.opted_in
    assert [row["user_id"] for row in audience] == sorted(people)
    for row in audience:
        person = people[row["user_id"]]
        assert set(row) == {"user_id", "email", "name", "rated_count", "favourite"}
        assert (row["email"], row["name"]) == (person["email"], person["name"])
        assert row["rated_count"] == counts[row["user_id"]]


def test_the_favourite_is_a_title_that_nothing_was_rated_above(database_url: str) -> None:
    database, _ = populate(database_url)
    stars: dict[int, dict[str, float]] = {}
    for row in rows(database, "SELECT user_id, name, stars FROM rating JOIN title ON title.id = title_id"):
        stars.setdefault(row["user_id"], {})[row["name"]] = row["stars"]
    for row in rows(database, sample("digest.sql")):
        rated = stars[row["user_id"]]
        assert rated[row["favourite"]] == max(rated.values())


def test_who_has_rated_nothing_is_in_the_audience_all_the_same(database_url: str) -> None:
    database, population = populate(database_url)
    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM rating")
    audience = rows(database, sample("digest.sql"))
    assert len(audience) == population.opted_in
    assert {(row["rated_count"], row["favourite"]) for row in audience} == {(0, None)}


def test_the_top_titles_are_the_ten_best_scored(database_url: str) -> None:
    database, _ = populate(database_url)
    assert rows(database, sample("top-titles.sql")) == []
    score(database)
    top = rows(database, sample("top-titles.sql"))
    best = sorted((row["score"] for row in rows(database, "SELECT score FROM title_score")), reverse=True)
    assert [row["score"] for row in top] == best[:10]
    assert set(top[0]) == {"name", "year", "score", "votes"}


def test_the_nightly_jobs_name_tables_columns_and_files_that_exist() -> None:
    jobs = tomllib.loads(sample("nightly.toml"))
    expired, ratings, digest, nightly = jobs.values()
    assert expired["older_than"]["column"] in METADATA.tables[expired["table"]].columns
    for side in (ratings["events"], ratings["target"]):
        columns = METADATA.tables[side["table"]].columns
        assert {name for key, name in side.items() if key != "table"} <= set(columns.keys())
    for name in (digest["audience"]["sql"], *digest["shared"].values()):
        assert (ROOT / "schedules" / name).is_file()
    assert (ROOT / "templates" / digest["template"] / "body.html").is_file()
    assert set(nightly["steps"]) == jobs.keys() - {"nightly"}


@functools.cache
def template(name: str, *, trim: bool = False) -> jinja2.Template:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=trim,
        lstrip_blocks=trim,
    ).get_template(f"digest/{name}")


@pytest.mark.parametrize("scored", [False, True])
def test_the_digest_renders_for_everybody_whether_or_not_titles_have_scores(
    sqlite_url: str, scored: bool
) -> None:
    database, _ = populate(sqlite_url)
    if scored:
        score(database)
    top = rows(database, sample("top-titles.sql"))
    assert bool(top) == scored
    for person in rows(database, sample("digest.sql")):
        for name in ("subject.txt", "body.html", "body.txt"):
            assert template(name).render(**person, top=top, edition="2026-W47")


def test_the_digest_escapes_names_in_html_and_only_there() -> None:
    film = {"name": "Night & Day", "year": None, "score": 4.26, "votes": 31}
    person = {"name": "Tom <b>", "rated_count": 1, "favourite": 'The "Piano"', "top": [film], "edition": "e"}
    html, text = (template(name).render(**person) for name in ("body.html", "body.txt"))
    assert "Hello, Tom &lt;b&gt;" in html
    assert "Night &amp; Day" in html
    assert "width: 85%" in html
    assert "Hello, Tom <b>!" in text
    assert " 1.  Night & Day\n     ★★★★☆  4.26 from 31 ratings\n" in text
    assert 'You have rated 1 film so far.\nNothing stands above "The "Piano"".' in text


def test_the_plain_text_does_not_depend_on_how_blocks_are_trimmed() -> None:
    film = {"name": "Quiet Orchard", "year": 1999, "score": 4.0, "votes": 3}
    for rated_count, top in ((3, [film, film]), (0, [])):
        person = {"name": "Ada", "rated_count": rated_count, "favourite": "Comet", "top": top, "edition": "e"}
        texts = {template("body.txt", trim=trim).render(**person) for trim in (False, True)}
        assert len(texts) == 1
        assert "\n\n\n" not in texts.pop()
