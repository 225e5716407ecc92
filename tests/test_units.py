from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from maintd.spec import Duration, RateLimit
from maintd.units import Rate, format_size, parse_duration, parse_rate

DURATION = TypeAdapter(Duration)
RATE = TypeAdapter(RateLimit)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("1 h 30 min", timedelta(minutes=90)),
        ("2weeks", timedelta(days=14)),
        ("1.5 s", timedelta(milliseconds=1500)),
        ("1.4 ms", timedelta(milliseconds=1)),
    ],
)
def test_a_duration_is_a_number_with_its_unit(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a duration"),
        ("5", "is not a duration"),
        ("5 min or so", "is not a duration"),
        ("1 month", 'unknown unit "month"'),
        ("0 s", "is not between"),
        ("0.9 ms", "is not between"),
        ("5300 weeks", "is not between"),
    ],
)
def test_what_is_no_duration_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_duration(text)


@given(st.decimals("0.001", 36_500 * 86_400, places=5).map(lambda seconds: f"{seconds} s"))
def test_a_stored_duration_comes_back_as_it_was_written(text: str) -> None:
    duration = parse_duration(text)
    assert DURATION.validate_python(DURATION.dump_python(duration, mode="json")) == duration


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("14/s", Rate(count=14, per=timedelta(seconds=1))),
        ("600 / min", Rate(count=600, per=timedelta(minutes=1))),
        ("10000/h", Rate(count=10_000, per=timedelta(hours=1))),
        ("1/day", Rate(count=1, per=timedelta(days=1))),
    ],
)
def test_a_rate_is_a_number_and_a_stretch_of_time(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate
    assert RATE.validate_python(RATE.dump_python(rate, mode="json")) == rate


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("14", "is not a rate"),
        ("14/month", "is not a rate"),
        ("-1/s", "is not a rate"),
        ("1.5/s", "is not a rate"),
        ("0/s", "would let nothing through"),
    ],
)
def test_what_is_no_rate_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_rate(text)


@pytest.mark.parametrize(
    ("octets", "written"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**20, "5.0 MiB"), (2**31, "2,048.0 MiB")],
)
def test_a_size_is_written_in_its_largest_unit(octets: int, written: str) -> None:
    assert format_size(octets) == written
