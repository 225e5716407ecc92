"""When a message that was not taken is tried again, and when it is given up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from maintd.mail.verdicts.failures import Failure
from maintd.retry import Backoff


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a message is tried again after failures of one type.

    Attributes:
        waits: After the first failure, the second, …
        most: So many failures are followed by another try. None: they say nothing about the message, and are not
            counted among its failures.
        longest: It is not put off for longer than this; None: for as long as it takes.
    """

    waits: Backoff
    most: int | None = None
    longest: timedelta | None = None

    @property
    def counted(self) -> bool:
        """Whether a failure counts among those of its message."""
        return self.most is not None

    def wait(self, *, failures: int, put_off_for: timedelta, spread: float) -> timedelta | None:
        """How long to wait now; None: no more, the message is given up.

        Args:
            failures: How many of the message count so far, with this one if it does.
            put_off_for: Since it was first put off.
            spread: From 0.0 up to 1.0: adds up to a quarter, to scatter many.
        """
        if self.most is not None and failures > self.most:
            return None
        if self.longest is not None and put_off_for > self.longest:
            return None
        return self.waits.wait(failures=max(1, failures), spread=spread)


_MINUTE, _HOUR = timedelta(minutes=1), timedelta(hours=1)
_EVERY_5_MIN = Backoff(first=5 * _MINUTE, factor=1, longest=5 * _MINUTE)
#: What was refused for good is not to be repeated as it is (RFC 5321 §4.2.1). It is, a few times and far apart: what a
#: relay has against a message may be mended, and no recipient is lost for it meanwhile.
_SECOND_CHANCES = Schedule(waits=Backoff(first=_HOUR, factor=3, longest=12 * _HOUR), most=3)
#: RFC 5321 §4.5.4.1: "the give-up time generally needs to be at least 4-5 days".
LONGEST_UNCOUNTED = timedelta(days=5)

#: RFC 5321 §4.5.4.1 asks for 30 minutes between tries in general and for one or two quicker ones. What is counted is
#: given up sooner than a letter would be: most mail of a campaign is stale after two or three days.
SCHEDULES: Mapping[Failure, Schedule] = {
    Failure.CONNECT: Schedule(waits=Backoff(first=_MINUTE, factor=4, longest=_HOUR), most=10),
    # RFC 6647 §5: whoever waits between a minute and a day, by the taste of the list, is let in. Mostly it is minutes.
    Failure.GREYLIST: Schedule(waits=Backoff(first=5 * _MINUTE, factor=2, longest=_HOUR), most=12),
    Failure.THROTTLE: Schedule(waits=_EVERY_5_MIN, longest=LONGEST_UNCOUNTED),
    Failure.POLICY: _SECOND_CHANCES,
    Failure.MAILBOX: Schedule(waits=Backoff(first=_HOUR, factor=2, longest=6 * _HOUR), most=12),
    Failure.AUTH: Schedule(waits=_EVERY_5_MIN, longest=LONGEST_UNCOUNTED),
    # The template and the fields of an edition are frozen: nothing can mend it.
    Failure.TEMPLATE: Schedule(waits=_EVERY_5_MIN, most=0),
    Failure.TEMPORARY: Schedule(waits=Backoff(first=5 * _MINUTE, factor=3, longest=4 * _HOUR), most=10),
    Failure.PERMANENT: _SECOND_CHANCES,
}
#: Of a message that was not taken because the sender was refused for good: its campaign is paused then, so it is tried
#: again once for each time that a person resumes it.
WHEN_RESUMED = Schedule(waits=_EVERY_5_MIN)

#: No relay makes a message wait longer by what it says.
LONGEST_ASKED = timedelta(hours=4)
_ASKED = re.compile(r"\b(\d{1,5}) ?(s|secs?|seconds?|mins?|minutes?|hours?)\b", re.IGNORECASE)
_UNITS = {"s": timedelta(seconds=1), "m": _MINUTE, "h": _HOUR}


def asked_wait(text: str) -> timedelta:
    """How long a reply asks to wait ("try again in 300 seconds"), at most `LONGEST_ASKED`; zero if it does not."""
    asked = (int(number) * _UNITS[unit[0].lower()] for number, unit in _ASKED.findall(text))
    return min(max(asked, default=timedelta()), LONGEST_ASKED)
