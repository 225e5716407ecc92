"""Setting a lane aside that a relay throttles: for longer each time, until it is let through again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from maintd.retry import Backoff

_WAITS = Backoff(first=timedelta(seconds=15), factor=2, longest=timedelta(minutes=15))
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Aside:
    """For how long nothing is sent of a lane, by the clocks of the hosts, of which none has to be exact.

    Attributes:
        since: When it was set aside last.
        until: When it is tried again.
        times: How often it was set aside, each time soon after the time before.
    """

    since: datetime = _NEVER
    until: datetime = _NEVER
    times: int = 0

    @classmethod
    def read(cls, stored: Mapping[str, Any] | None) -> Self:
        """As `stored` wrote it; None: it was never set aside."""
        if stored is None:
            return cls()
        since, until = (datetime.fromisoformat(stored[name]) for name in ("since", "until"))
        return cls(since=since, until=until, times=stored["times"])

    def stored(self) -> dict[str, Any]:
        """In a form that JSON keeps."""
        return {"since": self.since.isoformat(), "until": self.until.isoformat(), "times": self.times}

    def waits(self, now: datetime) -> timedelta:
        """For how long it still is set aside. A clock that went back ends it: the relay says so if it is too early."""
        return max(self.until - now, timedelta()) if now >= self.since else timedelta()

    def again(self, now: datetime, *, asked: timedelta) -> Aside:
        """Set aside because of a throttle; those of one window, or of several processes at once, are one.

        Args:
            now: The present instant.
            asked: How long the relay asked to wait at least.
        """
        if self.waits(now):
            return self
        soon = self.since <= now < self.until + (self.until - self.since)
        times = self.times + 1 if soon else 1
        return Aside(since=now, until=now + max(_WAITS.wait(failures=times), asked), times=times)
