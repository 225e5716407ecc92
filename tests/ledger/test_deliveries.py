from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from hashlib import md5
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from maintd.database import Database
from maintd.errors import JobFailed, Unavailable
from maintd.ledger import campaigns, deliveries, suppressions
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery, Outcome
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.ledger.tables import deliveries as delivery_rows
from tests.ledgers import MINUTE, NOW, add_campaign, campaign_of, key_of, race, states_of, stretch_of, tallied

PENDING, DEFERRED, SENT = DeliveryState.PENDING, DeliveryState.DEFERRED, DeliveryState.SENT
UNCERTAIN, REJECTED = DeliveryState.UNCERTAIN, DeliveryState.REJECTED


def settle(ledger: Database, campaign_id: int, *outcomes: Outcome, now: datetime = NOW) -> None:
    with ledger.write() as connection:
        deliveries.settle(connection, campaign_id, outcomes, now=now)


def outcome(
    number: int, state: DeliveryState, *, fact: bool = True, due_at: datetime | None = None
) -> Outcome:
    return Outcome(recipient_key=key_of(number), ordinal=number, state=state, fact=fact, due_at=due_at)


def line(ledger: Database, campaign_id: int) -> list[Delivery]:
    with ledger.read() as connection:
        return deliveries.of_campaign(connection, campaign_id, state=None, limit=1000)


def put_back(ledger: Database, campaign_id: int, *, now: datetime = NOW, limit: int = 100) -> int:
    with ledger.write() as connection:
        return deliveries.put_back_in_line(connection, campaign_id, now=now, limit=limit)


def plans_of(ledger: Database) -> list[str]:
    """How PostgreSQL carries out every statement on deliveries from now on."""
    plans: list[str] = []

    @sa.event.listens_for(ledger.engine, "before_cursor_execute")
    def explain(_c: object, cursor: Any, statement: str, parameters: Any, _x: object, many: bool) -> None:
        if "deliveries" in statement:
            cursor.execute("EXPLAIN " + statement, parameters[0] if many else parameters)
            plans.append("\n".join(row[0] for row in cursor))

    return plans


def test_a_recipient_is_enrolled_once(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=2)
    (first, _) = line(ledger, campaign.id)
    row = first._asdict() | {"ordinal": 2}
    with pytest.raises(IntegrityError), ledger.write() as connection:
        deliveries.insert(connection, [row])
    assert tallied(ledger, campaign.id) == {PENDING: 2}


# What an application keeps can be anything but NUL, which PostgreSQL has not.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(texts=st.lists(TEXTS | st.sampled_from(["\\N", "\\.", "\t", "\r\n", "", '"', "\\"]), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_enrolled_is_kept_as_it_is(ledger: Database, texts: list[str]) -> None:
    campaign = add_campaign(ledger, recipients=1, edition=uuid.uuid4().hex)
    (first,) = line(ledger, campaign.id)
    rows = [
        first._asdict()
        | {"ordinal": number, "recipient_key": key_of(number), "recipient": text, "fields": {"name": text}}
        for number, text in enumerate(texts, start=1)
    ]
    with ledger.write() as connection:
        deliveries.insert(connection, rows)
    assert [one._asdict() for one in line(ledger, campaign.id)] == [first._asdict(), *rows]


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_ledger_that_goes_away_while_somebody_is_enrolled_is_away(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=1)
    row = line(ledger, campaign.id)[0]._asdict() | {"ordinal": 1, "recipient_key": key_of(1)}
    with pytest.raises(Unavailable), ledger.write() as connection:
        pid = connection.scalar(sa.select(sa.func.pg_backend_pid()))
        with ledger.write() as other:
            other.execute(sa.select(sa.func.pg_terminate_backend(pid, 5000)))
        deliveries.insert(connection, [row])
    assert tallied(ledger, campaign.id) == {PENDING: 1}


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("recipients_when_last_analysed", [0, 1, 300])
def test_whoever_is_enrolled_already_is_looked_up_and_not_searched_for(
    ledger: Database, recipients_when_last_analysed: int
) -> None:
    """What PostgreSQL believes of a campaign that is being filled is what it was some time ago."""
    if recipients_when_last_analysed:
        add_campaign(ledger, recipients=recipients_when_last_analysed, edition="before")
        with ledger.write() as connection:
            connection.exec_driver_sql("ANALYZE maintd.deliveries")
    campaign = add_campaign(ledger, recipients=20_000)
    plans = plans_of(ledger)
    with ledger.read() as connection:
        found = deliveries.enrolled_keys(connection, campaign.id, [key_of(n) for n in range(19_000, 21_000)])
    assert len(found) == 1000
    _, index, conditions = plans[-1].partition("uq_deliveries_campaign_id_recipient_key")
    assert index, plans
    assert "Filter" not in conditions, plans


LOOK_UPS: dict[str, Callable[[Connection, int, list[bytes]], object]] = {
    "enrolled": lambda connection, campaign_id, keys: deliveries.enrolled_keys(connection, campaign_id, keys),
    "places": lambda connection, campaign_id, keys: deliveries.places(connection, [campaign_id], keys),
    "late acceptances": lambda connection, campaign_id, keys: deliveries.settle(
        connection,
        campaign_id,
        [replace(outcome(0, SENT), recipient_key=key) for key in keys],
        now=NOW,
    ),
    "doubts": lambda connection, campaign_id, keys: deliveries.doubt(
        connection, campaign_id, keys, now=NOW, detail=""
    ),
}


@pytest.fixture
def tall(ledger: Database) -> Campaign:
    """A campaign that PostgreSQL has not heard of, so large that its index of keys is the taller one."""
    add_campaign(ledger, recipients=300, edition="before")
    with ledger.write() as connection:
        connection.exec_driver_sql("ANALYZE maintd.deliveries")
    campaign = add_campaign(ledger, recipients=1, state=CampaignState.ENROLLING)
    (first,) = line(ledger, campaign.id)
    rows = [
        first._asdict() | {"ordinal": number, "recipient_key": md5(b"%d" % number).digest()}
        for number in range(1, 50_000)
    ]
    with ledger.write() as connection:
        deliveries.insert(connection, rows)
        campaigns.count_enrolled(connection, campaign.id, audience=len(rows), duplicates=0, tail=50_000)
        campaigns.move(connection, campaign.id, to=CampaignState.SENDING, now=NOW)
    return campaign


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_recipients_are_looked_up_by_their_keys_whichever_index_is_the_flatter_one(
    ledger: Database, tall: Campaign
) -> None:
    plans = plans_of(ledger)
    keys = [md5(b"%d" % number).digest() for number in range(100, 110)]
    for name, look_up in LOOK_UPS.items():
        plans.clear()
        with ledger.write() as connection:
            look_up(connection, tall.id, keys)
        of_campaign = [one for plan in plans for one in plan.splitlines() if "Cond: ((campaign_id" in one]
        assert of_campaign, (name, plans)
        walks = [one for plan in plans for one in plan.splitlines() if "Cond: (campaign_id" in one]
        assert not walks, (name, plans)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("deferred", [2000, 50_000])
def test_whoever_comes_back_into_the_line_is_found_in_one_step_however_many_are_deferred(
    ledger: Database, tall: Campaign, deferred: int
) -> None:
    with ledger.write() as connection:
        many = delivery_rows.c.campaign_id == tall.id, delivery_rows.c.ordinal < deferred
        connection.execute(sa.update(delivery_rows).where(*many).values(state=DEFERRED, due_at=NOW))
    plans = plans_of(ledger)
    assert put_back(ledger, tall.id) == 100
    update = plans[-1]
    assert update.startswith("Update on deliveries")
    assert re.search(r"Index Cond: \(\(campaign_id = \S+ AND \((ordinal|recipient_key) = ", update), update


def test_acceptances_are_written_by_walking_through_their_window_at_most(ledger: Database) -> None:
    """Whatever the planner believes of a campaign that was enrolled just now."""
    campaign = add_campaign(ledger, recipients=20_000)
    explain = "EXPLAIN " if ledger.dialect == "postgresql" else "EXPLAIN QUERY PLAN "
    plans: list[str] = []

    @sa.event.listens_for(ledger.engine, "before_cursor_execute")
    def look(_c: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith("UPDATE"):
            cursor.execute(explain + statement, parameters)
            plans.append("\n".join(str(row[-1]) for row in cursor))

    settle(ledger, campaign.id, *(outcome(number, SENT) for number in range(5000, 5300)))
    assert tallied(ledger, campaign.id) == {PENDING: 19_700, SENT: 300}
    (plan,) = plans
    steps = [line for line in plan.splitlines() if "Index Cond" in line or "SEARCH deliveries" in line]
    assert len(steps) == 1, plan
    assert "ordinal" in steps[0], plan


@pytest.mark.parametrize("known", [PENDING, DEFERRED, UNCERTAIN, REJECTED, SENT])
def test_acceptances_of_the_present_and_of_an_earlier_attempt_count_alike(
    ledger: Database, known: DeliveryState
) -> None:
    campaign = add_campaign(ledger, recipients=3)
    settle(ledger, campaign.id, outcome(1, known, due_at=NOW))
    earlier = replace(outcome(2, SENT), ordinal=77)
    settle(ledger, campaign.id, outcome(0, SENT), outcome(1, SENT), earlier)
    assert tallied(ledger, campaign.id) == {SENT: 3}


def test_an_outcome_is_written_with_all_that_the_relay_said(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=1)
    said = Outcome(
        recipient_key=key_of(0),
        ordinal=0,
        state=REJECTED,
        fact=True,
        phase="rcpt",
        code=550,
        enhanced="5.1.1",
        detail="No such user",
    )
    settle(ledger, campaign.id, said, now=NOW + MINUTE)
    (found,) = line(ledger, campaign.id)
    assert (found.state, found.phase, found.code, found.enhanced) == (REJECTED, "rcpt", 550, "5.1.1")
    assert (found.detail, found.settled_at, found.failures) == ("No such user", NOW + MINUTE, 0)


def test_outcomes_of_one_campaign_leave_the_same_recipient_of_another_alone(ledger: Database) -> None:
    one, other = (add_campaign(ledger, recipients=1, edition=edition) for edition in ("one", "two"))
    settle(ledger, one.id, outcome(0, SENT))
    assert states_of(ledger, other.id) == {0: PENDING}


def test_a_read_acceptance_overrides_a_doubt_and_a_doubt_never_an_acceptance(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=1)
    settle(ledger, campaign.id, outcome(0, UNCERTAIN, fact=False))
    settle(ledger, campaign.id, outcome(0, SENT))
    for later in (outcome(0, UNCERTAIN, fact=False), outcome(0, REJECTED), outcome(0, DEFERRED, due_at=NOW)):
        settle(ledger, campaign.id, later)
    assert states_of(ledger, campaign.id) == {0: SENT}


def test_an_inference_is_believed_of_pending_deliveries_only(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=2)
    settle(ledger, campaign.id, outcome(0, UNCERTAIN, fact=False))
    settle(ledger, campaign.id, *(outcome(number, REJECTED, fact=False) for number in (0, 1)))
    assert states_of(ledger, campaign.id) == {0: UNCERTAIN, 1: REJECTED}


def test_a_deferral_counts_as_a_failure_and_comes_back_at_the_tail_when_its_time_has_come(
    ledger: Database,
) -> None:
    campaign = add_campaign(ledger, recipients=4)
    settle(ledger, campaign.id, outcome(1, DEFERRED, due_at=NOW + MINUTE), outcome(0, SENT))
    assert put_back(ledger, campaign.id, now=NOW + MINUTE / 2) == 0
    assert campaign_of(ledger, campaign.id).tail == 4
    assert put_back(ledger, campaign.id, now=NOW + MINUTE) == 1
    assert campaign_of(ledger, campaign.id).tail == 5
    back = line(ledger, campaign.id)[-1]
    assert (back.ordinal, back.recipient_key, back.state, back.failures) == (4, key_of(1), PENDING, 1)
    assert (back.due_at, back.settled_at) == (None, None)
    assert tallied(ledger, campaign.id) == {PENDING: 3, SENT: 1}


def test_deferrals_come_back_the_longest_due_first_and_so_many_at_a_time(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=3)
    waits = {0: 3, 1: 1, 2: 2}
    settle(ledger, campaign.id, *(outcome(n, DEFERRED, due_at=NOW + m * MINUTE) for n, m in waits.items()))
    assert put_back(ledger, campaign.id, now=NOW + 5 * MINUTE, limit=2) == 2
    assert [found.recipient_key for found in line(ledger, campaign.id) if found.state is PENDING] == [
        key_of(1),
        key_of(2),
    ]
    assert put_back(ledger, campaign.id, now=NOW + 5 * MINUTE, limit=2) == 1


def test_racing_returns_to_the_line_give_every_deferral_one_ordinal(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=30)
    settle(ledger, campaign.id, *(outcome(number, DEFERRED, due_at=NOW) for number in range(30)))
    back = race(4, lambda _: put_back(ledger, campaign.id, limit=7) + put_back(ledger, campaign.id, limit=7))
    assert sum(back) == 30
    assert [delivery.ordinal for delivery in line(ledger, campaign.id)] == list(range(30, 60))
    assert campaign_of(ledger, campaign.id).tail == 60


def test_a_fact_finds_its_delivery_under_its_new_ordinal(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=3)
    settle(ledger, campaign.id, outcome(0, DEFERRED, due_at=NOW))
    put_back(ledger, campaign.id)
    settle(ledger, campaign.id, outcome(0, SENT))
    assert states_of(ledger, campaign.id)[0] is SENT


def test_pending_are_those_of_the_range_that_are_not_settled_in_order(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=6)
    settle(ledger, campaign.id, outcome(2, SENT), outcome(3, UNCERTAIN, fact=False))
    with ledger.read() as connection:
        found = deliveries.pending(connection, stretch_of(campaign, lo=1, hi=5))
        keys = deliveries.pending_keys(connection, stretch_of(campaign, lo=1, hi=5))
    assert [delivery.ordinal for delivery in found] == [1, 4]
    assert keys == {key_of(1), key_of(4)}


def test_only_pending_deliveries_of_the_range_are_suppressed(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=4)
    settle(ledger, campaign.id, outcome(1, SENT))
    with ledger.write() as connection:
        for number in (0, 1, 3):
            suppressions.add(connection, key_of(number), reason="asked", now=NOW)
        assert deliveries.suppress(connection, stretch_of(campaign, hi=3), now=NOW) == {key_of(2)}
    assert states_of(ledger, campaign.id) == {
        0: DeliveryState.SUPPRESSED,
        1: SENT,
        2: PENDING,
        3: PENDING,
    }


def test_a_doubt_is_sent_again_until_its_copies_are_used_up(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=1)
    resent = []
    for _ in range(5):
        (delivery,) = line(ledger, campaign.id)
        settle(ledger, campaign.id, replace(outcome(0, UNCERTAIN, fact=False), ordinal=delivery.ordinal))
        with ledger.write() as connection:
            resent.append(deliveries.resend_doubtful(connection, stretch_of(campaign), now=NOW, max_copies=3))
        put_back(ledger, campaign.id)
    assert resent == [1, 1, 0, 0, 0]
    (found,) = line(ledger, campaign.id)
    assert (found.state, found.copies) == (UNCERTAIN, 2)


def test_a_person_settles_a_doubt_once(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=2)
    settle(ledger, campaign.id, outcome(0, UNCERTAIN, fact=False), outcome(1, SENT))

    def resolve(number: int, to: DeliveryState) -> bool:
        with ledger.write() as connection:
            return deliveries.resolve(connection, campaign.id, key_of(number), to=to, now=NOW, detail="seen")

    assert [resolve(0, DEFERRED), resolve(0, SENT), resolve(1, REJECTED)] == [True, False, False]
    assert put_back(ledger, campaign.id) == 1
    assert states_of(ledger, campaign.id) == {0: PENDING, 1: SENT}


def test_wiping_goes_in_bounded_steps_to_the_end(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=25, state=CampaignState.ENROLLING)
    other = add_campaign(ledger, recipients=3, edition="other")

    left = []
    lo: int | None = 0
    while lo is not None:
        with ledger.write() as connection:
            lo = deliveries.wipe(connection, campaign.id, lo=lo, limit=10)
        left.append(len(line(ledger, campaign.id)))

    assert left == [15, 5, 0, 0]
    assert tallied(ledger, other.id) == {PENDING: 3}


def test_every_state_is_counted_and_all_together_are_what_was_enrolled(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=len(DeliveryState) + 1)
    settle(ledger, campaign.id, *(outcome(number, state) for number, state in enumerate(DeliveryState)))
    with ledger.read() as connection:
        counts = deliveries.counts(connection, campaign.id)
    assert counts == {state: 2 if state is PENDING else 1 for state in DeliveryState}
    assert sum(counts.values()) == campaign_of(ledger, campaign.id).enrolled


def test_the_deliveries_of_a_recipient_are_found_in_every_campaign(ledger: Database) -> None:
    one, other = (add_campaign(ledger, recipients=2, edition=edition) for edition in ("one", "two"))
    with ledger.read() as connection:
        found = deliveries.find(connection, key_of(1))
    assert [delivery.campaign_id for delivery in found] == [other.id, one.id]


def test_the_doubtful_are_listed_of_one_campaign_or_of_all(ledger: Database) -> None:
    one, other = (add_campaign(ledger, recipients=2, edition=edition) for edition in ("one", "two"))
    for campaign in (one, other):
        settle(ledger, campaign.id, outcome(1, UNCERTAIN, fact=False))
    with ledger.read() as connection:
        of_all = deliveries.uncertain(connection, campaign_id=None, limit=10)
        of_one = deliveries.uncertain(connection, campaign_id=other.id, limit=10)
    assert [delivery.campaign_id for delivery in of_all] == [one.id, other.id]
    assert [delivery.campaign_id for delivery in of_one] == [other.id]


def test_settled_outcomes_of_many_recipients_race_without_losing_one(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=40)

    def work(number: int) -> None:
        for recipient in range(number, 40, 4):
            settle(ledger, campaign.id, outcome(recipient, SENT))

    race(4, work)
    assert tallied(ledger, campaign.id) == {SENT: 40}


@pytest.mark.parametrize("state", [CampaignState.SENDING, CampaignState.CANCELLED])
def test_only_an_enrolment_is_ever_wiped(ledger: Database, state: CampaignState) -> None:
    campaign = add_campaign(ledger, recipients=3, state=state)
    with ledger.write() as connection:
        assert deliveries.wipe(connection, campaign.id, lo=0, limit=10) is None
    assert len(line(ledger, campaign.id)) == 3


@pytest.mark.parametrize("refusal", [DeliveryState.REJECTED, DeliveryState.DEFERRED])
def test_a_refusal_is_said_of_one_attempt_and_an_acceptance_of_the_recipient(
    ledger: Database, refusal: DeliveryState
) -> None:
    campaign = add_campaign(ledger, recipients=1)
    settle(ledger, campaign.id, outcome(0, DeliveryState.DEFERRED, due_at=NOW))
    assert put_back(ledger, campaign.id) == 1
    (again,) = line(ledger, campaign.id)
    settle(ledger, campaign.id, replace(outcome(0, UNCERTAIN, fact=False), ordinal=again.ordinal))

    settle(ledger, campaign.id, outcome(0, refusal))
    assert tallied(ledger, campaign.id) == {UNCERTAIN: 1}
    settle(ledger, campaign.id, outcome(0, SENT))
    assert tallied(ledger, campaign.id) == {SENT: 1}


@pytest.mark.parametrize("state", [CampaignState.SENDING, CampaignState.CANCELLED])
def test_a_campaign_that_does_not_enrol_takes_nobody_in(ledger: Database, state: CampaignState) -> None:
    campaign = add_campaign(ledger, recipients=3, state=state)
    with pytest.raises(JobFailed, match="cancelled while"), ledger.write() as connection:
        campaigns.count_enrolled(connection, campaign.id, audience=1, duplicates=0, tail=4)
    assert campaign_of(ledger, campaign.id).tail == 3


def test_a_campaign_counts_what_it_enrolled(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=3, state=CampaignState.ENROLLING)
    with ledger.write() as connection:
        campaigns.count_enrolled(connection, campaign.id, audience=5, duplicates=5, tail=3)
    found = campaign_of(ledger, campaign.id)
    assert (found.audience, found.duplicates, found.enrolled) == (8, 5, 3)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_what_is_open_is_found_by_its_own_small_index(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite uses a partial index only where the statement spells its condition out."""
    plans: list[str] = []

    @sa.event.listens_for(ledger.engine, "before_cursor_execute")
    def explain(_c: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if statement.lstrip().startswith("SELECT deliveries"):
            cursor.execute("EXPLAIN QUERY PLAN " + statement, parameters)
            plans.append(" ".join(str(row[3]) for row in cursor.fetchall()))

    campaign = add_campaign(ledger, recipients=3)
    put_back(ledger, campaign.id)
    with ledger.read() as connection:
        deliveries.uncertain(connection, campaign_id=campaign.id, limit=10)
    assert len(plans) == 2
    assert ["ix_deliveries_open" in plan for plan in plans] == [True, True], plans
