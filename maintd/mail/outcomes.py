"""From what the relay said to what is written into the ledger, and when a refused message is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from maintd.ledger.deliveries import Delivery, Outcome
from maintd.ledger.states import DeliveryState
from maintd.retry import Backoff
from maintd.smtp.session import Phase, Result, Verdict

#: RFC 5321 §4.5.4.1 asks for at least 30 minutes between tries in general and a quicker second try or two; greylisting
#: commonly lets the second try pass after five minutes.
DEFERRAL = Backoff(first=timedelta(minutes=5), factor=3.0, longest=timedelta(hours=4))
#: 5 min, 15 min, 45 min, 2 h 15 min, then every 4 h: the last try comes a good day after the first.
MOST_DEFERRALS = 10
#: How often a connection may be lost before the dot until a message itself is suspected and waits its turn.
UNSENT_TRIES = 3

_STATES = {
    Verdict.ACCEPTED: DeliveryState.SENT,
    Verdict.REJECTED: DeliveryState.REJECTED,
    Verdict.UNCERTAIN: DeliveryState.UNCERTAIN,
}


#: Results in a row that speak of the sender or the relay and not of the recipient, until the campaign is paused.
MOST_OMINOUS = 25


@dataclass(kw_only=True)
class Streak:
    """How long a campaign has met with nothing but ominous results, over all its batches.

    Attributes:
        length: Results in a row.
        last: What the latest of them said.
    """

    length: int = 0
    last: str | None = None

    def count(self, result: Result, said: str | None) -> None:
        """Takes in a result. One that never came to an answer says neither good nor bad."""
        if is_ominous(result):
            self.ominous(said)
        elif result.verdict is not Verdict.UNSENT:
            self.length = 0

    def ominous(self, said: str | None) -> None:
        """Takes in what bodes ill."""
        self.length += 1
        self.last = said


def is_ominous(result: Result) -> bool:
    """Whether a result says that the next recipients would fare no better: anything but a word on this recipient."""
    refused = result.verdict is Verdict.REJECTED and result.reply is not None
    return result.verdict is Verdict.UNCERTAIN or (refused and result.phase is not Phase.RCPT)


def outcome_of(delivery: Delivery, result: Result, *, now: datetime) -> Outcome:
    """What a result does to its delivery. `UNSENT`, when it comes here at all, waits like `DEFERRED`."""
    if result.verdict in (Verdict.DEFERRED, Verdict.UNSENT) or _refuses_sender(result):
        return _deferred(delivery, result, now=now)
    return _outcome(delivery, result, state=_STATES[result.verdict])


def _refuses_sender(result: Result) -> bool:
    """A refusal of MAIL is about who sends (RFC 5321 §4.2.3: 530, 550 policy …): it is no word on the recipient."""
    return result.verdict is Verdict.REJECTED and result.phase is Phase.MAIL and result.reply is not None


def cut_off(recipient_key: bytes, *, ordinal: int) -> Outcome:
    """A message that was on the wire when its sender had to let go of it."""
    return Outcome(
        recipient_key=recipient_key,
        ordinal=ordinal,
        state=DeliveryState.UNCERTAIN,
        fact=False,
        phase="dot",
        detail="its sender was interrupted while the message may have been handed over",
    )


def vanished(recipient_key: bytes, *, ordinal: int, owner: str | None) -> Outcome:
    """A message that may have been on the wire when its sender died."""
    return Outcome(
        recipient_key=recipient_key,
        ordinal=ordinal,
        state=DeliveryState.UNCERTAIN,
        fact=False,
        phase="dot",
        detail=f"its sender ({owner}) vanished while the message may have been handed over",
    )


def refused_here(delivery: Delivery, reason: str) -> Outcome:
    """A message that cannot be made for this recipient."""
    return Outcome(
        recipient_key=delivery.recipient_key,
        ordinal=delivery.ordinal,
        state=DeliveryState.REJECTED,
        fact=False,
        phase="render",
        detail=reason[:500],
    )


def _deferred(delivery: Delivery, result: Result, *, now: datetime) -> Outcome:
    failures = delivery.failures + 1
    if failures > MOST_DEFERRALS:
        return _outcome(
            delivery, result, state=DeliveryState.REJECTED, prefix=f"given up after {failures} tries: "
        )
    due_at = now + DEFERRAL.wait(failures=failures, spread=_spread(delivery))
    return _outcome(delivery, result, state=DeliveryState.DEFERRED, due_at=due_at)


def _spread(delivery: Delivery) -> float:
    """Scatters the tries of many recipients; from the record, so that no randomness is needed."""
    return delivery.recipient_key[0] / 256


def _outcome(
    delivery: Delivery,
    result: Result,
    *,
    state: DeliveryState,
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
        phase=result.phase.value,
        code=reply.code if reply else None,
        enhanced=reply.enhanced if reply else None,
        detail=prefix + (reply.text if reply else result.detail),
        due_at=due_at,
    )
