from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError

from maintd.database import Database
from maintd.ledger import batches, campaigns, deliveries, runs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Outcome
from maintd.ledger.engine import open_ledger
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from tests.ledgers import HELLO, MINUTE, NOW, add_campaign, campaign_of, claim_batch, key_of, race


def finish(ledger: Database, campaign: Campaign) -> bool:
    with ledger.write() as connection:
        return campaigns.finish_if_done(connection, campaign.id, now=NOW + MINUTE)


def test_an_edition_exists_once(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=0)
    with pytest.raises(IntegrityError):
        add_campaign(ledger, recipients=0)
    with ledger.read() as connection:
        assert campaigns.find(connection, job="hello", edition="one") == campaign
        assert campaigns.find(connection, job="hello", edition="two") is None
        assert campaigns.find(connection, job="other", edition="one") is None
    assert campaign.name == "hello/one"


def test_a_campaign_is_finished_when_all_is_cut_no_batch_open_and_nothing_deferred(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=2)
    assert not finish(ledger, campaign)  # not all of the line is cut
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    assert not finish(ledger, campaign)  # a batch is open
    later = Outcome(recipient_key=key_of(0), ordinal=0, state=DeliveryState.DEFERRED, fact=True, due_at=NOW)
    doubt = Outcome(recipient_key=key_of(1), ordinal=1, state=DeliveryState.UNCERTAIN, fact=False)
    with ledger.write() as connection:
        batches.done(connection, batch)
        deliveries.settle(connection, campaign.id, [later, doubt], now=NOW)
    assert not finish(ledger, campaign)  # one is deferred
    with ledger.write() as connection:
        deliveries.put_back_in_line(connection, campaign.id, now=NOW, limit=10)
    assert not finish(ledger, campaign)  # and back in the line
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    with ledger.write() as connection:
        sent = Outcome(recipient_key=key_of(0), ordinal=0, state=DeliveryState.SENT, fact=True)
        deliveries.settle(connection, campaign.id, [sent], now=NOW)
        batches.done(connection, batch)
    assert finish(ledger, campaign)
    assert not finish(ledger, campaign)
    found = campaign_of(ledger, campaign.id)
    assert (found.state, found.finished_at) == (CampaignState.FINISHED, NOW + MINUTE)


@pytest.mark.parametrize("state", [CampaignState.ENROLLING, CampaignState.PAUSED, CampaignState.CANCELLED])
def test_only_a_sending_campaign_is_finished(ledger: Database, state: CampaignState) -> None:
    assert not finish(ledger, add_campaign(ledger, recipients=0, state=state))


def test_a_campaign_never_finishes_over_a_deferral_that_comes_back_at_the_same_time(ledger: Database) -> None:
    for edition in map(str, range(5)):
        campaign = add_campaign(ledger, recipients=1, edition=edition)
        batch = claim_batch(ledger, campaign)
        assert batch is not None
        later = Outcome(
            recipient_key=key_of(0), ordinal=0, state=DeliveryState.DEFERRED, fact=True, due_at=NOW
        )
        with ledger.write() as connection:
            batches.done(connection, batch)
            deliveries.settle(connection, campaign.id, [later], now=NOW)

        def act(number: int, campaign: Campaign = campaign) -> bool:
            if number == 0:
                return finish(ledger, campaign)
            with ledger.write() as connection:
                deliveries.put_back_in_line(connection, campaign.id, now=NOW, limit=10)
            return False

        assert race(2, act) == [False, False]


@pytest.mark.parametrize("holder", ["a person", "whoever finishes it", "whoever puts back in line"])
@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_batch_is_cut_while_somebody_holds_the_campaign(ledger_url: str, holder: str) -> None:
    ledger = open_ledger(ledger_url, idle_timeout=MINUTE)  # and so nobody waits long for a lock
    campaign = add_campaign(ledger, recipients=1)
    with ledger.write() as connection:
        if holder == "a person":
            campaigns.lock(connection, campaign.id)
        elif holder == "whoever finishes it":
            assert not campaigns.finish_if_done(connection, campaign.id, now=NOW)
        else:
            assert deliveries.put_back_in_line(connection, campaign.id, now=NOW, limit=1) == 0
        # Whoever waits here holds a line, for which the other one may be about to wait.
        assert claim_batch(ledger, campaign) is not None
    ledger.dispose()


def test_the_instants_of_a_campaign_are_kept_as_it_moves(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=0, state=CampaignState.ENROLLING)
    assert (campaign.enrolled_at, campaign.finished_at) == (None, None)

    def move(to: CampaignState, after: int, reason: str | None = None) -> Campaign:
        with ledger.write() as connection:
            assert campaigns.move(connection, campaign.id, to=to, now=NOW + after * MINUTE, reason=reason)
        return campaign_of(ledger, campaign.id)

    assert move(CampaignState.SENDING, 1).enrolled_at == NOW + MINUTE
    assert move(CampaignState.PAUSED, 2, "too many doubts").reason == "too many doubts"
    resumed = move(CampaignState.SENDING, 3)
    assert (resumed.enrolled_at, resumed.reason) == (NOW + MINUTE, None)
    assert move(CampaignState.FINISHED, 4).finished_at == NOW + 4 * MINUTE
    assert move(CampaignState.SENDING, 5).finished_at is None
    assert move(CampaignState.CANCELLED, 6).finished_at == NOW + 6 * MINUTE


def test_content_is_given_anew_only_while_the_audience_is_enrolled(ledger: Database) -> None:
    enrolling = add_campaign(ledger, recipients=3, state=CampaignState.ENROLLING)
    sending = add_campaign(ledger, recipients=3, edition="two")
    with ledger.write() as connection:
        for campaign in (enrolling, sending):
            campaigns.restart(connection, campaign.id, {"content": "other"})
    anew = campaign_of(ledger, enrolling.id)
    assert (anew.content, anew.audience, anew.tail, anew.uid) == ("other", 0, 0, enrolling.uid)
    assert campaign_of(ledger, sending.id) == sending


def test_a_template_is_stored_once_by_its_digest(ledger: Database) -> None:
    def store(_number: int) -> None:
        with ledger.write() as connection:
            campaigns.store_template(
                connection, digest=HELLO.digest, name=HELLO.name, files=HELLO.files, now=NOW
            )

    race(4, store)
    with ledger.read() as connection:
        assert campaigns.template_files(connection, HELLO.digest) == (HELLO.name, HELLO.files)


def test_another_edition_gets_the_first_free_name(ledger: Database) -> None:
    def name(edition: str = "one") -> str:
        with ledger.read() as connection:
            return campaigns.free_edition(connection, job="hello", edition=edition)

    assert name() == "one"
    add_campaign(ledger, recipients=0)
    assert name() == "one+2"
    add_campaign(ledger, recipients=0, edition="one+2")
    assert name() == "one+3"
    assert name("another") == "another"


def test_ended_campaigns_are_told_until_their_run_has_heard_of_it(ledger: Database) -> None:
    states = (CampaignState.FINISHED, CampaignState.CANCELLED, CampaignState.PAUSED, CampaignState.SENDING)
    made = [add_campaign(ledger, recipients=0, edition=state, state=state) for state in states]
    with ledger.write() as connection:
        ended = campaigns.ended_with_run_underway(connection)
        assert [campaign.id for campaign in ended] == [made[0].id, made[1].id]
        runs.move(connection, made[0].run_id, to=RunState.SUCCEEDED, now=NOW)
        assert [c.id for c in campaigns.ended_with_run_underway(connection)] == [made[1].id]


def test_sending_campaigns_are_the_oldest_first_and_the_latest_the_newest(ledger: Database) -> None:
    one, two = (add_campaign(ledger, recipients=0, edition=edition) for edition in ("one", "two"))
    other = add_campaign(ledger, recipients=0, job="other", state=CampaignState.PAUSED)
    with ledger.read() as connection:
        assert [campaign.id for campaign in campaigns.sending(connection)] == [one.id, two.id]
        assert [c.id for c in campaigns.latest(connection, job=None, limit=2)] == [other.id, two.id]
        assert [c.id for c in campaigns.latest(connection, job="hello", limit=9)] == [two.id, one.id]
