"""Reading a MovieLens download (grouplens.org/datasets/movielens) instead of inventing films."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from maintd.demo.films import Films, Rating, Title
from maintd.errors import Problem, Problems

_RATINGS = ("userId", "movieId", "rating", "timestamp")
_MOVIES = ("movieId", "title", "genres")
_NAME_AND_YEAR = re.compile(r"(?P<name>.*\S)\s*\((?P<year>\d{4})(?:[-–]\d{0,4})?\)\s*")
_NO_GENRES = "(no genres listed)"
_MOST_PROBLEMS = 20
_STARS = frozenset(f"{halves / 2}" for halves in range(1, 11))
_NUMBER = re.compile(r"[0-9]{1,10}")  # ten digits of seconds reach the year 2286

_T = TypeVar("_T")


def read_movielens(directory: Path, *, limit: int) -> Films:
    """Reads `movies.csv` and the first `limit` ratings of `ratings.csv`.

    Both files are read and checked before this returns; the ratings are then read a second time as they are
    used, so that memory holds the titles and the keys, not the ratings.

    Args:
        directory: As unpacked from a MovieLens archive of 2015 or later.
        limit: The most ratings to read.

    Returns:
        The titles that were rated, and the ratings. User ids are renumbered from 1 in the order of the file.

    Raises:
        Problems: A file is missing, or lines are not as they should be: the first 20 of them, with their numbers.
    """
    problems: list[Problem] = []
    movies = {title.id: title for title in _read(directory / "movies.csv", _MOVIES, _title, problems)}
    _stop_on(problems)
    path = directory / "ratings.csv"
    raters: dict[int, int] = {}
    rated: set[tuple[int, int]] = set()

    def checked(row: Mapping[str, str]) -> None:
        rating = _rating(row)
        if rating.title_id not in movies:
            raise ValueError(f"movies.csv has no movieId {rating.title_id}")
        if (rating.user_id, rating.title_id) in rated:
            raise ValueError("this user has rated this movie on an earlier line")
        rated.add((rating.user_id, rating.title_id))
        raters.setdefault(rating.user_id, len(raters) + 1)

    for _ in itertools.islice(_read(path, _RATINGS, checked, problems), limit):
        pass
    _stop_on(problems)
    titles = [movies[title_id] for title_id in sorted({title_id for _, title_id in rated})]
    return Films(titles=titles, ratings=_renumbered(path, raters, limit=limit), raters=len(raters))


def _renumbered(path: Path, raters: Mapping[int, int], *, limit: int) -> Iterator[Rating]:
    problems: list[Problem] = []
    for rating in itertools.islice(_read(path, _RATINGS, _rating, problems), limit):
        yield rating._replace(user_id=raters[rating.user_id])
    _stop_on(problems)


def _stop_on(problems: list[Problem]) -> None:
    if problems:
        raise Problems(problems)


def _read(
    path: Path, columns: tuple[str, ...], parse: Callable[[Mapping[str, str]], _T], problems: list[Problem]
) -> Iterator[_T]:
    """Yields what `parse` makes of each line; what cannot be read is added to `problems` instead."""
    try:
        with path.open("rb") as file:
            lines = csv.reader((line.decode() for line in file), strict=True)
            if tuple(next(lines, ())) != columns:
                problems.append(
                    Problem(where=f"{path}:1", what=f'the first line is not "{",".join(columns)}"')
                )
                return
            for fields in lines:
                try:
                    yield parse(_named(fields, columns))
                except ValueError as error:
                    problems.append(Problem(where=f"{path}:{lines.line_num}", what=str(error)))
                    if len(problems) == _MOST_PROBLEMS:
                        return
    except OSError as error:
        cure = "give the directory of an unpacked MovieLens archive, such as ml-latest-small"
        problems.append(Problem(where=str(path), what=f"cannot be read: {error.strerror}", cure=cure))
    except csv.Error as error:
        problems.append(Problem(where=f"{path}:{lines.line_num}", what=f"not CSV: {error}"))
    except UnicodeDecodeError as error:
        problems.append(Problem(where=f"{path}:{lines.line_num + 1}", what=f"not UTF-8: {error.reason}"))


def _named(fields: Sequence[str], columns: tuple[str, ...]) -> Mapping[str, str]:
    if len(fields) != len(columns):
        raise ValueError(f"{len(fields)} columns instead of {len(columns)}")
    return dict(zip(columns, fields, strict=True))


def _title(row: Mapping[str, str]) -> Title:
    match = _NAME_AND_YEAR.fullmatch(row["title"])
    name, year = (match["name"], int(match["year"])) if match else (row["title"].strip(), None)
    genre = None if row["genres"] == _NO_GENRES else row["genres"].replace("|", ", ")
    return Title(_number(row, "movieId"), name, year, genre)


def _rating(row: Mapping[str, str]) -> Rating:
    if row["rating"] not in _STARS:
        raise ValueError(f'rating "{row["rating"]}" is not a half-star step from 0.5 to 5.0')
    rated_at = datetime.fromtimestamp(_number(row, "timestamp"), UTC)
    return Rating(_number(row, "userId"), _number(row, "movieId"), float(row["rating"]), rated_at)


def _number(row: Mapping[str, str], column: str) -> int:
    if not _NUMBER.fullmatch(row[column]):
        raise ValueError(f'{column} "{row[column]}" is not a number')
    return int(row[column])
