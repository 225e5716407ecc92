from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.smtp.replies import NotSMTP, RawReply, ReplyStream

TEXT = st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b""))
REPLIES = st.lists(st.tuples(st.integers(200, 599), st.lists(TEXT, min_size=1, max_size=3)), max_size=6)


def written(code: int, texts: list[bytes]) -> bytes:
    *more, last = texts
    return b"".join(b"%d-%s\r\n" % (code, text) for text in more) + b"%d %s\r\n" % (code, last)


@given(REPLIES, st.lists(st.integers(1, 20), max_size=40))
def test_it_does_not_matter_how_replies_are_cut_into_pieces(
    replies: list[tuple[int, list[bytes]]], sizes: list[int]
) -> None:
    octets = b"".join(written(code, texts) for code, texts in replies)
    stream, found = ReplyStream(), []
    for size in [*sizes, len(octets)]:
        found += stream.feed(octets[:size])
        octets = octets[size:]
    assert found == [RawReply(code, b"\n".join(texts)) for code, texts in replies]
    assert not stream.partial


@pytest.mark.parametrize("octets", [b"2", b"250", b"250 OK", b"250-OK\r\n", b"250-OK\r\n250"])
def test_what_has_begun_is_known_to_have_begun(octets: bytes) -> None:
    stream = ReplyStream()
    assert list(stream.feed(octets)) == []
    assert stream.partial


def test_a_bare_code_and_a_bare_line_feed_are_understood() -> None:
    assert list(ReplyStream().feed(b"250\r\n354\n250-\r\n250\r\n")) == [(250, b""), (354, b""), (250, b"\n")]


@pytest.mark.parametrize(
    ("octets", "what"),
    [
        (b"What do you mean?\r\n", "What do you mean?"),
        (b"\r\n", "empty line"),
        (b"25\r\n", "25"),
        (b"2500 OK\r\n", "2500 OK"),
        (b"250+OK\r\n", "250"),
        (b"\xb2\xb350 OK\r\n", "50 OK"),
        (b"+50 OK\r\n", "50 OK"),
        (b"\0\xff\xfe\x1b[2J\r\n", r"\[2J"),
        (b"250-one\r\n251 two\r\n", "begins with 250 and goes on with 251"),
        (b"250 " + b"x" * 8_190 + b"\r\n", "too long"),
        (b"2" * 8_193, "does not end"),
        ((b"250-" + b"x" * 996 + b"\r\n") * 33, "too long"),
    ],
)
def test_what_is_no_reply_is_not_read_as_one_but_what_came_before_is(octets: bytes, what: str) -> None:
    found: list[RawReply] = []
    with pytest.raises(NotSMTP, match=what) as failed:
        found.extend(ReplyStream().feed(b"354 Go on\r\n550 No\r\n" + octets))
    assert [reply.code for reply in found] == [354, 550]
    assert str(failed.value).isprintable()


def test_a_reply_of_many_lines_may_be_large() -> None:
    (reply,) = ReplyStream().feed((b"250-" + b"x" * 996 + b"\r\n") * 31 + b"250 end\r\n")
    assert reply.code == 250


def test_foreign_octets_are_made_readable() -> None:
    (reply,) = ReplyStream().feed("550-5.1.1 Empfänger\0\r\n550 5.1.1 unbekannt\r\n".encode("latin-1"))
    assert str(reply.read()) == "550 5.1.1 Empfänger unbekannt"
