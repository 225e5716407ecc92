"""Invented films and their ratings, in the shape of real ones: few titles and few people make most of the ratings."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

TITLES = 500
RATINGS_PER_RATER = 50

_STARS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
# Per cent of all ratings that MovieLens 25M has of each of `_STARS`: whole stars are liked better than halves.
_SHARES = (1.6, 3.1, 1.6, 6.6, 5.1, 19.6, 12.7, 26.6, 8.8, 14.5)
_MEAN_STARS = 3.5
_QUALITY_SPREAD = 0.45
_MOST_ACTIVE = 8.0  # times the median: nobody has rated more than there is
_RATED_WITHIN = timedelta(days=1000)

_GENRES = (
    "Adventure",
    "Animation",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Mystery",
    "Romance",
    "War",
)
_ADJECTIVES = (
    "Blue", "Borrowed", "Crooked", "Distant", "Electric", "Forgotten", "Gentle", "Hollow", "Invisible", "Last",
    "Midnight", "Paper", "Quiet", "Restless", "Scarlet", "Second", "Seventh", "Silver", "Velvet", "Winter",
)  # fmt: skip
_NOUNS = (
    "Archive", "Café", "Cartographer", "Comet", "Daughter", "Elevator", "Garden", "Harbour", "Ledger", "Letter",
    "Lighthouse", "Orchard", "Passenger", "Piano", "River", "Señora", "Station", "Stranger", "Telephone", "Übermut",
)  # fmt: skip
_SHAPES = (
    "The {adjective} {noun}", "{adjective} {noun}", "A {noun} in {adjective}", "The {noun} & the {other}",
    "My {adjective} {noun}", "Farewell, {adjective} {noun}!", "The {noun}'s {other}", 'Who Took the "{noun}"?',
)  # fmt: skip


class Title(NamedTuple):
    """A row of `title`."""

    id: int
    name: str
    year: int | None
    genre: str | None


class Rating(NamedTuple):
    """A row of `rating`: half stars from 0.5 to 5."""

    user_id: int
    title_id: int
    stars: float
    rated_at: datetime


@dataclass(frozen=True, kw_only=True)
class Films:
    """What was shown and what people thought of it.

    Attributes:
        titles: Every title that a rating names.
        ratings: At most one by a person and title; made while it is read, so it can be read once.
        raters: The ratings' user ids are 1 to this.
    """

    titles: Sequence[Title]
    ratings: Iterable[Rating]
    raters: int


def invent_films(draw: random.Random, *, raters: int, now: datetime) -> Films:
    """Invents `TITLES` films and on average `RATINGS_PER_RATER` ratings by each person."""
    titles = list(_titles(draw, newest=now.year))
    return Films(titles=titles, ratings=_ratings(draw, titles, raters=raters, now=now), raters=raters)


def _titles(draw: random.Random, *, newest: int) -> Iterator[Title]:
    names: dict[str, None] = {}
    while len(names) < TITLES:
        noun, other = draw.sample(_NOUNS, 2)
        names[draw.choice(_SHAPES).format(adjective=draw.choice(_ADJECTIVES), noun=noun, other=other)] = None
    for number, name in enumerate(names, start=1):
        yield Title(number, name, newest - int(draw.expovariate(1 / 15)), draw.choice(_GENRES))


def _ratings(draw: random.Random, titles: Sequence[Title], *, raters: int, now: datetime) -> Iterator[Rating]:
    popularity = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(titles))))
    tastes = [_taste(draw) for _ in titles]
    for user_id, count in _activity(draw, raters=raters).items():
        for index in _distinct(draw, popularity, count=min(count, len(titles))):
            stars = draw.choices(_STARS, cum_weights=tastes[index])[0]
            yield Rating(user_id, titles[index].id, stars, now - _RATED_WITHIN * draw.random())


def _taste(draw: random.Random) -> list[float]:
    """The cumulative shares of `_STARS` for one title, tilted by how good it is."""
    quality = draw.gauss(0, _QUALITY_SPREAD)
    tilted = (share * math.exp(quality * (s - _MEAN_STARS)) for s, share in zip(_STARS, _SHARES, strict=True))
    return list(itertools.accumulate(tilted))


def _activity(draw: random.Random, *, raters: int) -> Counter[int]:
    """How many ratings each person gave: log-normal, cut at the top, summing up exactly."""
    weights = [min(draw.lognormvariate(0, 1), _MOST_ACTIVE) for _ in range(raters)]
    return Counter(draw.choices(range(1, raters + 1), weights, k=raters * RATINGS_PER_RATER))


def _distinct(draw: random.Random, cumulative: Sequence[float], *, count: int) -> list[int]:
    """Draws `count` different indices, each draw weighted."""
    found: dict[int, None] = {}
    while len(found) < count:
        found.update(dict.fromkeys(draw.choices(range(len(cumulative)), cum_weights=cumulative, k=count)))
    return list(found)[:count]
