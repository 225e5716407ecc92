"""What a result does to its delivery: who is rejected, who waits and how long, and what ends the waiting."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.ledger.deliveries import Delivery
from maintd.ledger.states import DeliveryState
from maintd.mail.verdicts.failures import Failure
from maintd.mail.verdicts.outcomes import outcome_of
from maintd.mail.verdicts.schedules import LONGEST_UNCOUNTED
from maintd.smtp.reply import Reply
from maintd.smtp.session import Phase, Result, Unsendable
from tests.ledgers import MINUTE, NOW, key_of

DEFERRED, REJECTED, UNCERTAIN = DeliveryState.DEFERRED, DeliveryState.REJECTED, DeliveryState.UNCERTAIN
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
DELIVERY = Delivery(
    campaign_id=1,
    ordinal=0,
    recipient_key=key_of(0),
    address="a@example.org",
    recipient=None,
    lane=0,
    fields={},
    state=DeliveryState.PENDING,
    copies=0,
    failures=0,
    failure=None,
    deferred_at=None,
    due_at=None,
    settled_at=None,
    phase=None,
    code=None,
    enhanced=None,
    detail=None,
)
THROTTLED = Result.decided(Phase.RCPT, Reply.parse(421, "4.7.0 Too much"))
LOCKED_OUT = Result.decided(Phase.MAIL, Reply.parse(530, "5.7.0 Authentication required"))
UNWANTED = Result.decided(Phase.DOT, Reply.parse(554, "5.7.1 Spam"))
BUSY = Result.decided(Phase.RCPT, Reply.parse(450, "4.3.0 Busy"))


@pytest.mark.parametrize(
    ("phase", "code", "text", "state", "failure"),
    [
        (Phase.RCPT, 550, "5.1.1 No such user", REJECTED, Failure.MAILBOX),
        (Phase.RCPT, 599, "No", REJECTED, Failure.PERMANENT),
        (Phase.RCPT, 554, "5.7.1 Relay access denied", DEFERRED, Failure.POLICY),
        (Phase.MAIL, 553, "Not as that", DEFERRED, Failure.POLICY),
        (Phase.DOT, 552, "5.3.4 Too big", DEFERRED, Failure.PERMANENT),
        (Phase.RCPT, 452, "4.2.2 Full", DEFERRED, Failure.MAILBOX),
    ],
)
def test_a_refusal_for_good_rejects_a_recipient_only_if_it_is_about_the_recipient(
    phase: Phase, code: int, text: str, state: DeliveryState, failure: Failure
) -> None:
    result = Result.decided(phase, Reply.parse(code, text))
    outcome = outcome_of(DELIVERY, result, now=NOW, sending_since=NOW)
    assert (outcome.state, outcome.failure, outcome.fact) == (state, failure, True)


def test_an_answer_that_makes_no_sense_is_no_fact() -> None:
    result = Result.broken_off(Phase.DOT, "nonsense", reply=Reply(code=-12, enhanced=None, text="?"))
    outcome = outcome_of(DELIVERY, result, now=NOW, sending_since=NOW)
    assert (outcome.state, outcome.fact, outcome.failure) == (UNCERTAIN, False, None)


@pytest.mark.parametrize("reply", [None, Reply(code=250, enhanced=None, text="?")])
def test_a_message_that_was_never_answered_failed_to_connect(reply: Reply | None) -> None:
    result = Result.broken_off(Phase.DATA, "lost", reply=reply)
    outcome = outcome_of(DELIVERY, result, now=NOW, sending_since=NOW)
    assert (outcome.state, outcome.failure) == (DEFERRED, Failure.CONNECT)


def test_what_a_relay_cannot_be_given_is_rejected() -> None:
    outcome = outcome_of(DELIVERY, Result.unsendable(Unsendable("too wide")), now=NOW, sending_since=NOW)
    assert (outcome.state, outcome.failure) == (REJECTED, Failure.PERMANENT)


def test_a_throttled_message_has_lost_no_try() -> None:
    outcome = outcome_of(DELIVERY._replace(failures=9), THROTTLED, now=NOW, sending_since=NOW)
    assert (outcome.state, outcome.failure, outcome.counted) == (DEFERRED, Failure.THROTTLE, False)


def test_a_message_that_is_throttled_for_days_is_given_up() -> None:
    delivery = DELIVERY._replace(deferred_at=NOW)
    at_last = NOW + LONGEST_UNCOUNTED
    assert outcome_of(delivery, THROTTLED, now=at_last, sending_since=NOW).state is DEFERRED
    given_up = outcome_of(delivery, THROTTLED, now=at_last + MINUTE, sending_since=NOW)
    assert (given_up.state, given_up.detail) == (REJECTED, "given up after 5 days: Too much")


def test_the_days_of_a_pause_are_not_those_of_a_message() -> None:
    delivery = DELIVERY._replace(deferred_at=NOW)
    outcome = outcome_of(delivery, THROTTLED, now=NOW + 30 * DAY, sending_since=NOW + 29 * DAY)
    assert outcome.state is DEFERRED


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_refusal_of_the_sender_costs_nobody_the_mail(failures: int, days: int) -> None:
    delivery = DELIVERY._replace(failures=failures, deferred_at=NOW)
    outcome = outcome_of(delivery, LOCKED_OUT, now=NOW + days * DAY, sending_since=NOW)
    assert (outcome.state, outcome.counted) == (DEFERRED, False)


@pytest.mark.parametrize(("result", "most"), [(UNWANTED, 3), (BUSY, 10)])
def test_what_is_refused_again_and_again_is_given_up(result: Result, most: int) -> None:
    again = outcome_of(DELIVERY._replace(failures=most - 1), result, now=NOW, sending_since=NOW)
    assert (again.state, again.counted) == (DEFERRED, True)
    given_up = outcome_of(DELIVERY._replace(failures=most), result, now=NOW, sending_since=NOW)
    assert given_up.state is REJECTED
    assert given_up.detail is not None
    assert given_up.detail.startswith(f"given up after {most + 1} tries: ")


def test_a_relay_may_ask_for_a_longer_wait_and_not_for_a_shorter_one() -> None:
    def due_after(text: str) -> timedelta:
        result = Result.decided(Phase.RCPT, Reply.parse(450, text))
        due_at = outcome_of(DELIVERY, result, now=NOW, sending_since=NOW).due_at
        assert due_at is not None
        return due_at - NOW

    assert due_after("come back in 2 hours") == 2 * HOUR
    assert due_after("come back in 2 seconds") == 5 * MINUTE


def test_what_would_come_back_too_late_comes_back_to_expire() -> None:
    outcome = outcome_of(DELIVERY, BUSY, now=NOW, sending_since=NOW, expires_at=NOW + MINUTE)
    assert outcome.due_at == NOW + MINUTE
