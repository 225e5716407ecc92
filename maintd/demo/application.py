"""An imagined film site's database, for trying maintd on: tables as applications have them, filled reproducibly."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.database import Database, Instant
from maintd.demo.films import Films, invent_films
from maintd.demo.people import FEWEST, Person, invent_people
from maintd.errors import MaintdError
from maintd.mail.address import InvalidAddress, parse_address

SESSIONS_PER_USER = 10

_EXPIRED = 0.6
_SUPPRESSED = 0.01
_BATCH_ROWS = 5_000

METADATA = sa.MetaData()
_id = sa.Integer().with_variant(sa.BigInteger, "postgresql")

app_user = sa.Table(
    "app_user",
    METADATA,
    sa.Column("id", _id, primary_key=True),
    sa.Column("email", sa.Text, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("wants_digest", sa.Boolean, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
)
title = sa.Table(
    "title",
    METADATA,
    sa.Column("id", _id, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("year", sa.Integer),
    sa.Column("genre", sa.Text),
)
rating = sa.Table(
    "rating",
    METADATA,
    sa.Column("user_id", _id, sa.ForeignKey("app_user.id"), primary_key=True),
    sa.Column("title_id", _id, sa.ForeignKey("title.id"), primary_key=True),
    sa.Column("stars", sa.Double, nullable=False),
    sa.Column("rated_at", Instant, nullable=False),
    sa.Index("ix_rating_title_id_stars", "title_id", "stars"),
)
title_score = sa.Table(
    "title_score",
    METADATA,
    sa.Column("title_id", _id, sa.ForeignKey("title.id"), primary_key=True),
    sa.Column("score", sa.Double, index=True),
    sa.Column("votes", sa.Integer),
)
session = sa.Table(
    "session",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("user_id", _id, sa.ForeignKey("app_user.id"), nullable=False, index=True),
    sa.Column("expires_at", Instant, nullable=False, index=True),
)


@dataclass(frozen=True, kw_only=True)
class Population:
    """What `create` put in, and whom the digest must reach: the truth that a run is held against afterwards.

    `opted_in == len(expected) + len(suppressed) + invalid + duplicates`.

    Attributes:
        users: Rows of `app_user`.
        titles: Rows of `title`.
        ratings: Rows of `rating`.
        sessions: Rows of `session`.
        expired_sessions: Of those, the ones that expired before `now`.
        opted_in: Rows of `app_user` that want the digest.
        expected: The canonical addresses that must get it, each once.
        suppressed: Canonical addresses that want it but must not get it.
        invalid: Opted-in rows whose address is none.
        duplicates: Opted-in rows whose address an earlier one has already.
    """

    users: int
    titles: int
    ratings: int
    sessions: int
    expired_sessions: int
    opted_in: int
    expected: frozenset[str]
    suppressed: tuple[str, ...]
    invalid: int
    duplicates: int


class Session(NamedTuple):
    """A row of `session`."""

    id: str
    user_id: int
    expires_at: datetime


class _Row(Protocol):
    def _asdict(self) -> dict[str, object]: ...


def create(
    database: Database, *, seed: int, users: int, now: datetime, films: Films | None = None
) -> Population:
    """Creates the tables and fills them, in one transaction; equal arguments give equal rows.

    Args:
        database: Where; none of the tables may exist there.
        seed: Decides everything that is drawn.
        users: How many people; raised to what `films` and the special cases among them need.
        now: Decides what has expired.
        films: Titles and ratings to use instead of invented ones.

    Raises:
        MaintdError: A table of one of the names is there already. It belongs to somebody: nothing was touched.
        Unavailable: The database does not answer.
    """
    users = max(users, FEWEST, films.raters if films else 0)
    people = invent_people(_draw(seed, "people"), count=users, now=now)
    sessions = list(_sessions(_draw(seed, "sessions"), users=users, now=now))
    films = films or invent_films(_draw(seed, "films"), raters=users, now=now)
    with database.write() as connection:
        _refuse_existing(connection)
        METADATA.create_all(connection, checkfirst=False)
        _insert(connection, app_user, people)
        _insert(connection, title, films.titles)
        ratings = _insert(connection, rating, films.ratings)
        _insert(connection, session, sessions)
    addresses = _opted_in_addresses(people)
    valid = [address for address in addresses if address is not None]
    distinct = frozenset(valid)
    suppressed = _suppressed(_draw(seed, "suppressed"), distinct)
    return Population(
        users=users,
        titles=len(films.titles),
        ratings=ratings,
        sessions=len(sessions),
        expired_sessions=sum(entry.expires_at < now for entry in sessions),
        opted_in=len(addresses),
        expected=distinct - set(suppressed),
        suppressed=suppressed,
        invalid=len(addresses) - len(valid),
        duplicates=len(valid) - len(distinct),
    )


def _draw(seed: int, part: str) -> random.Random:
    """Each part draws for itself, so that more of one changes no other."""
    return random.Random(f"{seed} {part}")  # noqa: S311  (it has to be repeatable, not secret)


def _refuse_existing(connection: Connection) -> None:
    inspector = sa.inspect(connection)
    taken = [name for name in METADATA.tables if inspector.has_table(name)]
    if taken:
        raise MaintdError(
            f"the database has tables of the names that the demo wants to create: {', '.join(taken)}; "
            "nothing was touched, give it an empty database"
        )


def _insert(connection: Connection, table: sa.Table, rows: Iterable[_Row]) -> int:
    inserted = 0
    pending = iter(rows)
    while batch := [row._asdict() for row in itertools.islice(pending, _BATCH_ROWS)]:
        connection.execute(table.insert(), batch)
        inserted += len(batch)
    return inserted


def _sessions(draw: random.Random, *, users: int, now: datetime) -> Iterator[Session]:
    for _ in range(users * SESSIONS_PER_USER):
        lasts_days = draw.uniform(-30, 0) if draw.random() < _EXPIRED else draw.uniform(0, 14)
        token = f"{draw.getrandbits(128):032x}"
        yield Session(token, draw.randint(1, users), now + timedelta(days=lasts_days))


def _opted_in_addresses(people: Sequence[Person]) -> list[str | None]:
    """The canonical address of each row that wants the digest, None where it is no address."""
    return [_canonical(person.email) for person in people if person.wants_digest]


def _canonical(email: str | None) -> str | None:
    try:
        return parse_address(email).canonical
    except InvalidAddress:
        return None


def _suppressed(draw: random.Random, addresses: Iterable[str]) -> tuple[str, ...]:
    known = sorted(addresses)
    return tuple(draw.sample(known, math.ceil(len(known) * _SUPPRESSED)))
