"""The tally: what arrived is held against who had to get something, and nothing else is believed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.demo.tally import Tally, tally
from maintd.smtp.mailbox import Mailbox

EXPECTED = frozenset({"ada@example.org", "bo@example.org", "cy@xn--bcher-kva.example"})
NOW = datetime(2026, 11, 20, 3, 10, tzinfo=UTC)
PEOPLE = st.integers(0, 6).map(lambda number: f"p{number}@example.org")


def accept(mailbox: Path, *recipients: str, campaign: str = "digest@2026-W47") -> None:
    box = Mailbox(mailbox, store=False)
    for recipient in recipients:
        message = f"X-Maintd-Campaign: {campaign}\r\nMessage-ID: <{recipient}>\r\n\r\nHello\r\n".encode()
        box.append(message, at=NOW, sender="digest@films.example", recipients=[recipient])
    box.close()


def count(mailbox: Path, *, uncertain: Iterable[str] = ()) -> Tally:
    return tally(mailbox, campaign="digest@2026-W47", expected=EXPECTED, uncertain=frozenset(uncertain))


def test_each_person_once_in_whatever_spelling_is_exact(tmp_path: Path) -> None:
    accept(tmp_path, "Ada@Example.ORG", "bo@example.org", "cy@bücher.example")
    counted = count(tmp_path)
    assert counted.exact
    assert (counted.messages, counted.recipients) == (3, 3)


def test_a_second_message_to_the_same_person_is_a_duplicate(tmp_path: Path) -> None:
    accept(tmp_path, *EXPECTED, "BO@example.org", "bo@example.org")
    counted = count(tmp_path)
    assert not counted.exact
    assert (counted.messages, counted.recipients, counted.duplicates) == (5, 3, 2)
    assert counted.first_duplicates == ("bo@example.org",)


def test_somebody_without_a_message_is_missing(tmp_path: Path) -> None:
    accept(tmp_path, "ada@example.org", "cy@bücher.example")
    counted = count(tmp_path)
    assert not counted.exact
    assert (counted.missing, counted.first_missing) == (1, ("bo@example.org",))


def test_somebody_nobody_asked_for_is_unexpected(tmp_path: Path) -> None:
    accept(tmp_path, *EXPECTED, "eve@example.org", "no address")
    counted = count(tmp_path)
    assert not counted.exact
    assert (counted.unexpected, counted.first_unexpected) == (2, ("eve@example.org", "no address"))


def test_who_is_named_uncertain_is_not_missing_but_may_still_be_a_duplicate(tmp_path: Path) -> None:
    accept(tmp_path, "ada@example.org", "cy@bücher.example", "cy@bücher.example")
    counted = count(tmp_path, uncertain=["bo@example.org", "cy@xn--bcher-kva.example"])
    assert (counted.uncertain, counted.missing, counted.duplicates) == (2, 0, 1)


def test_messages_of_other_campaigns_do_not_count(tmp_path: Path) -> None:
    accept(tmp_path, *EXPECTED)
    accept(tmp_path, *EXPECTED, "eve@example.org", campaign="digest@2026-W46")
    assert count(tmp_path).exact
    assert count(tmp_path).messages == 3


def test_everybody_is_missing_from_an_empty_mailbox(tmp_path: Path) -> None:
    counted = count(tmp_path)
    assert (counted.messages, counted.missing) == (0, 3)


def test_only_the_first_of_many_are_listed(tmp_path: Path) -> None:
    accept(tmp_path, *(f"u{number:02}@example.org" for number in range(30)))
    counted = count(tmp_path)
    assert counted.unexpected == 30
    assert counted.first_unexpected == tuple(f"u{number:02}@example.org" for number in range(10))


@given(st.lists(PEOPLE), st.frozensets(PEOPLE), st.frozensets(PEOPLE))
def test_every_message_and_every_person_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory,
    arrived: list[str],
    expected: frozenset[str],
    uncertain: frozenset[str],
) -> None:
    mailbox = tmp_path_factory.mktemp("mailbox")
    accept(mailbox, *arrived)
    counted = tally(mailbox, campaign="digest@2026-W47", expected=expected, uncertain=uncertain)
    assert counted.messages == len(arrived) == counted.recipients + counted.duplicates
    assert counted.missing == len(expected - set(arrived) - uncertain)
    assert counted.recipients - counted.unexpected == len(expected & set(arrived))
