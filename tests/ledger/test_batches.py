from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.errors import ClaimLost
from maintd.ledger import batches, campaigns, deliveries
from maintd.ledger.batches import Batch, NotSending
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import BatchState, CampaignState, DeliveryState
from tests.ledgers import NOW, add_campaign, claim_batch, cuts, race, stretch_of, tallied


def claimed(ledger: Database, campaign: Campaign, *, size: int = 10, token: str = "mine") -> Batch:
    batch = claim_batch(ledger, campaign, size=size, token=token)
    assert batch is not None
    return batch


def batch_of(ledger: Database, batch_id: int) -> Batch:
    with ledger.read() as connection:
        return batches.get(connection, batch_id)


def move(ledger: Database, campaign: Campaign, to: CampaignState) -> None:
    with ledger.write() as connection:
        assert campaigns.move(connection, campaign.id, to=to, now=NOW)


def test_ranges_are_cut_one_behind_the_other_until_the_line_ends(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=25)
    cut = [claimed(ledger, campaign) for _ in range(3)]
    assert [(batch.lo, batch.hi, batch.wire_hi) for batch in cut] == [(0, 10, 0), (10, 20, 10), (20, 25, 20)]
    assert claim_batch(ledger, campaign) is None
    assert cuts(ledger, campaign) == [25]


def test_racing_claims_share_the_line_without_gap_or_overlap(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=170)

    def work(number: int) -> list[Batch]:
        mine: list[Batch] = []
        while (batch := claim_batch(ledger, campaign, size=7, token=f"t{number}-{len(mine)}")) is not None:
            mine.append(batch)
        return mine

    claims = sorted((batch for mine in race(6, work) for batch in mine), key=lambda batch: batch.lo)
    assert (claims[0].lo, claims[-1].hi) == (0, 170)
    assert all(one.hi == other.lo for one, other in pairwise(claims))
    assert len({batch.token for batch in claims}) == len(claims)


def test_nobody_who_races_for_a_range_goes_home_without_one(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=40)
    claims = race(4, lambda number: claim_batch(ledger, campaign, token=f"t{number}"))
    assert None not in claims


def test_a_range_that_was_left_is_taken_by_one_of_many(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=10)
    left = claimed(ledger, campaign)
    with ledger.write() as connection:
        batches.release(connection, left, wire_hi=left.lo)
    claims = race(6, lambda number: claim_batch(ledger, campaign, token=f"t{number}"))
    (taken,) = [batch for batch in claims if batch is not None]
    assert (taken.id, taken.lo, taken.hi) == (left.id, 0, 10)


def test_what_was_left_is_taken_before_anything_new_is_cut(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=30)
    first, second = claimed(ledger, campaign, token="a"), claimed(ledger, campaign, token="b")
    with ledger.write() as connection:
        batches.release(connection, second, wire_hi=second.lo)
        batches.release(connection, first, wire_hi=first.lo)
    assert [claimed(ledger, campaign, token=token).lo for token in "cde"] == [0, 10, 20]


@pytest.mark.parametrize("state", [CampaignState.ENROLLING, CampaignState.PAUSED, CampaignState.CANCELLED])
def test_nothing_is_cut_unless_the_campaign_sends(ledger: Database, state: CampaignState) -> None:
    campaign = add_campaign(ledger, recipients=10, state=state)
    assert claim_batch(ledger, campaign) is None
    assert cuts(ledger, campaign) == [0]


def test_a_mark_moves_the_wire_and_the_counter(ledger: Database) -> None:
    batch = claimed(ledger, add_campaign(ledger, recipients=10))
    with ledger.write() as connection:
        batches.mark(connection, batch, wire_hi=4)
    assert batch_of(ledger, batch.id) == replace(batch, wire_hi=4, counter=batch.counter + 1)


@pytest.mark.parametrize("state", [CampaignState.PAUSED, CampaignState.CANCELLED])
def test_no_window_is_marked_once_the_campaign_does_not_send(ledger: Database, state: CampaignState) -> None:
    campaign = add_campaign(ledger, recipients=10)
    batch = claimed(ledger, campaign)
    move(ledger, campaign, state)
    with pytest.raises(NotSending), ledger.write() as connection:
        batches.mark(connection, batch, wire_hi=4)
    assert batch_of(ledger, batch.id) == batch


def test_a_holder_may_still_settle_and_leave_when_the_campaign_does_not_send(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=10)
    batch = claimed(ledger, campaign)
    move(ledger, campaign, CampaignState.PAUSED)
    with ledger.write() as connection:
        batches.beat(connection, batch)
        batches.release(connection, batch, wire_hi=batch.lo)
    assert batch_of(ledger, batch.id).token is None


def test_whoever_lost_the_claim_changes_nothing(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=10)
    lost = claimed(ledger, campaign, token="lost")
    with ledger.write() as connection:
        assert batches.take_from_the_dead(connection, lost)
    now_mine = claimed(ledger, campaign, token="mine")
    acts: list[Callable[[Connection], None]] = [
        lambda connection: batches.mark(connection, lost, wire_hi=9),
        lambda connection: batches.beat(connection, lost),
        lambda connection: batches.done(connection, lost),
        lambda connection: batches.release(connection, lost, wire_hi=0),
    ]
    for act in acts:
        with pytest.raises(ClaimLost) as refusal, ledger.write() as connection:
            act(connection)
        assert not isinstance(refusal.value, NotSending)
    assert batch_of(ledger, lost.id) == now_mine
    with ledger.write() as connection:
        assert not batches.take_from_the_dead(connection, lost)
    assert batch_of(ledger, lost.id) == now_mine


def test_a_batch_that_is_closed_is_held_by_nobody(ledger: Database) -> None:
    batch = claimed(ledger, add_campaign(ledger, recipients=10))
    with ledger.write() as connection:
        batches.done(connection, batch)
    with pytest.raises(ClaimLost), ledger.write() as connection:
        batches.mark(connection, batch, wire_hi=9)
    found = batch_of(ledger, batch.id)
    assert (found.state, found.token, found.wire_hi) == (BatchState.DONE, None, 0)


def test_a_claim_whose_counter_moved_is_not_taken_from_its_holder(ledger: Database) -> None:
    batch = claimed(ledger, add_campaign(ledger, recipients=10))
    with ledger.write() as connection:
        (seen,) = batches.held(connection)
        batches.beat(connection, batch)
        assert not batches.take_from_the_dead(connection, seen)
    assert batch_of(ledger, batch.id).token == "mine"


def test_taking_from_the_dead_resets_the_mark_and_is_done_by_one_of_many(ledger: Database) -> None:
    batch = claimed(ledger, add_campaign(ledger, recipients=10))
    with ledger.write() as connection:
        batches.mark(connection, batch, wire_hi=6)
        (seen,) = batches.held(connection)

    def take(_number: int) -> bool:
        with ledger.write() as connection:
            return batches.take_from_the_dead(connection, seen)

    assert sum(race(4, take)) == 1
    found = batch_of(ledger, batch.id)
    assert (found.token, found.owner, found.wire_hi, found.state) == (None, None, 0, BatchState.OPEN)


def test_held_are_the_claimed_ones_that_are_open(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=30)
    first, second, third = (claimed(ledger, campaign, token=token) for token in "abc")
    with ledger.write() as connection:
        batches.done(connection, first)
        batches.release(connection, second, wire_hi=second.lo)
    with ledger.read() as connection:
        assert batches.held(connection) == [third]


def test_there_is_work_while_a_sending_campaign_has_something_to_claim(ledger: Database) -> None:
    def ready() -> bool:
        with ledger.read() as connection:
            assert batches.ready(connection, urgent=True) == []
            return [line.campaign_id for line in batches.ready(connection, urgent=False)] == [campaign.id]

    campaign = add_campaign(ledger, recipients=10)
    assert ready()
    batch = claimed(ledger, campaign)
    assert not ready()
    with ledger.write() as connection:
        batches.release(connection, batch, wire_hi=batch.lo)
    assert ready()
    move(ledger, campaign, CampaignState.PAUSED)
    assert not ready()


def test_every_state_of_a_batch_leaves_the_sum_of_deliveries_alone(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=10)
    batch = claimed(ledger, campaign)
    with ledger.write() as connection:
        batches.mark(connection, batch, wire_hi=5)
        deliveries.settle_range(
            connection, stretch_of(campaign, hi=5), to=DeliveryState.UNCERTAIN, now=NOW, detail=""
        )
        batches.release(connection, batch, wire_hi=5)
    assert tallied(ledger, campaign.id) == {DeliveryState.UNCERTAIN: 5, DeliveryState.PENDING: 5}
