from __future__ import annotations

import itertools
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Any

import pytest

from maintd.database import Database
from maintd.ledger import batches, campaigns, deliveries, runs
from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import (
    BATCH_MOVES,
    CAMPAIGN_MOVES,
    DELIVERY_MOVES,
    RUN_MOVES,
    UNFINISHED_RUNS,
    BatchState,
    CampaignState,
    DeliveryState,
    RunState,
    is_final,
    sources,
)
from tests.ledgers import (
    NOW,
    add_campaign,
    add_job,
    add_run,
    campaign_of,
    claim_batch,
    claim_run,
    key_of,
    stretch_of,
)

# A row for the state before, a column for the state after, in the order of the members; x: may move.
RUNS = """
waiting    . x . . . . . . x x
queued     . . x . . . . . . x
running    . x . x x x x x . .
underway   . . . . x x . . . x
succeeded  . . . . . . . . . .
failed     . . . . . . . . . .
dead       . . . . . . . . . .
parked     . x . . . . . . . x
skipped    . . . . . . . . . .
cancelled  . . . . . . . . . .
"""
CAMPAIGNS = """
enrolling  . x . . x
sending    . . x x x
paused     . x . . x
finished   . x . . .
cancelled  . . . . .
"""
DELIVERIES = """
pending    . x x x x x x x
deferred   x . x . x . x x
sent       . . . . . . . .
rejected   . . x . . . . .
uncertain  . x x x . . . x
suppressed . . x . . . . .
expired    . . x . . . . .
cancelled  . . x . . . . .
"""
BATCHES = """
open       . x
done       . .
"""


def pairs(table: str, states: type[StrEnum]) -> dict[tuple[Any, Any], bool]:
    rows = [line.split() for line in table.split("\n") if line]
    assert [name for name, *_ in rows] == list(states)
    return {
        (states(name), to): mark == "x"
        for name, *marks in rows
        for to, mark in zip(states, marks, strict=True)
    }


@pytest.mark.parametrize(
    ("moves", "table", "states"),
    [
        (RUN_MOVES, RUNS, RunState),
        (CAMPAIGN_MOVES, CAMPAIGNS, CampaignState),
        (DELIVERY_MOVES, DELIVERIES, DeliveryState),
        (BATCH_MOVES, BATCHES, BatchState),
    ],
    ids=["runs", "campaigns", "deliveries", "batches"],
)
def test_these_moves_are_allowed_and_no_others(
    moves: Mapping[Any, frozenset[Any]], table: str, states: type[StrEnum]
) -> None:
    allowed = pairs(table, states)
    assert {(a, b): b in moves[a] for a in states for b in states} == allowed
    for to in states:
        assert set(sources(moves, to)) == {a for a in states if allowed[a, to]}
    for state in states:
        assert is_final(moves, state) is not any(allowed[state, to] for to in states)


def test_a_run_is_unfinished_until_its_state_is_final() -> None:
    assert set(UNFINISHED_RUNS) == {state for state in RunState if not is_final(RUN_MOVES, state)}


def test_an_accepted_message_stays_accepted_and_acceptance_is_believed_from_every_state() -> None:
    assert is_final(DELIVERY_MOVES, DeliveryState.SENT)
    assert set(sources(DELIVERY_MOVES, DeliveryState.SENT)) == set(DeliveryState) - {DeliveryState.SENT}


def test_a_run_that_nobody_holds_moves_as_the_table_says(ledger: Database) -> None:
    for before, to in itertools.product(RunState, RunState):
        with ledger.write() as connection:
            run_id = add_run(connection, state=before)
            moved = runs.move(connection, run_id, to=to, now=NOW)
            found = runs.get(connection, run_id)
        # A claimed run is ended by the holder of its token alone.
        assert moved is (before is not RunState.RUNNING and to in RUN_MOVES[before])
        assert found is not None
        assert found.state is (to if moved else before)


def test_a_claim_ends_only_in_a_state_that_follows_running(ledger: Database) -> None:
    for to in RunState:
        with ledger.write() as connection:
            add_job(connection, to.value)
            add_run(connection, to.value)
        run, claim = claim_run(ledger)
        with ledger.write() as connection:
            if to not in RUN_MOVES[RunState.RUNNING]:
                with pytest.raises(AssertionError):
                    runs.finish(connection, claim, state=to, now=NOW, result=None, reason=None)
                with pytest.raises(AssertionError):
                    runs.take_from_the_dead(connection, run, to=to, now=NOW, reason="")
                assert runs.get(connection, run.id) == run
            else:
                runs.finish(connection, claim, state=to, now=NOW, result=None, reason=None)
                ended = runs.get(connection, run.id)
                assert ended is not None
                assert (ended.state, ended.token, ended.owner) == (to, None, None)
                runs.move(connection, run.id, to=RunState.CANCELLED, now=NOW)


def test_a_campaign_moves_as_the_table_says(ledger: Database) -> None:
    for before, to in itertools.product(CampaignState, CampaignState):
        campaign = add_campaign(ledger, recipients=0, edition=f"{before} {to}", state=before)
        with ledger.write() as connection:
            moved = campaigns.move(connection, campaign.id, to=to, now=NOW)
        assert moved is (to in CAMPAIGN_MOVES[before])
        assert campaign_of(ledger, campaign.id).state is (to if moved else before)


def test_a_delivery_moves_by_a_fact_as_the_table_says_and_by_inference_from_pending_only(
    ledger: Database,
) -> None:
    cases = [(a, b, fact) for a in DeliveryState for b in DeliveryState for fact in (True, False)]
    campaign = add_campaign(ledger, recipients=len(cases))
    with ledger.write() as connection:
        for number, (before, _, _) in enumerate(cases):
            first = Outcome(recipient_key=key_of(number), ordinal=number, state=before, fact=True)
            deliveries.settle(connection, campaign.id, [first], now=NOW)
        second = [
            Outcome(recipient_key=key_of(number), ordinal=number, state=to, fact=fact)
            for number, (_, to, fact) in enumerate(cases)
            if sources(DELIVERY_MOVES, to)
        ]
        deliveries.settle(connection, campaign.id, second, now=NOW)
        found = deliveries.of_campaign(connection, campaign.id, state=None, limit=len(cases))
    for (before, to, fact), delivery in zip(cases, found, strict=True):
        allowed = to in DELIVERY_MOVES[before] and (fact or before is DeliveryState.PENDING)
        assert delivery.state is (to if allowed else before), (before, to, fact)


def test_a_range_and_a_doubt_move_only_as_the_table_says(ledger: Database) -> None:
    for to in DeliveryState:
        campaign = add_campaign(ledger, recipients=2, edition=to)
        with ledger.write() as connection:
            doubt = Outcome(recipient_key=key_of(1), ordinal=1, state=DeliveryState.UNCERTAIN, fact=False)
            deliveries.settle(connection, campaign.id, [doubt], now=NOW)
            settle_range = partial(deliveries.settle_range, connection, stretch_of(campaign, hi=2))
            resolve = partial(deliveries.resolve, connection, campaign.id, key_of(1))
            for before, act in ((DeliveryState.PENDING, settle_range), (DeliveryState.UNCERTAIN, resolve)):
                if to in DELIVERY_MOVES[before]:
                    assert act(to=to, now=NOW, detail="") == 1
                else:
                    with pytest.raises(AssertionError):
                        act(to=to, now=NOW, detail="")


def test_a_closed_batch_is_never_opened_again(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=1)
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    with ledger.write() as connection:
        batches.done(connection, batch)
        closed = batches.get(connection, batch.id)
    assert closed.state is BatchState.DONE
    assert claim_batch(ledger, campaign) is None
    with ledger.write() as connection:
        assert not batches.take_from_the_dead(connection, closed)
        assert batches.get(connection, batch.id) == closed
