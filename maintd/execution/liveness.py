"""Who still lives: judged by a counter that stopped, on the judge's own clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """A claim and its counter, as seen now."""

    key: int
    token: str
    counter: int


class Watch:
    """Remembers when each counter was last seen to move.

    No wall clock is compared with another machine's: a claim is judged dead when this process has watched its counter
    stand still for a whole lease. A judge that has just begun knows nothing and waits a lease.
    """

    def __init__(self, *, lease: timedelta) -> None:
        self._lease_s = lease.total_seconds()
        self._seen: dict[Pulse, float] = {}

    def stopped(self, pulses: Iterable[Pulse], *, monotonic_s: float) -> set[int]:
        """Looks once at all claims of a kind.

        Args:
            pulses: Every claim there is; the ones not named are forgotten.
            monotonic_s: The judge's clock.

        Returns:
            The keys of those whose counter has stood still for a lease.
        """
        self._seen = {pulse: self._seen.get(pulse, monotonic_s) for pulse in pulses}
        return {pulse.key for pulse, since_s in self._seen.items() if monotonic_s - since_s >= self._lease_s}
