"""How long a line goes on while others wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta

from maintd.clock import Clock
from maintd.ledger.batches import Ready
from maintd.mail.sending.allowance import Outlook


class Turn:
    """One line's turn. Looked at between two windows, so that the size of a batch is no measure of fairness."""

    def __init__(
        self,
        line: Ready,
        *,
        look: Callable[..., Outlook],
        clock: Clock,
        length: timedelta,
        until_s: float,
        urgent_first: bool,
    ) -> None:
        """Begins a turn.

        Args:
            line: Whose turn it is.
            look: Tells what could be sent, of campaigns of one urgency.
            clock: Measures the turn.
            length: How long it lasts at least, when nobody urgent waits.
            until_s: When it ends although nobody waits, on the monotonic clock.
            urgent_first: Urgent campaigns are sent here too.
        """
        self._line = line
        self._look = look
        self._clock = clock
        self._others_from_s = clock.monotonic_s() + length.total_seconds()
        self._until_s = until_s
        self._yields = urgent_first and not line.urgent

    async def over(self) -> bool:
        """Whether somebody else comes next: whoever is urgent at once, anybody once this has lasted long enough."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._until_s:
            return True
        before_it = [True] if self._yields else []
        before_it += [self._line.urgent] if now_s >= self._others_from_s else []
        return bool(before_it) and await asyncio.to_thread(self._one_waits, before_it)

    def _one_waits(self, urgencies: Sequence[bool]) -> bool:
        return any(
            other.place != self._line.place
            for urgent in urgencies
            for other in self._look(urgent=urgent).open
        )
