"""Time and identifiers, passed in: nothing else in maintd asks the machine for either."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from.

    Wall time only names instants. Durations and liveness are judged on `monotonic_s`, which also counts the time
    a machine was suspended, so a lease does not outlive a sleep.
    """

    def now(self) -> datetime:
        """The current instant, aware, in UTC."""
        ...

    def monotonic_s(self) -> float:
        """Seconds on a clock that never steps; comparable only within one boot of one machine."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        # CLOCK_BOOTTIME exists on Linux only; elsewhere a suspended machine is noticed a little later.
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def new_token() -> str:
    """A fresh claim token, 128 random bits in hex: never guessed, never reused."""
    return secrets.token_hex(16)
