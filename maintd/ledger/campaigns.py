"""Campaigns: one row for each edition of a bulk mailing, its content frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, count
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from maintd.errors import JobFailed, UsageError, did_you_mean
from maintd.ledger import lines
from maintd.ledger.states import (
    CAMPAIGN_MOVES,
    ENDED_CAMPAIGNS,
    BatchState,
    CampaignState,
    DeliveryState,
    RunState,
    sources,
)
from maintd.ledger.tables import IS_OPEN, batches, campaigns, deliveries, runs, templates
from maintd.ledger.tables import lines as line_rows


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """A campaign as the ledger has it; see `tables.campaigns` for what each column means."""

    id: int
    uid: str
    job: str
    edition: str
    run_id: int
    state: CampaignState
    reason: str | None
    spec: dict[str, Any]
    template: str
    shared: dict[str, Any]
    content: str
    dated_at: datetime
    expires_at: datetime | None
    urgent: bool
    audience: int
    duplicates: int
    tail: int
    created_at: datetime
    enrolled_at: datetime | None
    sending_since: datetime | None
    finished_at: datetime | None

    @property
    def name(self) -> str:
        """What people call it: `weekly-digest/2026-W47`."""
        return f"{self.job}/{self.edition}"

    @property
    def enrolled(self) -> int:
        """How many deliveries it has, in whatever state."""
        return self.audience - self.duplicates


def store_template(
    connection: Connection, *, digest: str, name: str, files: Mapping[str, str], now: datetime
) -> None:
    """Keeps a template's texts by their digest; one that is there already is left alone."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    values = {"digest": digest, "name": name, "files": dict(files), "stored_at": now}
    connection.execute(insert(templates).values(values).on_conflict_do_nothing())


def template_files(connection: Connection, digest: str) -> tuple[str, dict[str, str]]:
    """Name and texts of a stored template."""
    row = connection.execute(
        sa.select(templates.c.name, templates.c.files).where(templates.c.digest == digest)
    ).one()
    return row.name, row.files


def find(connection: Connection, *, job: str, edition: str) -> Campaign | None:
    """The campaign of that edition."""
    return _one(connection, sa.and_(campaigns.c.job == job, campaigns.c.edition == edition))


def get(connection: Connection, campaign_id: int) -> Campaign:
    """The campaign with that id, which must exist."""
    campaign = _one(connection, campaigns.c.id == campaign_id)
    assert campaign is not None, f"campaign {campaign_id} does not exist"
    return campaign


def of_uid(connection: Connection, uid: str) -> Campaign | None:
    """The campaign with that uid, if the ledger knows it."""
    return _one(connection, campaigns.c.uid == uid)


def named(connection: Connection, name: str) -> Campaign:
    """The campaign that a person means by its name, `weekly-digest/2026-W47`, or by its id.

    Raises:
        UsageError: There is none; the nearest of its job's newest, or of all, is named.
    """
    job, _, edition = name.partition("/")
    by_id = name.isascii() and name.isdecimal() and len(name) < 10
    condition = (
        campaigns.c.id == int(name)
        if by_id
        else sa.and_(campaigns.c.job == job, campaigns.c.edition == edition)
    )
    campaign = _one(connection, condition)
    if campaign is None:
        known = latest(connection, job=job, limit=20) or latest(connection, job=None, limit=20)
        hint = did_you_mean(name, [other.name for other in known]) or "nothing has been mailed yet"
        raise UsageError(f'there is no campaign "{name}"; {hint}')
    return campaign


def lock(connection: Connection, campaign_id: int) -> Campaign:
    """The campaign, which must exist, as it is and stays until the transaction ends."""
    lock_row(connection, campaign_id)
    return get(connection, campaign_id)


def lock_row(connection: Connection, campaign_id: int) -> None:
    """Keeps others from changing a campaign until the transaction ends, but not from referring to it.

    Whoever cuts a batch refers to it while holding a line, for which others wait who hold the campaign.
    """
    row = sa.select(campaigns.c.id).where(campaigns.c.id == campaign_id)
    connection.execute(row.with_for_update(key_share=True))


def create(connection: Connection, values: Mapping[str, Any]) -> int:
    """Inserts a campaign in the state `enrolling`, with one line; its edition must be new."""
    statement = sa.insert(campaigns).values(**values, state=CampaignState.ENROLLING).returning(campaigns.c.id)
    campaign_id = int(connection.scalars(statement).one())
    lines.begin(connection, campaign_id)
    return campaign_id


def restart(connection: Connection, campaign_id: int, values: Mapping[str, Any]) -> None:
    """Gives an enrolment that was cut off its content anew; its deliveries must have been wiped."""
    restarted = connection.execute(
        sa.update(campaigns)
        .where(campaigns.c.id == campaign_id, campaigns.c.state == CampaignState.ENROLLING)
        .values(**values, audience=0, duplicates=0, tail=0)
    )
    if restarted.rowcount == 1:
        lines.begin_anew(connection, campaign_id)


def adopt(connection: Connection, campaign_id: int, *, run_id: int) -> None:
    """Makes a later run the one that works on the campaign, unless the one before is under way with it."""
    before = sa.exists().where(runs.c.id == campaigns.c.run_id, runs.c.state == RunState.UNDERWAY)
    connection.execute(
        sa.update(campaigns).where(campaigns.c.id == campaign_id, ~before).values(run_id=run_id)
    )


def count_enrolled(
    connection: Connection, campaign_id: int, *, audience: int, duplicates: int, tail: int
) -> None:
    """Adds what one chunk of the audience brought.

    Raises:
        JobFailed: The campaign is not enrolling any more: somebody cancelled it.
    """
    changed = connection.execute(
        sa.update(campaigns)
        .where(campaigns.c.id == campaign_id, campaigns.c.state == CampaignState.ENROLLING)
        .values(
            audience=campaigns.c.audience + audience,
            duplicates=campaigns.c.duplicates + duplicates,
            tail=tail,
        )
    )
    if changed.rowcount != 1:
        raise JobFailed("the campaign was cancelled while its audience was enrolled")


def move(
    connection: Connection, campaign_id: int, *, to: CampaignState, now: datetime, reason: str | None = None
) -> bool:
    """Moves a campaign; False when it was not in a state that allows the move."""
    values: dict[str, Any] = {"state": to, "reason": reason}
    if to is CampaignState.SENDING:
        values["enrolled_at"] = sa.func.coalesce(
            campaigns.c.enrolled_at, sa.literal(now, campaigns.c.enrolled_at.type)
        )
        values |= {"sending_since": now, "finished_at": None}
    if to in ENDED_CAMPAIGNS:
        values["finished_at"] = now
    changed = connection.execute(
        sa.update(campaigns)
        .where(campaigns.c.id == campaign_id, campaigns.c.state.in_(sources(CAMPAIGN_MOVES, to)))
        .values(**values)
    )
    return changed.rowcount == 1


def keep_spec(connection: Connection, campaign_id: int, spec: Mapping[str, Any]) -> None:
    """Changes the keys with which a campaign goes on; what decides the content stays as it is."""
    connection.execute(sa.update(campaigns).where(campaigns.c.id == campaign_id).values(spec=dict(spec)))


def tell_why_waiting(connection: Connection, reason: str | None) -> None:
    """Notes with every sending campaign what it waits for; None: for nothing any more."""
    connection.execute(
        sa.update(campaigns)
        .where(campaigns.c.state == CampaignState.SENDING, campaigns.c.reason.is_distinct_from(reason))
        .values(reason=reason)
    )


def tell_why_paused(connection: Connection, campaign_id: int, reason: str) -> None:
    """Gives a paused campaign another reason."""
    connection.execute(
        sa.update(campaigns)
        .where(campaigns.c.id == campaign_id, campaigns.c.state == CampaignState.PAUSED)
        .values(reason=reason)
    )


def finish_if_done(connection: Connection, campaign_id: int, *, now: datetime) -> bool:
    """Finishes a sending campaign that has nothing left: every line cut, no batch open, nothing deferred.

    The campaign's row is locked first: a deferral that is being put back into the line moves the same row.
    """
    lock_row(connection, campaign_id)
    uncut = sa.exists().where(line_rows.c.campaign_id == campaign_id, line_rows.c.cut < line_rows.c.tail)
    open_batch = sa.exists().where(batches.c.campaign_id == campaign_id, batches.c.state == BatchState.OPEN)
    deferred = sa.exists().where(
        deliveries.c.campaign_id == campaign_id, IS_OPEN, deliveries.c.state == DeliveryState.DEFERRED
    )
    changed = connection.execute(
        sa.update(campaigns)
        .where(
            campaigns.c.id == campaign_id,
            campaigns.c.state == CampaignState.SENDING,
            ~uncut,
            ~open_batch,
            ~deferred,
        )
        .values(state=CampaignState.FINISHED, finished_at=now, reason=None)
    )
    return changed.rowcount == 1


def sending(connection: Connection) -> list[Campaign]:
    """Campaigns whose messages may go out, the oldest first."""
    return _in_states(connection, CampaignState.SENDING)


def going_on(connection: Connection) -> list[Campaign]:
    """Campaigns that send or are being enrolled, the oldest first: they go on by themselves."""
    return _in_states(connection, CampaignState.ENROLLING, CampaignState.SENDING)


def _in_states(connection: Connection, *states: CampaignState) -> list[Campaign]:
    query = sa.select(campaigns).where(campaigns.c.state.in_(states)).order_by(campaigns.c.id)
    return [Campaign(**row) for row in connection.execute(query).mappings()]


def is_sending(connection: Connection, campaign_id: int) -> bool:
    """Whether the messages of a campaign may go out."""
    query = sa.select(campaigns.c.state).where(campaigns.c.id == campaign_id)
    return connection.scalars(query).one() is CampaignState.SENDING


def any_sending(connection: Connection) -> bool:
    """Whether messages of some campaign may go out."""
    query = sa.select(campaigns.c.id).where(campaigns.c.state == CampaignState.SENDING).limit(1)
    return connection.scalar(query) is not None


def ended_with_run_underway(connection: Connection) -> list[Campaign]:
    """Campaigns that have ended and whose run has not been told yet."""
    over = campaigns.c.state.in_(ENDED_CAMPAIGNS)
    query = (
        sa.select(campaigns)
        .join(runs, runs.c.id == campaigns.c.run_id)
        .where(over, runs.c.state == RunState.UNDERWAY)
        .order_by(campaigns.c.id)
    )
    return [Campaign(**row) for row in connection.execute(query).mappings()]


def free_edition(connection: Connection, *, job: str, edition: str) -> str:
    """The edition itself if nobody has it, else the first free of `edition+2`, `edition+3`, …"""
    query = sa.select(campaigns.c.edition).where(campaigns.c.job == job)
    taken = set(connection.scalars(query))
    names = chain([edition], (f"{edition}+{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def editions_of(connection: Connection, *, job: str, period: str) -> list[Campaign]:
    """The campaigns of one period, oldest first: its own edition and those that were asked for besides."""
    besides = campaigns.c.edition.startswith(f"{period}+", autoescape=True)
    query = (
        sa.select(campaigns)
        .where(campaigns.c.job == job, sa.or_(campaigns.c.edition == period, besides))
        .order_by(campaigns.c.id)
    )
    return [Campaign(**row) for row in connection.execute(query).mappings()]


def of_runs(connection: Connection, run_ids: Sequence[int]) -> dict[int, Campaign]:
    """The campaigns that these runs work on, by the id of the run."""
    query = sa.select(campaigns).where(campaigns.c.run_id.in_(run_ids))
    return {row["run_id"]: Campaign(**row) for row in connection.execute(query).mappings()}


def latest(connection: Connection, *, job: str | None, limit: int) -> list[Campaign]:
    """The newest campaigns, of one job or of all, newest first."""
    query = sa.select(campaigns).order_by(campaigns.c.id.desc()).limit(limit)
    if job is not None:
        query = query.where(campaigns.c.job == job)
    return [Campaign(**row) for row in connection.execute(query).mappings()]


def _one(connection: Connection, condition: sa.ColumnElement[bool]) -> Campaign | None:
    row = connection.execute(sa.select(campaigns).where(condition)).mappings().first()
    return Campaign(**row) if row else None
