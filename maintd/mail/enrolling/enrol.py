"""Enrolment: an edition's content is frozen and its whole audience written down before the first message is sent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from maintd.clock import Clock
from maintd.database import Database
from maintd.errors import CapReached, JobFailed, did_you_mean
from maintd.ledger import campaigns, deliveries, lines
from maintd.ledger.campaigns import Campaign
from maintd.ledger.engine import identity
from maintd.ledger.lines import OTHERS
from maintd.ledger.states import ENDED_CAMPAIGNS, CampaignState, DeliveryState
from maintd.ledger.timeline import Timeline
from maintd.mail.address import InvalidAddress, parse_address, recipient_key
from maintd.mail.campaign import (
    SQL_PREFIX,
    AudienceSpec,
    CampaignSpec,
    bundle_of,
    columns_used,
    content_digest,
)
from maintd.mail.content.templates import MailTemplate, compile_bundle
from maintd.mail.enrolling.audience import Row, ask_shared, open_audience

#: Rows in one transaction.
_AT_ONCE = 2000
#: The same on SQLite beside a sender, and the room left to it after them: there is one writer at a time, and whoever
#: waits looks only every few milliseconds whether it is his turn.
_AT_ONCE_BESIDE_A_SENDER = 300
_ROOM_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Edition:
    """What is to be enrolled.

    Attributes:
        job: The campaign's job.
        name: Of the edition.
        run_id: The run that works on it.
        spec: The job's keys.
        files: The texts it depends on.
        uid: Random; becomes part of every Message-ID.
        lanes: Names of the lanes that have a limit, by the domains of their recipients.
    """

    job: str
    name: str
    run_id: int
    spec: CampaignSpec
    files: Mapping[str, str]
    uid: str
    lanes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What enrolment found or made.

    Attributes:
        campaign: Never in the state `enrolling`. Its run is another one if that still goes on with it.
        resumed: The edition was there already; nothing was enrolled.
    """

    campaign: Campaign
    resumed: bool


def enrol(
    edition: Edition,
    *,
    ledger: Database,
    timeline: Timeline,
    source: Database,
    clock: Clock,
    hold: Callable[[Connection], None],
    progress: Callable[[int], None],
    pause: Callable[[float], None],
) -> Enrolled:
    """Enrols an edition, or finds that it was enrolled before.

    An enrolment that was cut off is wiped and begun anew: nothing has been sent, and the audience is one snapshot.

    Args:
        edition: What to enrol.
        ledger: Where it is written.
        timeline: Of that ledger.
        source: Where the audience comes from.
        clock: Gives the edition its Date.
        hold: Called in every transaction; raises when the caller's claim on the run is lost or it has to stop.
        progress: Called with the number of audience rows read so far.
        pause: Waits so many seconds; called between transactions on SQLite while some campaign sends.

    Raises:
        CapReached: A `stop_at` cap; nothing will be sent until it is changed.
        JobFailed: Bad SQL, missing columns, or an unfinished edition of that name with other content.
        LedgerHeld: Nothing may be mailed.
    """
    turns = _Turns(ledger=ledger, hold=hold, pause=pause)
    with ledger.read() as connection:
        found = campaigns.find(connection, job=edition.job, edition=edition.name)
    if found is not None and found.state is not CampaignState.ENROLLING:
        return Enrolled(campaign=_resume(edition, found, turns), resumed=True)
    template = compile_bundle(bundle_of(edition.spec, edition.files))
    campaign_id = _open(edition, found, turns, source=source, now=clock.now())
    _stream(edition, campaign_id, template, turns, source=source, clock=clock, progress=progress)
    with timeline.forward() as connection:
        hold(connection)
        _check_growth(connection, edition, campaign_id)
        campaigns.move(connection, campaign_id, to=CampaignState.SENDING, now=clock.now())
        return Enrolled(campaign=campaigns.get(connection, campaign_id), resumed=False)


@dataclass(frozen=True, kw_only=True)
class _Turns:
    """The transactions of an enrolment: each while the run is held, and with room for others between them."""

    ledger: Database
    hold: Callable[[Connection], None]
    pause: Callable[[float], None]

    @contextlib.contextmanager
    def take(self) -> Iterator[Connection]:
        """One transaction."""
        with self.ledger.write() as connection:
            self.hold(connection)
            yield connection

    def give_way(self) -> int:
        """Lets a sender write if there is one; returns how many rows may be written then."""
        if self.ledger.dialect == "postgresql" or not self._beside_a_sender():
            return _AT_ONCE
        self.pause(_ROOM_S)
        return _AT_ONCE_BESIDE_A_SENDER

    def _beside_a_sender(self) -> bool:
        with self.ledger.read() as connection:
            return campaigns.any_sending(connection)


def _resume(edition: Edition, found: Campaign, turns: _Turns) -> Campaign:
    content = content_digest(edition.spec, edition.files)
    with turns.take() as connection:
        campaigns.adopt(connection, found.id, run_id=edition.run_id)
        campaign = campaigns.get(connection, found.id)
        mine = campaign.run_id == edition.run_id
        if mine and campaign.state not in ENDED_CAMPAIGNS and campaign.content != content:
            raise JobFailed(
                f"edition {found.name} is under way with other content than the job has now; it goes on unchanged, "
                "and what was changed comes with the next edition (or at once, with --new-edition)"
            )
        return campaign


def _open(edition: Edition, found: Campaign | None, turns: _Turns, *, source: Database, now: datetime) -> int:
    """Writes the campaign's row with its frozen content; wipes what an enrolment before this one left."""
    spec = edition.spec
    bundle = bundle_of(spec, edition.files)
    values: dict[str, Any] = {
        "run_id": edition.run_id,
        "spec": spec.model_dump(mode="json", by_alias=True),
        "template": bundle.digest,
        "shared": ask_shared(source, spec, edition.files),
        "content": content_digest(spec, edition.files),
        "dated_at": now,
        "expires_at": now + spec.expires if spec.expires else None,
        "urgent": spec.urgent,
    }
    if found is not None:
        _wipe(found.id, turns)
    with turns.take() as connection:
        campaigns.store_template(
            connection, digest=bundle.digest, name=bundle.name, files=bundle.files, now=now
        )
        if found is not None:
            campaigns.restart(connection, found.id, values)
            return found.id
        values |= {"uid": edition.uid, "job": edition.job, "edition": edition.name, "created_at": now}
        return campaigns.create(connection, values)


def _wipe(campaign_id: int, turns: _Turns) -> None:
    lo: int | None = 0
    while lo is not None:
        limit = turns.give_way()
        with turns.take() as connection:
            lo = deliveries.wipe(connection, campaign_id, lo=lo, limit=limit)


def _stream(
    edition: Edition,
    campaign_id: int,
    template: MailTemplate,
    turns: _Turns,
    *,
    source: Database,
    clock: Clock,
    progress: Callable[[int], None],
) -> None:
    with turns.ledger.read() as connection:
        key = identity(connection).recipient_key
    writer = _Writer(edition, template, campaign_id, key=key)
    sql = edition.spec.audience.sql
    with open_audience(source, edition.files[SQL_PREFIX + sql], key=f"audience.sql ({sql})") as (
        columns,
        chunks,
    ):
        check_columns(edition.spec, template, columns)
        for rows in _in_turn(chunks, turns):
            now = clock.now()
            # Before the transaction, which keeps other writers out on SQLite.
            fresh = writer.prepare(rows, now=now)
            with turns.take() as connection:
                writer.write(connection, fresh, read=len(rows), now=now)
            progress(writer.read)


def _in_turn(chunks: Iterable[list[Row]], turns: _Turns) -> Iterator[list[Row]]:
    for rows in chunks:
        left = rows
        while left:
            size = turns.give_way()
            yield left[:size]
            left = left[size:]


class _Writer:
    """Turns chunks of audience rows into deliveries with consecutive ordinals, each in its lane."""

    def __init__(self, edition: Edition, template: MailTemplate, campaign_id: int, *, key: bytes) -> None:
        self._spec = edition.spec
        self._campaign_id = campaign_id
        self._key = key
        self._used = columns_used(edition.spec, template)
        self._lanes = _Lanes(edition.lanes)
        self._tail = 0
        self.read = 0

    def prepare(self, rows: list[Row], *, now: datetime) -> dict[bytes, dict[str, Any]]:
        """The deliveries of a chunk by recipient, each address once, invalid ones settled."""
        fresh: dict[bytes, dict[str, Any]] = {}
        for delivery in self._deliveries(rows, now=now):
            fresh.setdefault(delivery["recipient_key"], delivery)
        return fresh

    def write(
        self, connection: Connection, fresh: dict[bytes, dict[str, Any]], *, read: int, now: datetime
    ) -> None:
        """Enrols whoever of a chunk is not enrolled yet, suppressed ones settled; `read` rows became that chunk."""
        for key in deliveries.enrolled_keys(connection, self._campaign_id, list(fresh)):
            del fresh[key]
        for key in deliveries.suppressed_keys(connection, list(fresh)):
            if fresh[key]["state"] is DeliveryState.PENDING:
                fresh[key] |= {"state": DeliveryState.SUPPRESSED, "settled_at": now}
        for ordinal, delivery in enumerate(fresh.values(), start=self._tail):
            delivery["ordinal"] = ordinal
        deliveries.insert(connection, list(fresh.values()))
        self._lanes.write(connection, self._campaign_id, fresh.values())
        self.read += read
        self._tail += len(fresh)
        self._check_cap()
        campaigns.count_enrolled(
            connection,
            self._campaign_id,
            audience=read,
            duplicates=read - len(fresh),
            tail=self._tail,
        )

    def _check_cap(self) -> None:
        cap = self._spec.stop_at.recipients
        if cap is not None and self._tail > cap:
            raise CapReached(
                f"stop_at.recipients: the audience has more than {cap:,} recipients; nothing was sent. "
                "Raise the cap or narrow the audience, apply, and run it again"
            )

    def _deliveries(self, rows: list[Row], *, now: datetime) -> Iterator[dict[str, Any]]:
        audience = self._spec.audience
        for number, row in enumerate(rows, start=self.read):
            text = row[audience.address]
            identifier = _identifier(row, audience)
            delivery: dict[str, Any] = {
                "campaign_id": self._campaign_id,
                "recipient": None if identifier is None else str(identifier),
                "lane": OTHERS,
                "fields": {name: row[name] for name in self._used},
                "state": DeliveryState.PENDING,
                "settled_at": None,
                "detail": None,
            }
            try:
                address = parse_address(None if text is None else str(text))
                delivery |= {
                    "recipient_key": recipient_key(address.canonical, key=self._key),
                    "address": address.mailbox,
                    "lane": self._lanes.number(address.domain),
                }
            except InvalidAddress as error:
                delivery |= {
                    "recipient_key": unusable_key(row, audience, number=number, key=self._key),
                    "address": _printable(text),
                    "state": DeliveryState.REJECTED,
                    "settled_at": now,
                    "detail": f"invalid address: {error}",
                }
            yield delivery


class _Lanes:
    """The lanes of one campaign, numbered as their first recipients come."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._numbers: dict[str, int] = {}
        self._begun = {OTHERS}

    def number(self, domain: str) -> int:
        """The lane of the recipients of a domain."""
        name = self._names.get(domain)
        return OTHERS if name is None else self._numbers.setdefault(name, len(self._numbers) + 1)

    def write(
        self, connection: Connection, campaign_id: int, enrolled: Collection[Mapping[str, Any]]
    ) -> None:
        """Says how far every line goes with these deliveries, and begins those that are new."""
        tails = {delivery["lane"]: delivery["ordinal"] + 1 for delivery in enrolled}
        for name, number in self._numbers.items():
            if number in tails.keys() - self._begun:
                lines.begin(connection, campaign_id, lane=number, name=name)
                self._begun.add(number)
        lines.enrol(connection, campaign_id, tails)


def unusable_key(row: Row, audience: AudienceSpec, *, number: int, key: bytes) -> bytes:
    """The key of a row whose address cannot be used: every one is listed, so it is the row's and not the address's.

    Args:
        row: Of the audience.
        audience: Says which of its columns are what.
        number: Which row of the audience it is: its name where the application gives it none.
        key: The ledger's.
    """
    identifier = _identifier(row, audience)
    name = number if identifier is None else identifier
    return recipient_key(f"\0{name}\0{row[audience.address]}", key=key)


def _identifier(row: Row, audience: AudienceSpec) -> object:
    return None if audience.recipient is None else row[audience.recipient]


def check_columns(spec: CampaignSpec, template: MailTemplate, columns: list[str]) -> None:
    """Whether a statement gives what the job and its template need.

    Raises:
        JobFailed: It does not; every missing column is named.
    """
    wanted = [("audience.address", spec.audience.address)]
    if spec.audience.recipient is not None:
        wanted.append(("audience.recipient", spec.audience.recipient))
    needed = columns_used(spec, template)
    wanted += [(f"template {spec.template}", name) for name in sorted(needed)]
    missing = [
        f'{key} wants the column "{name}" ({did_you_mean(name, columns)})'
        for key, name in wanted
        if name not in columns
    ]
    if missing:
        raise JobFailed(
            f"audience.sql ({spec.audience.sql}) does not give every column: " + "; ".join(missing)
        )


def _check_growth(connection: Connection, edition: Edition, campaign_id: int) -> None:
    growth = edition.spec.stop_at.growth
    before = [
        other
        for other in campaigns.latest(connection, job=edition.job, limit=10)
        # Nobody is no measure: every audience is more than any number of times that.
        if other.id != campaign_id and other.enrolled_at is not None and other.enrolled
    ]
    if growth is None or not before:
        return
    enrolled = campaigns.get(connection, campaign_id).enrolled
    if enrolled > growth * before[0].enrolled:
        raise CapReached(
            f"stop_at.growth: {enrolled:,} recipients are more than {growth:g} times the {before[0].enrolled:,} of "
            f"{before[0].name}; nothing was sent. If that is right, raise the cap, apply, and run it again"
        )


def _printable(text: object) -> str:
    """What an unusable address looks like, safe to store and to show."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text or ""))[:254]
