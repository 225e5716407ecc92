"""What a cancelled campaign leaves behind is settled, whoever still held it."""

from __future__ import annotations

from datetime import timedelta

from maintd.database import Database
from maintd.execution.reconcile import Reconciler
from maintd.execution.runtime import Runtime
from maintd.ledger import batches
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import BatchState, DeliveryState
from maintd.mail import control
from tests.ledgers import HandClock, add_campaign, claim_batch, tallied

LEASE = timedelta(seconds=30)


def cancel(ledger: Database, campaign: Campaign, clock: HandClock) -> int:
    return control.cancel(ledger, campaign.name, reason="test", clock=clock).left


def test_what_a_sender_held_is_settled_once_it_lets_go(
    runtime: Runtime, ledger: Database, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=10)
    batch = claim_batch(ledger, campaign, size=4)
    assert batch is not None
    assert cancel(ledger, campaign, clock) == 4

    with ledger.write() as connection:
        batches.release(connection, batch, wire_hi=batch.lo)
    Reconciler(runtime).run_once()

    assert tallied(ledger, campaign.id) == {DeliveryState.CANCELLED: 10}
    with ledger.read() as connection:
        assert batches.get(connection, batch.id).state is BatchState.DONE


def test_what_a_vanished_sender_had_on_the_wire_is_doubtful_and_the_rest_cancelled(
    runtime: Runtime, ledger: Database, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=10)
    batch = claim_batch(ledger, campaign, size=4)
    assert batch is not None
    with ledger.write() as connection:
        batches.mark(connection, batch, wire_hi=2)
    cancel(ledger, campaign, clock)

    reconciler = Reconciler(runtime)
    reconciler.run_once()
    clock.turn(LEASE)
    reconciler.run_once()

    assert tallied(ledger, campaign.id) == {DeliveryState.UNCERTAIN: 2, DeliveryState.CANCELLED: 8}
