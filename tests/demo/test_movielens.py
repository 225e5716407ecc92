"""Reading a MovieLens download: streaming, bounded, and with every bad line named."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from maintd.database import Database
from maintd.demo.application import create, rating
from maintd.demo.films import Title
from maintd.demo.movielens import read_movielens
from maintd.errors import Problems

NOW = datetime(2026, 11, 20, tzinfo=UTC)
MOVIES = """movieId,title,genres
10,Quiet Orchard (1999),Drama|Romance
20,"Comet, The (a.k.a. ""Der Komet"") (2004)",Comedy
30,Untitled,(no genres listed)
"""
RATINGS = """userId,movieId,rating,timestamp
71,10,4.0,964982703
71,30,0.5,964982800
99,10,5.0,1147880044
99,20,3.5,1147880055
"""


def download(directory: Path, *, movies: str = MOVIES, ratings: str = RATINGS) -> Path:
    (directory / "movies.csv").write_text(movies, encoding="utf-8")
    (directory / "ratings.csv").write_text(ratings, encoding="utf-8")
    return directory


def problems(directory: Path) -> list[str]:
    with pytest.raises(Problems) as caught:
        read_movielens(directory, limit=1000)
    return [str(problem).removeprefix(f"{directory}/") for problem in caught.value.problems]


def test_titles_lose_their_year_and_people_are_renumbered(tmp_path: Path) -> None:
    films = read_movielens(download(tmp_path), limit=1000)
    assert films.titles == [
        Title(10, "Quiet Orchard", 1999, "Drama, Romance"),
        Title(20, 'Comet, The (a.k.a. "Der Komet")', 2004, "Comedy"),
        Title(30, "Untitled", None, None),
    ]
    assert films.raters == 2
    assert [tuple(rating)[:3] for rating in films.ratings] == [
        (1, 10, 4.0), (1, 30, 0.5), (2, 10, 5.0), (2, 20, 3.5)
    ]  # fmt: skip


def test_no_more_than_the_limit_is_read_and_only_rated_titles_are_kept(tmp_path: Path) -> None:
    films = read_movielens(download(tmp_path, ratings=RATINGS + "not,even,looked,at\n"), limit=2)
    assert [title.id for title in films.titles] == [10, 30]
    assert len(list(films.ratings)) == 2


def test_a_download_fills_the_same_tables(tmp_path: Path, database_url: str) -> None:
    database = Database(database_url, name="source app")
    films = read_movielens(download(tmp_path), limit=1000)
    population = create(database, seed=7, users=1, now=NOW, films=films)
    assert (population.titles, population.ratings, population.users) == (3, 4, 100)
    with database.read() as connection:
        stored = connection.execute(sa.select(rating.c.rated_at).order_by(rating.c.rated_at)).scalars()
        assert next(stored) == datetime(2000, 7, 30, 18, 45, 3, tzinfo=UTC)


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    bad = "1,10,4.2,964982703\n1,10,nan,0\n1,77,4.0,0\n1,20,4.0\nx,10,4.0,0\n1,10,4.0,99999999999999999\n71,10,3.0,1\n"
    assert problems(download(tmp_path, ratings=RATINGS + bad)) == [
        'ratings.csv:6: rating "4.2" is not a half-star step from 0.5 to 5.0',
        'ratings.csv:7: rating "nan" is not a half-star step from 0.5 to 5.0',
        "ratings.csv:8: movies.csv has no movieId 77",
        "ratings.csv:9: 3 columns instead of 4",
        'ratings.csv:10: userId "x" is not a number',
        'ratings.csv:11: timestamp "99999999999999999" is not a number',
        "ratings.csv:12: this user has rated this movie on an earlier line",
    ]


def test_a_wholly_wrong_file_is_not_listed_line_by_line(tmp_path: Path) -> None:
    assert len(problems(download(tmp_path, ratings=RATINGS + "bad\n" * 1000))) == 20
    assert problems(download(tmp_path, movies="1::Toy::Comedy\n")) == [
        'movies.csv:1: the first line is not "movieId,title,genres"'
    ]


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    [problem] = problems(tmp_path)
    assert problem.startswith("movies.csv: cannot be read: No such file or directory; give the directory of")


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (b'10,"Never closed', "not CSV: unexpected end of data"),
        (b"10,\xff,Drama\n", "not UTF-8: invalid start byte"),
    ],
)
def test_what_is_not_csv_in_utf8_is_named(tmp_path: Path, broken: bytes, what: str) -> None:
    (download(tmp_path) / "movies.csv").write_bytes(b"movieId,title,genres\n" + broken)
    assert problems(tmp_path) == [f"movies.csv:2: {what}"]


def test_a_file_that_vanished_between_check_and_use_is_an_error(tmp_path: Path) -> None:
    films = read_movielens(download(tmp_path), limit=1000)
    (tmp_path / "ratings.csv").unlink()
    with pytest.raises(Problems, match=r"ratings\.csv: cannot be read"):
        list(films.ratings)
