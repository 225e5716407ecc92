from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.smtp.lines import NOTHING, BareLineEnd, Lines
from maintd.smtp.transaction import transaction
from tests.smtp.relaying import message

texts = st.lists(
    st.sampled_from([".", "\r\n", "\n", "\r", "a", "ü", "\0", "\udcff", ".\r\n"]), max_size=12
).map("".join)
octets = st.lists(st.sampled_from([b".\r\n", b"\r\n", b"a\r\n", b"..a\r\n", b"a.b\r\n"]), max_size=12).map(
    b"".join
)


@pytest.mark.parametrize(
    ("octets", "stuffed"),
    [
        (b"", b""),
        (b"a\r\n", b"a\r\n"),
        (b".\r\n", b"..\r\n"),
        (b"..a\r\n.\r\n.b\r\n", b"...a\r\n..\r\n..b\r\n"),
        (b"a.\r\nb.c\r\n", b"a.\r\nb.c\r\n"),
    ],
)
def test_a_line_that_begins_with_a_dot_gets_another(octets: bytes, stuffed: bytes) -> None:
    assert Lines.of(octets) == Lines(octets, stuffed)


@pytest.mark.parametrize(
    "octets", [b"a", b"a\nb\r\n", b"a\rb\r\n", b"a\n\r", b"a\r\n.\nMAIL", b"\r\r\n", b"a\r", b"a\r\nb"]
)
def test_a_bare_line_end_is_refused_because_relays_disagree_about_it(octets: bytes) -> None:
    with pytest.raises(BareLineEnd, match="CRLF"):
        Lines.of(octets)


@given(texts)
def test_a_text_is_written_in_lines_whatever_is_in_it(text: str) -> None:
    lines = Lines.of_text(text)
    assert Lines.of(lines.octets) == lines
    assert (
        lines.octets.decode().splitlines()
        == [
            line.replace("\0", "?").replace("\udcff", "?")
            for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        ][: lines.octets.count(b"\n")]
    )


@given(st.lists(octets, max_size=5))
def test_lines_behind_one_another_are_lines(pieces: list[bytes]) -> None:
    assert Lines.joined([Lines.of(piece) for piece in pieces]) == Lines.of(b"".join(pieces))


@given(octets)
def test_the_end_of_a_message_is_at_its_end_only(octets: bytes) -> None:
    body = transaction(message(content=octets), extensions=()).body
    assert (b"\r\n" + body).find(b"\r\n.\r\n") == len(body) - 3


@given(octets)
def test_how_long_lines_are_is_measured_without_their_ends(octets: bytes) -> None:
    longest = max(map(len, octets.split(b"\r\n")))
    assert [Lines.of(octets).are_within(longest + more) for more in (0, 1, 10)] == [True] * 3
    assert not any(Lines.of(octets).are_within(most) for most in range(longest))
    assert NOTHING.are_within(0)
