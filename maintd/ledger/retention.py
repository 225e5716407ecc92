"""Deleting what is long over, in pieces so small that nobody waits for one.

Numbers are given in the order of time, so each kind of row is walked by its id, from the oldest on, up to the first
that is too young. A walk passes what has to stay and looks at it again the next time.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.ledger import allowances
from maintd.ledger.states import ENDED_CAMPAIGNS, ENDED_RUNS
from maintd.ledger.tables import batches, campaigns, deliveries, lines, misses, runs, templates


def prune_misses(connection: Connection, *, after: int, before: datetime, limit: int) -> int | None:
    """Deletes misses whose last instant was before, among the next few.

    Args:
        connection: Of the ledger.
        after: The id of the last one that was looked at.
        before: What is younger stays.
        limit: How many to look at.

    Returns:
        The id after which to go on; None at the end.
    """
    last = _next(connection, misses.c.id, misses.c.last_at, after=after, before=before, limit=limit)
    if last is not None:
        connection.execute(
            sa.delete(misses).where(misses.c.id > after, misses.c.id <= last, misses.c.last_at < before)
        )
    return last


def prune_runs(connection: Connection, *, after: int, before: datetime, limit: int) -> int | None:
    """Deletes runs that were over before, among the next few; see `prune_misses`.

    The newest run of a job stays, and the newest that was begun; so do runs that have steps, and those of campaigns.
    """
    last = _next(connection, runs.c.id, runs.c.created_at, after=after, before=before, limit=limit)
    if last is not None:
        newer, step = runs.alias(), runs.alias()
        begun = sa.or_(newer.c.started_at.is_not(None), runs.c.started_at.is_(None))
        connection.execute(
            sa.delete(runs).where(
                runs.c.id > after,
                runs.c.id <= last,
                runs.c.state.in_(ENDED_RUNS),
                runs.c.finished_at < before,
                sa.exists().where(newer.c.job == runs.c.job, newer.c.id > runs.c.id, begun),
                ~sa.exists().where(step.c.parent_id == runs.c.id),
                ~sa.exists().where(campaigns.c.run_id == runs.c.id),
            )
        )
    return last


def old_campaign(connection: Connection, *, after: int, before: datetime) -> int | None:
    """The next campaign that ended before and that nothing needs any more.

    The newest edition of a job that has recipients stays: the next one's growth is measured by it. So does one that is
    once for ever, or everybody would be mailed again.
    """
    newer = campaigns.alias()
    for_ever = sa.or_(campaigns.c.edition == "ever", campaigns.c.edition.startswith("ever+"))
    query = (
        sa.select(campaigns.c.id)
        .where(
            campaigns.c.id > after,
            _ended(before),
            ~for_ever,
            sa.exists().where(
                newer.c.job == campaigns.c.job,
                newer.c.id > campaigns.c.id,
                newer.c.enrolled_at.is_not(None),
                newer.c.audience > newer.c.duplicates,
            ),
        )
        .order_by(campaigns.c.id)
        .limit(1)
    )
    return connection.scalars(query).first()


def prune_campaign(connection: Connection, campaign_id: int, *, before: datetime, limit: int) -> bool:
    """Deletes a piece of a campaign: of its deliveries, then of its batches, at last the campaign and what else it has.

    Returns:
        Whether something of it is left.
    """
    condition = sa.and_(campaigns.c.id == campaign_id, _ended(before))
    campaign = connection.execute(
        # Locked: a person may have a doubtful message of it sent again at this moment.
        sa.select(campaigns.c.template).where(condition).with_for_update()
    ).first()
    if campaign is None:
        return False
    for table, place in ((deliveries, deliveries.c.ordinal), (batches, batches.c.id)):
        piece = sa.select(place).where(table.c.campaign_id == campaign_id).order_by(place).limit(limit)
        last = connection.scalar(sa.select(sa.func.max(piece.subquery().c[place.name])))
        if last is not None:
            connection.execute(sa.delete(table).where(table.c.campaign_id == campaign_id, place <= last))
            return True
    allowances.forget_campaign(connection, campaign_id)
    connection.execute(sa.delete(lines).where(lines.c.campaign_id == campaign_id))
    connection.execute(sa.delete(campaigns).where(campaigns.c.id == campaign_id))
    used = sa.exists().where(campaigns.c.template == templates.c.digest)
    connection.execute(sa.delete(templates).where(templates.c.digest == campaign.template, ~used))
    return False


def _ended(before: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(campaigns.c.state.in_(ENDED_CAMPAIGNS), campaigns.c.finished_at < before)


def _next(
    connection: Connection,
    key: sa.ColumnElement[int],
    made_at: sa.ColumnElement[datetime],
    *,
    after: int,
    before: datetime,
    limit: int,
) -> int | None:
    """The last id of the next few; None when there are none, or the first of them is too young."""
    found = connection.execute(sa.select(key, made_at).where(key > after).order_by(key).limit(limit)).all()
    return None if not found or found[0][1] >= before else int(found[-1][0])
