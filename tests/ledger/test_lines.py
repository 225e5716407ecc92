"""Lanes share one numbering: a range of ordinals speaks of the deliveries of its lane, whoever else stands in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.ledger import batches, campaigns, deliveries, lines, suppressions
from maintd.ledger.batches import Batch
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Outcome
from maintd.ledger.lines import Stretch
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.mail.recording import recover
from maintd.mail.recording.recover import Scene
from tests.ledgers import (
    NOW,
    add_campaign,
    campaign_of,
    claim_batch,
    cuts,
    key_of,
    race,
    states_of,
    stretch_of,
    tallied,
)

PENDING, DEFERRED, SENT = DeliveryState.PENDING, DeliveryState.DEFERRED, DeliveryState.SENT
UNCERTAIN, CANCELLED = DeliveryState.UNCERTAIN, DeliveryState.CANCELLED
NOWHERE = Scene(directory=Path("/nowhere"), boot_id="", machine_id="")


def claimed(ledger: Database, campaign: Campaign, *, lane: int, size: int = 3, token: str = "mine") -> Batch:
    batch = claim_batch(ledger, campaign, lane=lane, size=size, token=token)
    assert batch is not None
    return batch


def numbers_in(ledger: Database, stretch: Stretch) -> list[int]:
    """The recipients of a stretch that are pending."""
    with ledger.read() as connection:
        return [int(delivery.recipient or 0) for delivery in deliveries.pending(connection, stretch)]


def settle(ledger: Database, campaign: Campaign, state: DeliveryState, *numbers: int) -> None:
    outcomes = [
        Outcome(recipient_key=key_of(number), ordinal=number, state=state, fact=True, due_at=NOW)
        for number in numbers
    ]
    with ledger.write() as connection:
        deliveries.settle(connection, campaign.id, outcomes, now=NOW)


def put_back(ledger: Database, campaign: Campaign) -> int:
    with ledger.write() as connection:
        return deliveries.put_back_in_line(connection, campaign.id, now=NOW, limit=100)


def tails(ledger: Database, campaign: Campaign) -> list[int]:
    with ledger.read() as connection:
        return [line.tail for line in lines.of_campaign(connection, campaign.id)]


def test_a_batch_is_of_one_lane_and_holds_as_many_as_it_may(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=20, lanes=4)
    first, second = (claimed(ledger, campaign, lane=1) for _ in range(2))
    assert (first.lane, first.lo, first.hi, second.lo, second.hi) == (1, 0, 10, 10, 18)
    assert numbers_in(ledger, first.stretch) == [1, 5, 9]
    assert numbers_in(ledger, second.stretch) == [13, 17]
    assert claim_batch(ledger, campaign, lane=1) is None
    assert cuts(ledger, campaign) == [0, 18, 0, 0]


def test_a_range_of_everybody_else_holds_nobody_of_another_lane(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=10, lanes=2)
    assert numbers_in(ledger, claimed(ledger, campaign, lane=0, size=6).stretch) == [0, 2, 4]


def test_racing_claims_of_all_lanes_give_everybody_to_one_holder(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=120, lanes=3)

    def work(number: int) -> Iterator[int]:
        for lane in (number % 3, (number + 1) % 3, (number + 2) % 3):
            while (batch := claim_batch(ledger, campaign, lane=lane, size=7, token=f"t{number}")) is not None:
                yield from numbers_in(ledger, batch.stretch)

    held = [one for mine in race(6, lambda number: list(work(number))) for one in mine]
    assert sorted(held) == list(range(120))


def test_a_range_that_was_left_is_taken_by_whoever_sends_that_lane(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=10, lanes=2)
    left = claimed(ledger, campaign, lane=1)
    with ledger.write() as connection:
        batches.release(connection, left, wire_hi=left.lo)
    assert claimed(ledger, campaign, lane=0).id != left.id
    assert claimed(ledger, campaign, lane=1).id == left.id


def test_ready_are_the_lines_that_have_something_to_claim(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=4, lanes=2, spec={"limit": "5/s"})

    def ready() -> list[tuple[int, int]]:
        with ledger.read() as connection:
            found = batches.ready(connection, urgent=False)
        assert {line.limit for line in found} <= {"5/s"}
        return [line.place for line in found]

    assert ready() == [(campaign.id, 0), (campaign.id, 1)]
    batch = claimed(ledger, campaign, lane=1)
    assert ready() == [(campaign.id, 0)]
    with ledger.write() as connection:
        batches.release(connection, batch, wire_hi=batch.lo)
    assert ready() == [(campaign.id, 0), (campaign.id, 1)]


def test_whoever_is_suppressed_in_another_lane_is_left_to_its_holder(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=6, lanes=2)
    with ledger.write() as connection:
        for number in range(6):
            suppressions.add(connection, key_of(number), reason="asked", now=NOW)
        assert deliveries.suppress(connection, stretch_of(campaign, lane=1), now=NOW) == set()
    assert tallied(ledger, campaign.id) == {DeliveryState.SUPPRESSED: 3, PENDING: 3}


def test_what_expires_with_a_batch_is_of_its_lane(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=6, lanes=2)
    batch = claimed(ledger, campaign, lane=1)
    with ledger.write() as connection:
        deliveries.settle_range(connection, batch.stretch, to=DeliveryState.EXPIRED, now=NOW, detail="late")
    assert [number for number, state in states_of(ledger, campaign.id).items() if state is PENDING] == [
        0,
        2,
        4,
    ]


def test_a_deferred_delivery_comes_back_into_its_own_lane(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=6, lanes=3)
    settle(ledger, campaign, DEFERRED, 1, 3)
    assert put_back(ledger, campaign) == 2
    assert campaign_of(ledger, campaign.id).tail == 8
    assert (tails(ledger, campaign)[2], sorted(tails(ledger, campaign)[:2])) == (6, [7, 8])
    assert numbers_in(ledger, stretch_of(campaign, lo=6, lane=0)) == [3]
    assert numbers_in(ledger, stretch_of(campaign, lo=6, lane=1)) == [1]


def test_a_campaign_is_finished_when_every_line_is(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=4, lanes=2)

    def finish() -> bool:
        with ledger.write() as connection:
            return campaigns.finish_if_done(connection, campaign.id, now=NOW)

    for lane in (1, 0):
        assert not finish()
        batch = claimed(ledger, campaign, lane=lane, size=10)
        with ledger.write() as connection:
            batches.done(connection, batch)
    settle(ledger, campaign, DEFERRED, 3)
    assert not finish()
    put_back(ledger, campaign)
    assert not finish()
    batch = claimed(ledger, campaign, lane=1, size=10)
    assert numbers_in(ledger, batch.stretch) == [3]
    with ledger.write() as connection:
        batches.done(connection, batch)
    assert finish()


def test_doubts_of_another_lane_are_not_sent_again_with_a_batch(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=6, lanes=2)
    settle(ledger, campaign, UNCERTAIN, *range(6))
    batch = claimed(ledger, campaign, lane=1)
    with ledger.write() as connection:
        assert deliveries.resend_doubtful(connection, batch.stretch, now=NOW, max_copies=3) == 3
    assert states_of(ledger, campaign.id)[2] is UNCERTAIN


def test_of_a_vanished_sender_only_its_own_lane_is_in_doubt(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=12, lanes=3)
    dead, alive = (claimed(ledger, campaign, lane=lane, size=4, token=f"t{lane}") for lane in (1, 2))
    with ledger.write() as connection:
        batches.mark(connection, dead, wire_hi=8)
        batches.mark(connection, alive, wire_hi=8)
        seen = batches.get(connection, dead.id)
        assert recover.recover(connection, seen, recording=None, scene=NOWHERE, now=NOW) == 3
    states = states_of(ledger, campaign.id)
    assert [number for number, state in states.items() if state is UNCERTAIN] == [1, 4, 7]


def test_a_cancellation_leaves_what_a_sender_holds_and_nothing_between(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=9, lanes=3)
    batch = claimed(ledger, campaign, lane=1, size=9)
    with ledger.write() as connection:
        assert campaigns.move(connection, campaign.id, to=CampaignState.CANCELLED, now=NOW)
    with ledger.write() as connection:
        everything = replace(stretch_of(campaign), lane=None)
        assert deliveries.cancel_range(connection, everything, now=NOW, detail="given up") == 6
        batches.release(connection, batch, wire_hi=batch.lo)
    with ledger.write() as connection:
        assert recover.settle_cancelled(connection, now=NOW, limit=10) == 3
    assert tallied(ledger, campaign.id) == {CANCELLED: 9}


def test_an_enrolment_that_begins_anew_has_one_empty_line(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=6, lanes=3, state=CampaignState.ENROLLING)
    with ledger.write() as connection:
        deliveries.wipe(connection, campaign.id, lo=0, limit=100)
        campaigns.restart(connection, campaign.id, {"content": "other"})
        (line,) = lines.of_campaign(connection, campaign.id)
    assert (line.lane, line.name, line.cut, line.tail) == (0, "*", 0, 0)


# What a sparse lane costs must not grow with those who stand between.


def act_on(connection: Connection, stretch: Stretch, act: str) -> None:
    {
        "pending": lambda: deliveries.pending(connection, stretch),
        "keys": lambda: deliveries.pending_keys(connection, stretch),
        "suppress": lambda: deliveries.suppress(connection, stretch, now=NOW),
        "expire": lambda: deliveries.settle_range(
            connection, stretch, to=DeliveryState.EXPIRED, now=NOW, detail=""
        ),
        "cancel": lambda: deliveries.cancel_range(connection, stretch, now=NOW, detail=""),
        "claim": lambda: batches.claim(connection, stretch.campaign_id, lane=1, size=2, token="t", owner="o"),
    }[act]()


@pytest.mark.parametrize("act", ["pending", "keys", "suppress", "expire", "cancel", "claim"])
def test_a_sparse_lane_is_found_by_its_own_index(ledger: Database, act: str) -> None:
    campaign = add_campaign(ledger, recipients=2000)
    with ledger.write() as connection:
        rows = [
            {
                "campaign_id": campaign.id,
                "ordinal": 2000 + number,
                "recipient_key": uuid.uuid4().bytes,
                "address": "a@example.org",
                "lane": int(number % 100 == 7),
                "fields": {},
                "state": PENDING,
            }
            for number in range(500)
        ]
        deliveries.insert(connection, rows)
        lines.begin(connection, campaign.id, lane=1, name="gmail")
        lines.enrol(connection, campaign.id, {0: 2500, 1: 2408})
        if ledger.dialect == "postgresql":  # which does so by itself, sooner or later
            connection.execute(sa.text("ANALYZE maintd.deliveries"))
    plans: list[str] = []

    @sa.event.listens_for(ledger.engine, "before_cursor_execute")
    def explain(_c: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if "deliveries" in statement and not statement.startswith("EXPLAIN"):
            ask = "EXPLAIN QUERY PLAN " if ledger.dialect == "sqlite" else "EXPLAIN "
            cursor.execute(ask + statement, parameters)
            plans.append(" ".join(str(row[-1]) for row in cursor.fetchall()))

    with ledger.write() as connection:
        act_on(connection, stretch_of(campaign, lo=2000, hi=2500, lane=1), act)
    assert plans
    assert all("ix_deliveries_lane" in plan for plan in plans), plans
