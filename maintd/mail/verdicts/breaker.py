"""What stops a campaign before it has used up its audience: the latest outcomes, counted."""

from __future__ import annotations

import math
from collections import Counter, deque
from enum import StrEnum

from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import DeliveryState
from maintd.mail.verdicts.failures import About, Failure, about

#: So many outcomes back a breaker remembers.
SPAN = 200
#: So many of them may have been refused for what the sender does, and not for the recipient's sake: 5 %.
MOST_OURS = SPAN // 20
#: So many doubts for each connection: all connections lost at their dots, twice within a span.
DOUBTS_A_CONNECTION = 2


class Sign(StrEnum):
    """What an outcome bodes for the next recipient."""

    FINE = "fine"  #: nothing: taken, or put off
    DOUBT = "doubt"  #: nobody knows whether it was taken
    SENDER = "sender"  #: refused for good before there was a recipient
    OURS = "ours"  #: refused for good for what it is, or it could not be made
    THEIRS = "theirs"  #: refused for good, for the recipient's sake


def sign_of(outcome: Outcome) -> Sign | None:
    """What an outcome bodes; None if it is no answer at all."""
    if outcome.state is DeliveryState.UNCERTAIN:
        return Sign.DOUBT
    if outcome.failure == Failure.CONNECT:
        return None
    if outcome.failure is None or not _for_good(outcome):
        return Sign.FINE
    if outcome.code is None and outcome.failure != Failure.TEMPLATE:
        return Sign.THEIRS  # this relay cannot be given it
    return _SIGNS[about(outcome.failure, outcome.phase)]


_SIGNS = {About.SENDER: Sign.SENDER, About.MESSAGE: Sign.OURS, About.RECIPIENT: Sign.THEIRS}


def _for_good(outcome: Outcome) -> bool:
    if outcome.code is None:
        return outcome.state is DeliveryState.REJECTED
    return outcome.code >= 500


class Breaker:
    """Watches over one campaign, over all batches that one process sends of it, from when it (last) began to send.

    It trips, for good,

    - at the first refusal of the sender: the login, or who sends, before a recipient was named;
    - at more than two doubts for each connection among the last 200 outcomes;
    - at more than 10 among them that were refused for what is sent, or that could not be made;
    - at more than a share of 200 that were refused for good, for whatever reason.
    """

    def __init__(self, *, connections: int, refused: float) -> None:
        """Begins with nothing seen.

        Args:
            connections: As many doubts come of one break.
            refused: The share of refusals for good that is borne; 1.0 bears them all.
        """
        self._most_doubts = DOUBTS_A_CONNECTION * connections
        # 0.29 of 200 is 57.99…: the nearest below is not meant.
        self._most_refused = math.floor(refused * SPAN + 1e-9)
        self._signs: deque[Sign] = deque()
        self._counts: Counter[Sign] = Counter()
        self._last_bad = ""
        #: Why it tripped, with the answer that did it; None: all is well.
        self.tripped: str | None = None

    def take(self, outcome: Outcome) -> None:
        """Takes in an outcome."""
        sign = sign_of(outcome)
        if sign is None:
            return
        self._signs.append(sign)
        self._counts[sign] += 1
        if len(self._signs) > SPAN:
            self._counts[self._signs.popleft()] -= 1
        if sign is not Sign.FINE:
            self._last_bad = _said(outcome)
        if self.tripped is None and self._counts[Sign.FINE] < len(self._signs):
            self.tripped = self._why()

    def _why(self) -> str | None:
        counts, seen = self._counts, len(self._signs)
        refused = counts[Sign.OURS] + counts[Sign.THEIRS]
        if counts[Sign.SENDER]:
            what = "the relay refuses the sender"
            cure = (
                "correct the login of MAINTD_SMTP_URL, or have the relay allow this sender "
                "(another one takes a new edition)"
            )
        elif counts[Sign.DOUBT] > self._most_doubts:
            what, cure = f"{counts[Sign.DOUBT]} of the last {seen} messages are uncertain", "find out why"
        elif counts[Sign.OURS] > MOST_OURS:
            what = f"{counts[Sign.OURS]} of the last {seen} messages were refused or not made, whoever they were for"
            cure = "have them taken (another template takes a new edition)"
        elif seen == SPAN and refused > self._most_refused:
            what = f"{refused} of the last {SPAN} messages were refused for good, more than stop_at.refused allows"
            cure = "see whether the audience is stale"
        else:
            return None
        return f"{what}; the last: {self._last_bad}; {cure}"


def _said(outcome: Outcome) -> str:
    code = None if outcome.code is None else str(outcome.code)
    return " ".join(filter(None, (code, outcome.enhanced, outcome.detail)))
