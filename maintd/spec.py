"""The strict base of everything read from a job file, and the value types that such files share."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

from maintd.units import format_duration, parse_duration, parse_size


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


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError('a size is a text with a unit, such as "512 MiB"')
    return parse_size(value)


def _exact_duration(value: timedelta) -> str:
    total_ms = round(value.total_seconds() * 1000)
    text = format_duration(value)
    return text if parse_duration(text) == value else f"{total_ms} ms"


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(_exact_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["90 s", "15 min", "36 h", "30 days"]}),
]
"""A length of time, written with its unit."""

Size = Annotated[
    int, BeforeValidator(_size), WithJsonSchema({"type": "string", "examples": ["512 MiB", "5 GB"]})
]
"""A number of bytes, written with its unit."""
