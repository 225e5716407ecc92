from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.smtp.reply import Reply, sanitised

WIRE = st.binary(max_size=1000).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
ANY = st.text(st.characters(codec=None), max_size=400)


@given(st.integers(-1, 999), st.one_of(WIRE, ANY))
def test_whatever_a_relay_says_can_be_stored_and_shown(code: int, text: str) -> None:
    reply = Reply.parse(code, text)
    assert len(reply.text) <= 300
    assert reply.text.isprintable()
    assert reply.text.encode().decode() == reply.text


@given(ANY)
def test_sanitised_text_is_left_as_it_is(text: str) -> None:
    once = sanitised(text)
    assert sanitised(once) == once


@pytest.mark.parametrize(
    ("code", "text", "enhanced", "words"),
    [
        (550, "5.1.1 No such user", "5.1.1", "No such user"),
        (250, "2.0.0 OK", "2.0.0", "OK"),
        (250, "2.0.0", "2.0.0", ""),
        (550, "5.1.1 No such\n5.1.1 user here", "5.1.1", "No such user here"),
        (550, "4.1.1 class differs", None, "4.1.1 class differs"),
        (550, "5.1.1111 too long", None, "5.1.1111 too long"),
        (550, "5.1 too short", None, "5.1 too short"),
        (550, "5.1.1.1 is an address", None, "5.1.1.1 is an address"),
        (550, "see 5.1.1", None, "see 5.1.1"),
        (250, "١.1.1 digits of another script", None, "١.1.1 digits of another script"),
    ],
)
def test_an_enhanced_code_counts_only_in_front_and_in_the_class_of_the_code(
    code: int, text: str, enhanced: str | None, words: str
) -> None:
    assert Reply.parse(code, text) == Reply(code=code, enhanced=enhanced, text=words)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"one\ntwo\r\n\tthree", "one two three"),
        (b"nul\0bell\x07", "nulbell"),
        (b"\x1b[31mred", "[31mred"),
        ("Empfänger".encode(), "Empfänger"),
        ("Empfänger".encode("latin-1"), "Empfänger"),
        ("a\u202eb\u2028c".encode(), "ab c"),
        (b"x" * 301, "x" * 299 + "…"),
        (b"x" * 300, "x" * 300),
    ],
)
def test_control_characters_go_and_what_is_left_is_readable(raw: bytes, text: str) -> None:
    assert sanitised(raw.decode("utf-8", "surrogateescape")) == text


@pytest.mark.parametrize("code", [-1, 99, 150, 250, 299, 354, 421, 451, 550, 599, 600])
def test_the_first_digit_decides(code: int) -> None:
    reply = Reply.parse(code, "")
    assert reply.positive == (200 <= code < 300)
    assert reply.intermediate == (300 <= code < 400)
    assert reply.transient == (400 <= code < 500)
    assert reply.permanent == (500 <= code < 600)
    assert reply.refused == (400 <= code < 600)


def test_a_reply_reads_as_it_was_written() -> None:
    assert str(Reply.parse(550, "5.1.1 No such user")) == "550 5.1.1 No such user"
    assert str(Reply.parse(220, "")) == "220"
