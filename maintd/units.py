"""Durations, rates and sizes as people write them: "90 s", "1 h 30 min"; "14/s", "50000/day"; "4.2 MiB"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

_DURATION_UNITS = {
    "ms": 0.001,
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "min": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": 3600.0, "hour": 3600.0, "hours": 3600.0,
    "d": 86400.0, "day": 86400.0, "days": 86400.0,
    "week": 604800.0, "weeks": 604800.0,
}  # fmt: skip
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)")
_LONGEST = timedelta(days=36_500)

_RATE = re.compile(r"(\d{1,9})\s*/\s*(s|min|h|day)")


def _parts(text: str) -> list[tuple[float, str]]:
    parts, position = [], 0
    while match := _PART.match(text, position):
        parts.append((float(match[1]), match[2]))
        position = match.end()
    if not parts or text[position:].strip():
        raise ValueError(f'"{text}" is not a duration; write it like "90 s", "15 min", "36 h" or "30 days"')
    return parts


def parse_duration(text: str) -> timedelta:
    """Reads "90 s", "15 min", "36 h", "30 days", "1 h 30 min", to the millisecond.

    Raises:
        ValueError: Not a number with a unit, an unknown unit, less than a millisecond, or more than a hundred years.
            Months and years are refused: they have no fixed length.
    """
    total_s = 0.0
    for number, unit in _parts(text):
        if unit not in _DURATION_UNITS:
            raise ValueError(f'unknown unit "{unit}" in "{text}"; use ms, s, min, h, days or weeks')
        total_s += number * _DURATION_UNITS[unit]
    if not 0.001 <= total_s <= _LONGEST.total_seconds():
        raise ValueError(f'"{text}" is not between 1 ms and 100 years')
    return timedelta(milliseconds=round(total_s * 1000))


def format_duration(duration: timedelta) -> str:
    """Writes a duration in its two largest units: "2 days 3 h", "4 min 10 s", "0.25 s"."""
    total_s = abs(duration.total_seconds())
    if total_s < 10:
        return f"{total_s:.3g} s"
    words = []
    rest = round(total_s)
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count:
            words.append(f"{count} {'day' if unit == 'days' and count == 1 else unit}")
    return " ".join(words[:2])


@dataclass(frozen=True, kw_only=True)
class Rate:
    """At most so many in any stretch of time of that length; `str()` is what `parse_rate` reads.

    Attributes:
        count: At least 1.
        per: One second, minute, hour or day.
    """

    count: int
    per: timedelta

    @property
    def unit(self) -> str:
        """The stretch of time in its shortest form: "s", "min", "h" or "day"."""
        return _RATE_UNITS[self.per]

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"


_RATE_UNITS = {
    timedelta(seconds=1): "s",
    timedelta(minutes=1): "min",
    timedelta(hours=1): "h",
    timedelta(days=1): "day",
}
_RATE_LENGTHS = {unit: per for per, unit in _RATE_UNITS.items()}


def parse_rate(text: str) -> Rate:
    """Reads "14/s", "600/min", "10000/h" or "50000/day".

    Raises:
        ValueError: Not of that form, or a rate of 0.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'"{text}" is not a rate; write it like "14/s", "600/min", "10000/h" or "50000/day"')
    count = int(match[1])
    if count == 0:
        raise ValueError(
            f'"{text}" would let nothing through; leave it out for no limit, or pause what should wait'
        )
    return Rate(count=count, per=_RATE_LENGTHS[match[2]])


def format_size(octets: int) -> str:
    """Writes a number of octets in its largest unit: "812 B", "12.3 KiB", "4.2 MiB"."""
    if octets < 1024:
        return f"{octets} B"
    if octets < 1024**2:
        return f"{octets / 1024:.1f} KiB"
    return f"{octets / 1024**2:,.1f} MiB"
