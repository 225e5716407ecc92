"""From what the relay said to what is written into the ledger."""

from __future__ import annotations

from datetime import datetime, timedelta

from maintd.ledger.deliveries import Delivery, Outcome
from maintd.ledger.states import DeliveryState
from maintd.mail.verdicts.failures import About, Failure, about, failure_of
from maintd.mail.verdicts.schedules import SCHEDULES, WHEN_RESUMED, Schedule, asked_wait
from maintd.smtp.session import Phase, Result, Verdict


def outcome_of(
    delivery: Delivery,
    result: Result,
    *,
    now: datetime,
    sending_since: datetime,
    expires_at: datetime | None = None,
    redirect: str | None = None,
) -> Outcome:
    """What a result does to its delivery. `UNSENT`, when it comes here at all, is a failure to connect.

    A refusal for good rejects the recipient only if it is about the recipient; else the message is put off.

    Args:
        delivery: As it was before.
        result: Of the attempt.
        now: When it came.
        sending_since: When the campaign last began to send: while it was paused, nothing was put off.
        expires_at: Of the campaign: what would come back later comes back then, to expire.
        redirect: The address that got it instead of its recipient; an acceptance says so.
    """
    if result.verdict is Verdict.ACCEPTED:
        elsewhere = f"redirected to {redirect}: " if redirect else ""
        return _outcome(delivery, result, state=DeliveryState.SENT, prefix=elsewhere)
    if result.verdict is Verdict.UNCERTAIN:
        return _outcome(delivery, result, state=DeliveryState.UNCERTAIN)
    failure = _failure(delivery, result)
    whom = _refused(failure, result)
    if whom is About.RECIPIENT:
        return _outcome(delivery, result, state=DeliveryState.REJECTED, failure=failure)
    schedule = WHEN_RESUMED if whom is About.SENDER else SCHEDULES[failure]
    failures = delivery.failures + int(schedule.counted)
    wait = schedule.wait(
        failures=failures,
        put_off_for=now - max(delivery.deferred_at or now, sending_since),
        spread=_spread(delivery),
    )
    if wait is None:
        reason = f"given up after {_amount(schedule, failures)}: "
        return _outcome(delivery, result, state=DeliveryState.REJECTED, failure=failure, prefix=reason)
    due_at = now + max(wait, _asked(result))
    return _outcome(
        delivery,
        result,
        state=DeliveryState.DEFERRED,
        failure=failure,
        counted=schedule.counted,
        due_at=due_at if expires_at is None else min(due_at, expires_at),
    )


def cut_off(recipient_key: bytes, *, ordinal: int) -> Outcome:
    """A message that was on the wire when its sender had to let go of it."""
    return _in_doubt(recipient_key, ordinal, "its sender was interrupted")


def vanished(recipient_key: bytes, *, ordinal: int, owner: str | None) -> Outcome:
    """A message that may have been on the wire when its sender died."""
    return _in_doubt(recipient_key, ordinal, f"its sender ({owner}) vanished")


def _in_doubt(recipient_key: bytes, ordinal: int, happened: str) -> Outcome:
    return Outcome(
        recipient_key=recipient_key,
        ordinal=ordinal,
        state=DeliveryState.UNCERTAIN,
        fact=False,
        phase=Phase.DOT.value,
        detail=f"{happened} while the message may have been handed over",
    )


def is_news(outcome: Outcome, state: DeliveryState | None) -> bool:
    """Whether it changes a delivery in that state; None: there is no such delivery."""
    return state not in (None, DeliveryState.SENT, outcome.state)


def _failure(delivery: Delivery, result: Result) -> Failure:
    if result.verdict is Verdict.UNSENT:
        return Failure.CONNECT
    if result.phase is Phase.RENDER:
        return Failure.TEMPLATE
    first = delivery.failures == 0
    known = failure_of(result.phase, result.reply, first=first) if result.reply else None
    return known or Failure.PERMANENT


def _refused(failure: Failure, result: Result) -> About | None:
    """Of whom a refusal for good speaks; None if it was none."""
    if result.verdict is not Verdict.REJECTED:
        return None
    # What this relay cannot be given at all is a matter of this one message, and of its recipient's address mostly.
    return about(failure, result.phase) if result.reply else About.RECIPIENT


def _amount(schedule: Schedule, failures: int) -> str:
    return f"{failures} tries" if schedule.longest is None else f"{schedule.longest.days} days"


def _asked(result: Result) -> timedelta:
    return asked_wait(result.reply.text) if result.reply else timedelta()


def _spread(delivery: Delivery) -> float:
    """Scatters the tries of many recipients; from the record, so that no randomness is needed."""
    return delivery.recipient_key[0] / 256


def _outcome(
    delivery: Delivery,
    result: Result,
    *,
    state: DeliveryState,
    failure: Failure | None = None,
    counted: bool = True,
    due_at: datetime | None = None,
    prefix: str = "",
) -> Outcome:
    reply = result.reply
    return Outcome(
        recipient_key=delivery.recipient_key,
        ordinal=delivery.ordinal,
        state=state,
        # An answer that makes no sense was read too, but it says nothing.
        fact=reply is not None and result.verdict is not Verdict.UNCERTAIN,
        failure=failure,
        counted=counted,
        phase=result.phase.value,
        code=reply.code if reply else None,
        enhanced=reply.enhanced if reply else None,
        detail=prefix + (reply.text if reply else result.detail),
        due_at=due_at,
    )
