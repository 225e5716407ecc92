"""What may go out now. All limits are counted in the ledger, in the transaction that marks the window they let out.

So a token is taken if and only if its window was marked, by whichever process of whichever host, and what a dead
process had taken and not used is never used by another.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from sqlalchemy.engine import Connection

from maintd.clock import Clock
from maintd.ledger import allowances, batches
from maintd.ledger.batches import Ready
from maintd.ledger.deliveries import Outcome
from maintd.ledger.lines import OTHERS
from maintd.mail.sending.asides import Aside
from maintd.mail.sending.limits import Limit, Used, grant, urgent_share, waits
from maintd.mail.verdicts.failures import Failure
from maintd.mail.verdicts.schedules import asked_wait
from maintd.units import Rate, parse_rate

#: Whoever waits no longer than this for a limit stays where it is, ready to send. Others are woken when it is time.
SOON = timedelta(seconds=5)

_MICROSECOND = timedelta(microseconds=1)
#: How long a window's tokens are good for at least. A second's limit is used to four fifths with it.
_SHORTEST_S = 0.2
#: As long as a relay may take to answer MAIL, RCPT and DATA (RFC 5321 §4.5.3.2): a message gets out of the slowest.
_LONGEST_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits that are set for this installation.

    Attributes:
        relay: Of all mail together.
        lanes: Of the lanes that have one, by their names.
    """

    relay: Rate | None = None
    lanes: Mapping[str, Rate] = field(default_factory=dict)

    def __str__(self) -> str:
        given = {"all mail": self.relay} | {f"lane {name}": rate for name, rate in sorted(self.lanes.items())}
        return ", ".join(f"{name}: {rate}" for name, rate in given.items() if rate is not None)

    def of(self, line: Ready) -> list[Limit]:
        """Those that hold for a line. Its campaign's own has no share for urgent mail: all of it is alike."""
        shared = {"all mail": self.relay, f"lane {line.name}": self.lanes.get(line.name)}
        limits = [
            Limit(name=name, rate=rate, reserve=0 if line.urgent else urgent_share(rate))
            for name, rate in shared.items()
            if rate is not None
        ]
        if line.limit is not None:
            name, row = f"campaign {line.campaign}", allowances.of_campaign(line.campaign_id)
            limits.append(Limit(name=name, rate=parse_rate(line.limit), counted_as=row))
        return limits


@dataclass(kw_only=True)
class Validity:
    """How long a sender's tokens have to be good for until their messages are written; it learns that.

    Attributes:
        seconds: Asked for at least.
    """

    seconds: float = _SHORTEST_S

    def too_short(self) -> None:
        """Tokens ran out before their messages were written."""
        self.seconds = min(2 * self.seconds, _LONGEST_S)

    def long_enough(self) -> None:
        """Another window has begun; that the last one was slow need not mean that the next one is."""
        self.seconds = max(0.98 * self.seconds, _SHORTEST_S)


class Allowance:
    """What one held batch may send."""

    def __init__(self, line: Ready, limits: Limits, *, validity: Validity, clock: Clock) -> None:
        self._line = line
        self._limits = limits.of(line)
        self._validity = validity
        self._clock = clock
        #: When the tokens that were taken last run out.
        self._until_s = math.inf

    @property
    def window_s(self) -> float:
        """What a window should take at most, so that its tokens do not run out."""
        return self._validity.seconds if self._limits else math.inf

    def take(self, connection: Connection, *, wanted: int) -> int:
        """Takes tokens for so many messages, or for fewer, and gives up those taken before.

        Returns:
            How many messages may go out while `lasts`.
        """
        if not self._limits or wanted == 0:
            return wanted
        kept = allowances.lock(connection, [limit.row for limit in self._limits])
        # Before the ledger's clock is asked, so that the tokens are never thought to last longer than they do.
        started_s = self._clock.monotonic_s()
        granted = grant(
            self._limits,
            {row: Used.read(used) for row, used in kept.items()},
            wanted=wanted,
            now_us=allowances.now_us(connection, host=self._clock.now()),
            valid_us=int(self._validity.seconds * 1e6),
        )
        allowances.write(connection, {row: used.stored() for row, used in granted.used.items()})
        self._until_s = started_s + granted.within_us / 1e6
        self._validity.long_enough()
        return granted.count

    def lasts(self) -> bool:
        """Whether the tokens that were taken last are good still: asked before every dot."""
        if self._clock.monotonic_s() < self._until_s:
            return True
        if self._until_s > 0:
            self._validity.too_short()
            self._until_s = 0.0  # the rest of the window says nothing new
        return False

    def is_throttled(self, outcomes: Iterable[Outcome]) -> bool:
        """Whether the relay wanted less of this lane. What it says of the others' is said of all mail, or of nobody."""
        return self._line.lane != OTHERS and any(_throttles(outcomes))

    def heed(self, connection: Connection, outcomes: Collection[Outcome]) -> None:
        """Sets the lane aside, for everybody, if the relay throttled it."""
        if not self.is_throttled(outcomes):
            return
        row, asked = _aside_row(self._line), max(asked_wait(one.detail or "") for one in _throttles(outcomes))
        aside = Aside.read(allowances.lock(connection, [row])[row]).again(self._clock.now(), asked=asked)
        allowances.write(connection, {row: aside.stored()})


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Why nothing of a line goes out now.

    Attributes:
        why: In a few words: "lane gmail: 20/s".
        opens_in: When something may.
    """

    why: str
    opens_in: timedelta


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The lines of which something could be sent, as they stand to their limits.

    Attributes:
        open: Those of which something may go out now, the oldest first.
        waiting: Why each of the others waits.
    """

    open: Sequence[Ready]
    waiting: Mapping[Ready, Wait]

    @property
    def opens_in(self) -> timedelta | None:
        """When the first of those that wait may go on; None: none waits."""
        return min((wait.opens_in for wait in self.waiting.values()), default=None)

    def waits_of(self, campaign_id: int) -> list[Wait]:
        """Why lines of a campaign wait."""
        return [wait for line, wait in self.waiting.items() if line.campaign_id == campaign_id]

    @property
    def soon(self) -> bool:
        """Whether something may go out now or in a moment."""
        return bool(self.open) or (self.opens_in is not None and self.opens_in <= SOON)


def look(connection: Connection, limits: Limits, *, urgent: bool, now: datetime) -> Outlook:
    """What could be sent, and what of it may. Nothing is locked: only a mark says for certain.

    Args:
        connection: Of the ledger.
        limits: Those that are set.
        urgent: Of which campaigns.
        now: The time on the clock of this host.
    """
    lines = batches.ready(connection, urgent=urgent)
    if not lines:
        return Outlook(open=[], waiting={})
    holding = {line: limits.of(line) for line in lines}
    rows = {limit.row for each in holding.values() for limit in each} | {_aside_row(line) for line in lines}
    kept = allowances.read(connection, rows)
    now_us = allowances.now_us(connection, host=now)
    waiting = {
        line: wait
        for line in lines
        # What has expired needs no allowance: it is not sent.
        if not line.has_expired(now) and (wait := _wait(line, holding[line], kept, now, now_us))
    }
    return Outlook(open=[line for line in lines if line not in waiting], waiting=waiting)


def _wait(
    line: Ready, limits: Collection[Limit], kept: Mapping[str, Any], now: datetime, now_us: int
) -> Wait | None:
    """The longest of the waits that keep a line back."""
    used = {limit.row: Used.read(kept.get(limit.row)) for limit in limits}
    opens_us = waits(limits, used, now_us=now_us)
    reasons = {str(limit): opens_us.get(limit.row, 0) * _MICROSECOND for limit in limits}
    reasons[f"lane {line.name}: the relay wanted less of it"] = Aside.read(kept.get(_aside_row(line))).waits(
        now
    )
    why, longest = max(reasons.items(), key=itemgetter(1))
    return Wait(why=why, opens_in=longest) if longest else None


def _throttles(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    return (outcome for outcome in outcomes if outcome.failure == Failure.THROTTLE)


def _aside_row(line: Ready) -> str:
    return f"lane {line.name} set aside"
