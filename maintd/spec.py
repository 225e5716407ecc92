"""The strict base of everything read from a job file, and the value types that such files share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

from maintd.units import Rate, format_duration, parse_duration, parse_rate


class Spec(BaseModel):
    """A part of a job file: frozen, and no key is accepted that is not declared.

    `model_dump(mode="json")` writes it back in the form that people write, so a stored spec reads like its file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError('a duration is a text with a unit, such as "15 min"')
    return parse_duration(value)


def _exact_duration(value: timedelta) -> str:
    total_ms = round(value.total_seconds() * 1000)
    text = format_duration(value)
    return text if parse_duration(text) == value else f"{total_ms} ms"


def _rate(value: Any) -> Rate:
    if isinstance(value, Rate):
        return value
    if not isinstance(value, str):
        raise ValueError('a rate is a text such as "14/s"')
    return parse_rate(value)


def _instant(value: Any) -> datetime:
    try:
        instant = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        in_utc = instant.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError('not an instant; write it like "2026-01-01T06:00:00Z"') from None
    if instant.tzinfo is None:
        raise ValueError(
            'an instant needs its offset from UTC, such as the Z at the end of "2026-01-01T06:00:00Z"'
        )
    return in_utc


def _written(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(_exact_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["90 s", "15 min", "36 h", "30 days"]}),
]
"""A length of time, written with its unit."""

RateLimit = Annotated[
    Rate,
    BeforeValidator(_rate),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["14/s", "600/min", "10000/h", "50000/day"]}),
]
"""At most so many in any stretch of time of that length."""

ZonedInstant = Annotated[
    datetime,
    BeforeValidator(_instant),
    PlainSerializer(_written, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-01T06:00:00Z"]}),
]
"""A point in time, written in ISO 8601 with its offset from UTC."""
