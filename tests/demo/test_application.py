"""The imagined application: reproducible, shaped like a real one, and never in anybody's way."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from maintd.database import Database
from maintd.demo import application
from maintd.demo.application import METADATA, Population, create
from maintd.demo.films import RATINGS_PER_RATER, TITLES, invent_films
from maintd.demo.people import _INVALID, _ODD_BUT_VALID, FEWEST, invent_people
from maintd.errors import MaintdError
from maintd.mail.address import InvalidAddress, parse_address

NOW = datetime(2026, 11, 20, 3, 10, tzinfo=UTC)


def populate(url: str, *, seed: int = 7, users: int = FEWEST) -> tuple[Database, Population]:
    database = Database(url, name="source app")
    return database, create(database, seed=seed, users=users, now=NOW)


def rows(database: Database, statement: str) -> list[dict[str, Any]]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(sa.text(statement)).mappings()]


def contents(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    with database.read() as connection:
        return {
            name: [
                tuple(row)
                for row in connection.execute(sa.select(table).order_by(*table.primary_key.columns))
            ]
            for name, table in METADATA.tables.items()
        }


def test_equal_seeds_give_equal_rows_and_another_seed_others(database_url: str, tmp_path: Path) -> None:
    first, population = populate(database_url)
    second, again = populate(f"sqlite:///{tmp_path / 'second.db'}")
    third, other = populate(f"sqlite:///{tmp_path / 'third.db'}", seed=8)
    assert contents(first) == contents(second)
    assert population == again
    assert contents(first)["app_user"] != contents(third)["app_user"]
    assert population.expected != other.expected


def test_the_population_says_what_the_tables_hold(database_url: str) -> None:
    database, population = populate(database_url)
    held = contents(database)
    assert population.users == len(held["app_user"]) == 100
    assert population.titles == len(held["title"]) == TITLES
    assert population.ratings == len(held["rating"]) == 100 * RATINGS_PER_RATER
    assert population.sessions == len(held["session"]) == 1000
    assert population.expired_sessions == sum(expires_at < NOW for *_, expires_at in held["session"])
    assert population.opted_in == sum(wants_digest for *_, wants_digest, _ in held["app_user"])
    assert held["title_score"] == []


def test_most_sessions_have_expired_and_most_of_those_more_than_a_day_ago(sqlite_url: str) -> None:
    database, population = populate(sqlite_url)
    assert 0.55 < population.expired_sessions / population.sessions < 0.65
    long_ago = sum(expires_at < NOW - timedelta(days=1) for *_, expires_at in contents(database)["session"])
    assert long_ago > 0.9 * population.expired_sessions


def test_everybody_opted_in_is_expected_suppressed_invalid_or_a_duplicate(sqlite_url: str) -> None:
    database, population = populate(sqlite_url, users=1000)
    assert population.suppressed
    assert population.duplicates
    assert population.expected.isdisjoint(population.suppressed)
    assert population.opted_in == (
        len(population.expected) + len(population.suppressed) + population.invalid + population.duplicates
    )
    canonical = set()
    for row in rows(database, "SELECT email FROM app_user WHERE wants_digest"):
        try:
            canonical.add(parse_address(row["email"]).canonical)
        except InvalidAddress:
            continue
    assert canonical - set(population.suppressed) == population.expected


@pytest.mark.parametrize("email", _INVALID)
def test_each_broken_address_is_broken(email: str | None) -> None:
    with pytest.raises(InvalidAddress):
        parse_address(email)


@pytest.mark.parametrize("email", [email for _, email in _ODD_BUT_VALID])
def test_each_odd_address_is_valid(email: str) -> None:
    assert parse_address(email).canonical


def test_some_people_are_there_twice_in_another_spelling() -> None:
    people = invent_people(random.Random(1), count=1000, now=NOW)
    spellings: dict[str, set[str]] = {}
    for person in people:
        if person.email and person.email.isascii() and "@" in person.email:
            spellings.setdefault(person.email.lower(), set()).add(person.email)
    assert any(len(emails) > 1 for emails in spellings.values())


def test_every_address_is_of_a_reserved_domain() -> None:
    for person in invent_people(random.Random(1), count=1000, now=NOW):
        domain = (person.email or "").rpartition("@")[2].lower()
        if person.email not in _INVALID:
            assert domain.endswith((".example", ".test")) or domain in (
                "example.com",
                "example.org",
                "example.net",
            )


def test_ratings_are_shaped_like_those_of_real_people() -> None:
    ratings = list(invent_films(random.Random(1), raters=2000, now=NOW).ratings)
    by_title = sorted(Counter(rating.title_id for rating in ratings).values(), reverse=True)
    by_user = sorted(Counter(rating.user_id for rating in ratings).values())
    stars = Counter(rating.stars for rating in ratings)
    assert len(ratings) == len({(rating.user_id, rating.title_id) for rating in ratings}) == 100_000
    assert sum(by_title[: TITLES // 10]) > len(ratings) / 3
    assert statistics.mean(by_user) > 1.3 * statistics.median(by_user)
    assert set(stars) == {number / 2 for number in range(1, 11)}
    assert stars.most_common(1)[0][0] == 4.0
    assert stars[3.0] > stars[3.5] < stars[4.0] > stars[4.5]
    assert 3.3 < statistics.mean(rating.stars for rating in ratings) < 3.7


@pytest.mark.parametrize("taken", ["title", "session"])
def test_a_database_with_a_table_of_that_name_is_left_alone(database_url: str, taken: str) -> None:
    database = Database(database_url, name="source app")
    with database.write() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {taken} (precious TEXT)")
        connection.exec_driver_sql(f"INSERT INTO {taken} VALUES ('kept')")
    with pytest.raises(MaintdError, match=f"wants to create: {taken};"):
        create(database, seed=7, users=FEWEST, now=NOW)
    with database.read() as connection:
        assert sa.inspect(connection).get_table_names() == [taken]
    assert rows(database, f"SELECT * FROM {taken}") == [{"precious": "kept"}]


def test_a_creation_that_fails_leaves_nothing_behind(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(database_url, name="source app")
    twice = [application.Session("same", 1, NOW), application.Session("same", 2, NOW)]
    monkeypatch.setattr(application, "_sessions", lambda *_, **__: iter(twice))
    with pytest.raises(sa.exc.IntegrityError):
        create(database, seed=7, users=FEWEST, now=NOW)
    with database.read() as connection:
        assert sa.inspect(connection).get_table_names() == []
