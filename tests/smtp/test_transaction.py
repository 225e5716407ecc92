from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.smtp.lines import Ending
from maintd.smtp.transaction import Unsendable, transaction
from tests.smtp.relaying import message

ALL = frozenset({"size", "8bitmime", "smtputf8"})


def test_what_the_relay_offers_is_used() -> None:
    steps = transaction(message("j@exämple.com", content="ü\r\n".encode(), smtputf8=True), extensions=ALL)
    assert steps.mail == b"MAIL FROM:<a@example.com> SIZE=4 BODY=8BITMIME SMTPUTF8"
    assert steps.rcpt == "RCPT TO:<j@exämple.com>".encode()


def test_nothing_is_asked_of_a_relay_that_offers_nothing() -> None:
    assert transaction(message(sender=""), extensions=()).mail == b"MAIL FROM:<>"


@pytest.mark.parametrize(
    ("content", "body"),
    [
        (b"", b".\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"..a\r\n.\r\n.b\r\n", b"...a\r\n..\r\n..b\r\n.\r\n"),
        (b"a.\r\nb.c\r\n", b"a.\r\nb.c\r\n.\r\n"),
    ],
)
def test_no_line_of_a_message_looks_like_its_end(content: bytes, body: bytes) -> None:
    assert transaction(message(content=content), extensions=ALL).body == body


octets = st.lists(st.sampled_from([b".", b"\r\n", b"a", b".\r\n"]), max_size=12).map(b"".join)
lines = octets.filter(lambda octets: not octets or octets.endswith(b"\r\n"))


@given(content=lines, ending=lines)
def test_a_common_ending_makes_no_other_message(content: bytes, ending: bytes) -> None:
    whole = transaction(message(content=content + ending), extensions=ALL)
    assert transaction(message(content=content, ending=Ending(ending)), extensions=ALL).mail == whole.mail
    assert transaction(message(content=content, ending=Ending(ending)), extensions=ALL).body == whole.body


@pytest.mark.parametrize("ending", [b"a", b"a\n", b"a\r\nb\r", b"\r\r\n"])
def test_a_common_ending_is_whole_lines(ending: bytes) -> None:
    with pytest.raises(Unsendable, match="CRLF"):
        transaction(message(ending=Ending(ending)), extensions=ALL)


def test_a_common_ending_of_eight_bits_is_announced() -> None:
    steps = transaction(message(ending=Ending("ü\r\n".encode())), extensions=ALL)
    assert b"BODY=8BITMIME" in steps.mail


@given(octets)
def test_the_end_of_a_message_is_at_its_end_only(content: bytes) -> None:
    body = transaction(message(content=content), extensions=ALL).body
    assert (b"\r\n" + body).find(b"\r\n.\r\n") == len(body) - 3


@pytest.mark.parametrize("content", [b"a\nb\r\n", b"a\rb\r\n", b"a\n\r", b"a\r\n.\nMAIL", b"\r\r\n", b"a\r"])
def test_a_bare_line_end_is_refused_because_relays_disagree_about_it(content: bytes) -> None:
    with pytest.raises(Unsendable, match="CRLF"):
        transaction(message(content=content), extensions=ALL)


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
