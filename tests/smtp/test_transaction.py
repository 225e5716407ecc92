from __future__ import annotations

import pytest

from maintd.smtp.session import Unsendable
from maintd.smtp.transaction import transaction
from tests.smtp.relaying import message

ALL = frozenset({"size", "8bitmime", "smtputf8"})


def test_what_the_relay_offers_is_used() -> None:
    steps = transaction(message("j@exämple.com", content="ü\r\n".encode(), smtputf8=True), extensions=ALL)
    assert steps.mail == b"MAIL FROM:<a@example.com> SIZE=4 BODY=8BITMIME SMTPUTF8"
    assert steps.rcpt == "RCPT TO:<j@exämple.com>".encode()


def test_nothing_is_asked_of_a_relay_that_offers_nothing() -> None:
    assert transaction(message(sender=""), extensions=()).mail == b"MAIL FROM:<>"


def test_a_common_ending_makes_no_other_message() -> None:
    whole = transaction(message(content=b"a\r\n.\r\n"), extensions=ALL)
    parted = transaction(message(content=b"a\r\n", ending=b".\r\n"), extensions=ALL)
    assert (parted.mail, parted.body) == (whole.mail, whole.body)


def test_a_common_ending_of_eight_bits_is_announced() -> None:
    assert b"BODY=8BITMIME" in transaction(message(ending="ü\r\n".encode()), extensions=ALL).mail


@pytest.mark.parametrize(
    "bad", ["\r\nRCPT TO:<x@y.z>", "\n", "\r", "\0", ">", "<", " ", "\t", "\x7f", "\x85", "\udcff"]
)
def test_no_address_can_smuggle_a_command(bad: str) -> None:
    with pytest.raises(Unsendable, match="address"):
        transaction(message(f"a{bad}@example.com", smtputf8=True), extensions=ALL)
    with pytest.raises(Unsendable, match="address"):
        transaction(message(sender=f"a{bad}@example.com", smtputf8=True), extensions=ALL)


def test_a_message_needs_a_recipient() -> None:
    with pytest.raises(Unsendable, match="empty"):
        transaction(message(""), extensions=ALL)


def test_a_foreign_address_needs_a_message_marked_for_it() -> None:
    with pytest.raises(Unsendable, match="SMTPUTF8"):
        transaction(message("j@exämple.com"), extensions=ALL)
