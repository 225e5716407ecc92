"""A campaign that has ended ends the run that made it, and says whether anybody was mailed."""

from __future__ import annotations

import pytest

from maintd.database import Database
from maintd.execution.reconcile import Reconciler
from maintd.execution.runtime import Runtime
from maintd.ledger import batches, deliveries
from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import DeliveryState, RunState
from tests.ledgers import NOW, add_campaign, claim_batch, key_of, run_of

SENT, REJECTED = DeliveryState.SENT, DeliveryState.REJECTED


@pytest.mark.parametrize(
    ("states", "end"),
    [
        ([REJECTED, REJECTED], RunState.FAILED),
        ([DeliveryState.EXPIRED, DeliveryState.EXPIRED], RunState.FAILED),
        ([SENT, DeliveryState.EXPIRED], RunState.SUCCEEDED),
        ([SENT, REJECTED], RunState.SUCCEEDED),
        ([DeliveryState.UNCERTAIN, DeliveryState.UNCERTAIN], RunState.SUCCEEDED),
    ],
)
def test_a_mailing_that_reached_nobody_is_no_success(
    runtime: Runtime, ledger: Database, states: list[DeliveryState], end: RunState
) -> None:
    campaign = add_campaign(ledger, recipients=len(states))
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    outcomes = [
        Outcome(recipient_key=key_of(place), ordinal=place, state=state, fact=state is SENT)
        for place, state in enumerate(states)
    ]
    with ledger.write() as connection:
        deliveries.settle(connection, campaign.id, outcomes, now=NOW)
        batches.done(connection, batch)
    Reconciler(runtime).run_once()
    run = run_of(ledger, campaign.run_id)
    assert run.state is end
    assert (run.reason or "").startswith("nobody was mailed") is (end is RunState.FAILED)
