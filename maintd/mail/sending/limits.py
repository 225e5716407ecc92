"""Limits: at most N messages in any stretch of time of length W, whoever sends them. Nothing but arithmetic.

Time is divided into slots of W/20. A token lets one message go out from when it is taken until a slot ends; which one,
is written down with it. So of all tokens, those that can have let a message out within the W before an instant in slot
i run out at the end of slot i - 20 or later. No token is given that would make these more than N.

Why no stretch of length W ever sees N+1 messages: take any stretch, and of the tokens of the messages in it the one
that was taken last, at an instant t. Every other message in the stretch went out after t - W, so its token runs out at
the end of slot i - 20 or later, i being the slot of t. All of these were taken before, so all of them were counted
when the last one was given, and with it they were N at most.

A clock that went back is noticed by the slot in which a limit was counted last: then everything that was taken counts
as if it had been taken as much later. So it is forgotten too late, never too early. A clock that leaps forward cannot
be told from time that passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

from maintd.units import Rate

SLOTS = 20
"""Slots in the stretch of time of a limit. One second has some of 50 ms; finer ones would hardly let more through."""

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit as it holds for one kind of mail.

    Attributes:
        name: What people call it: "lane gmail".
        rate: So many in such a stretch of time.
        reserve: How many of these are not for this kind of mail.
        counted_as: What the ledger calls it, if that is not its name.
    """

    name: str
    rate: Rate
    reserve: int = 0
    counted_as: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.rate}"

    @property
    def row(self) -> str:
        """Where the ledger counts it: limits of other stretches of time have other slots."""
        return f"{self.counted_as or self.name} per {self.rate.unit}"

    @property
    def most(self) -> int:
        """How many messages of this kind may go out in the stretch, if no other do."""
        return self.rate.count - self.reserve

    @property
    def slot_us(self) -> int:
        """The length of a slot, in microseconds."""
        return self.rate.per // SLOTS // _MICROSECOND


def urgent_share(rate: Rate) -> int:
    """What bulk mail leaves of a limit, so that urgent mail never waits behind it: a tenth, rounded down."""
    return rate.count // 10


@dataclass(frozen=True, kw_only=True)
class Used:
    """What was taken of a limit of late.

    Attributes:
        seen: The slot in which it was counted last.
        tokens: How many of them run out at the end of each slot.
    """

    seen: int = 0
    tokens: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, stored: Mapping[str, Any] | None) -> Self:
        """As `stored` wrote it; None: nothing was taken yet."""
        if stored is None:
            return cls()
        return cls(seen=stored["seen"], tokens=dict(stored["tokens"]))

    def stored(self) -> dict[str, Any]:
        """In a form that JSON keeps."""
        return {"seen": self.seen, "tokens": sorted(self.tokens.items())}

    def in_slot(self, slot: int) -> Used:
        """What of it still counts in a slot; see the top of the file."""
        back = self.seen - slot
        # Of two instants as far from each other, one may be early in its slot and one late.
        moved = back - 1 if back > 0 else 0
        tokens = {last - moved: count for last, count in self.tokens.items() if last - moved >= slot - SLOTS}
        return Used(seen=slot, tokens=tokens)

    def free(self, limit: Limit) -> int:
        """How many tokens there are for a kind of mail."""
        return max(0, limit.most - sum(self.tokens.values()))

    def take(self, count: int, *, last: int) -> Used:
        """With so many more tokens, which run out at the end of that slot."""
        return Used(seen=self.seen, tokens={**self.tokens, last: self.tokens.get(last, 0) + count})

    def opens(self, limit: Limit) -> int:
        """The first slot in which there is a token for a kind of mail."""
        counted, opens = sum(self.tokens.values()), self.seen
        for last, count in sorted(self.tokens.items()):
            if counted < limit.most:
                break
            counted, opens = counted - count, last + SLOTS + 1
        return opens


@dataclass(frozen=True, kw_only=True)
class Grant:
    """How many messages may go out, by all limits that hold for them.

    Attributes:
        count: At most as many as were wanted.
        within_us: How long from now they may, in microseconds.
        used: What each limit has then, by its row: to be kept, even if nothing was granted.
    """

    count: int
    within_us: int
    used: Mapping[str, Used]


def grant(
    limits: Sequence[Limit], used: Mapping[str, Used], *, wanted: int, now_us: int, valid_us: int
) -> Grant:
    """Takes tokens of every limit, as many as the tightest of them has.

    Args:
        limits: Those that hold; at least one.
        used: What was taken of each, by its row.
        wanted: How many messages want to go out.
        now_us: The time, in microseconds, of the one clock by which these limits are counted.
        valid_us: How long the tokens should be good for at least. The longer, the fewer there are in all.
    """
    now = {limit.row: used[limit.row].in_slot(now_us // limit.slot_us) for limit in limits}
    count = min(wanted, *(now[limit.row].free(limit) for limit in limits))
    if count == 0:
        return Grant(count=0, within_us=0, used=now)
    last = {limit.row: (now_us + valid_us) // limit.slot_us for limit in limits}
    return Grant(
        count=count,
        within_us=min((last[limit.row] + 1) * limit.slot_us for limit in limits) - now_us,
        used={limit.row: now[limit.row].take(count, last=last[limit.row]) for limit in limits},
    )


def waits(limits: Iterable[Limit], used: Mapping[str, Used], *, now_us: int) -> dict[str, int]:
    """How long it is until there is a token, in microseconds, by the row of each limit that has none now."""
    found = {}
    for limit in limits:
        if used[limit.row].seen > now_us // limit.slot_us:
            continue  # the clock went back: only who takes may say what still counts
        now = used[limit.row].in_slot(now_us // limit.slot_us)
        if not now.free(limit):
            found[limit.row] = now.opens(limit) * limit.slot_us - now_us
    return found
