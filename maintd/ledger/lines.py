"""Lines: the lanes of a campaign. All share one numbering of deliveries, and each is cut into batches by itself.

A range of ordinals speaks of the deliveries of one lane; what lies between them is of other lanes and of no concern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.ledger.tables import lines

#: The lane of whoever has no other.
OTHERS = 0
#: What it is called: no name that a person can give.
OTHERS_NAME = "*"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One lane of a campaign; see `tables.lines` for what each column means."""

    campaign_id: int
    lane: int
    name: str
    cut: int
    tail: int
    enrolled: int


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The deliveries of one lane whose ordinals are in a range.

    Attributes:
        lane: None: of every lane.
        lo: First ordinal.
        hi: Ordinal after the last.
    """

    campaign_id: int
    lane: int | None
    lo: int
    hi: int


def begin(connection: Connection, campaign_id: int, *, lane: int = OTHERS, name: str = OTHERS_NAME) -> None:
    """Gives a campaign one more line, with nobody in it."""
    values = {"campaign_id": campaign_id, "lane": lane, "name": name, "cut": 0, "tail": 0, "enrolled": 0}
    connection.execute(sa.insert(lines).values(values))


def begin_anew(connection: Connection, campaign_id: int) -> None:
    """Leaves a campaign the one line that every campaign has; its deliveries must have been wiped."""
    connection.execute(sa.delete(lines).where(lines.c.campaign_id == campaign_id))
    begin(connection, campaign_id)


def of_campaign(connection: Connection, campaign_id: int) -> list[Line]:
    """The lines of a campaign by their numbers; the first is that of whoever has no other."""
    query = sa.select(lines).where(lines.c.campaign_id == campaign_id).order_by(lines.c.lane)
    return [Line(**row) for row in connection.execute(query).mappings()]


def name_of(connection: Connection, campaign_id: int, lane: int) -> str:
    """What a lane of a campaign is called."""
    query = sa.select(lines.c.name).where(lines.c.campaign_id == campaign_id, lines.c.lane == lane)
    return str(connection.scalars(query).one())


def enrol(connection: Connection, campaign_id: int, tails: Mapping[int, int]) -> None:
    """Says how far lines go with those enrolled so far, by lane: the ordinal after the last delivery."""
    for lane, tail in sorted(tails.items()):
        _set(connection, campaign_id, lane, tail=tail, enrolled=tail)


def extend(connection: Connection, campaign_id: int, tails: Mapping[int, int]) -> None:
    """Says how far lines go with those that came back into them, by lane: the ordinal after the last delivery."""
    for lane, tail in sorted(tails.items()):
        _set(connection, campaign_id, lane, tail=tail)


def _set(connection: Connection, campaign_id: int, lane: int, **values: int) -> None:
    one = sa.and_(lines.c.campaign_id == campaign_id, lines.c.lane == lane)
    connection.execute(sa.update(lines).where(one).values(**values))
