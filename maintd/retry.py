"""When to try again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Waits that grow by a factor up to a longest one.

    Attributes:
        first: The wait after the first failure.
        factor: What each further wait is multiplied by.
        longest: No wait is longer than this.
    """

    first: timedelta
    factor: float = 2.0
    longest: timedelta

    def wait(self, *, failures: int, spread: float = 0.0) -> timedelta:
        """The wait after so many failures (1, 2, …).

        Args:
            failures: How often it failed so far; at least 1.
            spread: From 0.0 up to 1.0, drawn by the caller: adds up to a quarter, to scatter many.
        """
        exponent = min(failures - 1, 64)
        seconds = min(self.first.total_seconds() * self.factor**exponent, self.longest.total_seconds())
        return timedelta(seconds=seconds * (1 + spread / 4))
