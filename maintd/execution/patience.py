"""Not hammering at a service that is away."""

from __future__ import annotations

from datetime import timedelta

from maintd.clock import Clock
from maintd.retry import Backoff

_WAITS = Backoff(first=timedelta(seconds=1), factor=2.0, longest=timedelta(seconds=60))


class Patience:
    """Remembers that something failed and when to try it again: each wait is longer, until it works."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._until_s = 0.0

    def waits(self) -> bool:
        """Whether it is too early for the next try."""
        return self._clock.monotonic_s() < self._until_s

    def failed(self) -> timedelta:
        """It failed (again); how long to wait now."""
        self._failures += 1
        wait = _WAITS.wait(failures=self._failures)
        self._until_s = self._clock.monotonic_s() + wait.total_seconds()
        return wait

    def worked(self) -> None:
        """It works: the next failure is the first."""
        self._failures, self._until_s = 0, 0.0
