"""Lanes: domains of recipients with a limit of their own: `MAINTD_LANE_GMAIL=20/s gmail.com googlemail.com`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

from maintd.units import Rate, parse_rate

#: The ledger keeps a lane's name with each campaign.
_LONGEST_NAME = 40


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A limit for the mail to some domains together; `str()` is what it was read from.

    Attributes:
        rate: Of all campaigns, processes and hosts together.
        domains: In lower-case A-labels, as `mail.address` has them.
    """

    rate: Rate
    domains: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.rate} {' '.join(self.domains)}"


def parse_lane(text: str) -> Lane:
    """Reads a rate and the domains behind it, in any case, in Unicode or in A-labels.

    Raises:
        ValueError: There is no rate, no domain, or one that is none.
    """
    rate, *domains = text.split() or [""]
    if not domains:
        raise ValueError('has a rate and no domain; write it like "20/s gmail.com googlemail.com"')
    return Lane(rate=parse_rate(rate), domains=tuple(dict.fromkeys(_canonical(domain) for domain in domains)))


def _canonical(domain: str) -> str:
    try:
        # The library that reads the recipients' addresses; `test_environment` is its word for accepting ".test".
        valid = validate_email(f"a@{domain}", check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        raise ValueError(f'"{domain}" is not a domain; write the part of an address after the @') from None
    return valid.ascii_domain


def _lane(value: Any) -> Lane:
    return value if isinstance(value, Lane) else parse_lane(value)


def _disjoint(lanes: Mapping[str, Lane]) -> Mapping[str, Lane]:
    """Whether every domain is in one lane only, so that it is clear which limit holds."""
    wrong = [*_too_long(lanes), *_named_twice(lanes)]
    if wrong:
        raise ValueError("; ".join(wrong))
    return lanes


def _too_long(lanes: Mapping[str, Lane]) -> Iterator[str]:
    for name in lanes:
        if len(name) > _LONGEST_NAME:
            yield f'the name "{name}" is longer than {_LONGEST_NAME} characters'


def _named_twice(lanes: Mapping[str, Lane]) -> Iterator[str]:
    first: dict[str, str] = {}
    for name, lane in sorted(lanes.items()):
        for domain in lane.domains:
            if domain in first:
                yield f"{domain} is in the lanes {first[domain]} and {name}; leave it in one of them"
            first.setdefault(domain, name)


LaneLimit = Annotated[
    Lane,
    BeforeValidator(_lane),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "rate and domains"}),
]
"""A rate and the domains that it holds for."""

Lanes = Annotated[Mapping[str, LaneLimit], AfterValidator(_disjoint)]
"""Lanes by name; no domain is in two of them."""
