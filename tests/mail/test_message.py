from __future__ import annotations

import email
import re
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from email import policy
from email.header import decode_header, make_header
from email.message import EmailMessage, Message
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maintd.mail.address import parse_address
from maintd.mail.content.enclosures import Enclosure
from maintd.mail.content.message import Content, UnsafeHeader, build_message, needs_smtputf8
from maintd.mail.content.parts import attached_part
from maintd.mail.content.skeleton import Skeleton

MINIMAL = Content(
    from_name="Acme News",
    from_address=parse_address("news@acme.example"),
    to=parse_address("ada@example.org"),
    message_id="<0123456789abcdef@acme.example>",
    date=datetime(2026, 11, 23, 7, 0, 5, tzinfo=UTC),
    subject="Your week",
    text="Hello Ada,\n\nnothing happened.\n",
)
RICH = replace(
    MINIMAL,
    to_name="Ada Müller",
    reply_to=parse_address("help@acme.example"),
    html="<p>Hello Ada,</p>\n<p>nothing happened.</p>\n",
    headers=(("List-Id", "<weekly.acme.example>"), ("Auto-Submitted", "auto-generated")),
)
LINE_BREAKS = [
    "\n",
    "\r",
    "\r\n",
    "\x00",
    "\x0b",
    "\x0c",
    "\x1b",
    "\x7f",
    "\x85",
    "\u2028",
    "\u2029",
    "\ud800",
]

line = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]))
body = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")) | st.text(
    "aü.=- \t\r\n", max_size=200
)

file = st.builds(
    Enclosure,
    name=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\x00/"), min_size=1, max_size=255
    )
    | st.from_regex(r"[a-z]{1,80}\.(pdf|txt|csv|png|zip|eml|ics|html)", fullmatch=True),
    content=st.binary(max_size=200) | st.text("--=_\r\n. aü").map(str.encode),
)
image = st.builds(
    Enclosure,
    name=st.from_regex(r"[A-Za-z0-9_-]{1,9}\.(png|jpg|svg)", fullmatch=True),
    content=st.binary(max_size=200),
)


def octets_of(content: Content, skeleton: Skeleton | None = None) -> bytes:
    own, ending = build_message(content, skeleton or Skeleton(seed="campaign"))
    return own.octets + ending.octets


def parse(octets: bytes) -> EmailMessage:
    message = email.message_from_bytes(octets, policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def read(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert isinstance(part, EmailMessage)
    assert not part.defects
    return lines(str(part.get_content()))


def lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def ended(text: str) -> str:
    return lines(text) if lines(text).endswith("\n") else lines(text) + "\n"


def raw_header(octets: bytes, name: str) -> str:
    head = octets.partition(b"\r\n\r\n")[0].decode().replace("\r\n ", " ")
    fields = (each.partition(":") for each in head.split("\r\n"))
    return next(value.removeprefix(" ") for key, _, value in fields if key == name)


@given(subject=line, text=body, html=st.none() | body, to_name=line)
@example(subject="=?utf-8?q?a=0ABcc=3A_x?=", text="", html="", to_name="=?utf-8?q?x?=")
@example(subject="two  spaces", text="From me\n.\n..\n", html=None, to_name="a  b")
@example(subject=" at the ends ", text="a \nb\t\n", html="ü" * 4000, to_name=" a ")
@example(subject="w" * 5000, text="w" * 5000, html="<p>" + "w" * 999, to_name="w" * 500)
@example(subject="ü" * 500 + "👩‍💻" * 50, text="日本語\n" * 50, html="e\u0301", to_name='Müller, "Ada" <x@y>')
@example(
    subject="a, b; c", text="\x0c\x1c\x85\u2028.", html="=\n=20\n", to_name='A. "B", \\ C (d) <e@f> @ g: h;'
)
def test_a_mail_reads_back_as_it_was_written(subject: str, text: str, html: str | None, to_name: str) -> None:
    octets = octets_of(replace(MINIMAL, subject=subject, text=text, html=html, to_name=to_name))
    message = parse(octets)
    assert str(make_header(decode_header(raw_header(octets, "Subject")))) == subject
    assert message["subject"] == subject
    assert message["to"].addresses[0].addr_spec == "ada@example.org"
    assert len(message["to"].addresses) == 1
    assert read(message, "plain") == ended(text)
    if html is None:
        assert message.get_content_type() == "text/plain"
    else:
        assert [part.get_content_subtype() for part in message.iter_parts()] == ["plain", "html"]
        assert read(message, "html") == ended(html)


TERMS = Enclosure(name="terms.pdf", content=b"%PDF-\r\n.\r\n")
LOGO = Enclosure(name="logo.png", content=b"\x89PNG")


def shape(message: EmailMessage) -> object:
    """Content type, or with parts their shapes by content type."""
    kind = message.get_content_type()
    return {kind: [shape(part) for part in message.iter_parts()]} if message.is_multipart() else kind  # type: ignore[arg-type]


@given(
    subject=line,
    text=st.text(),
    html=st.none() | st.text(),
    headers=st.dictionaries(st.from_regex(r"X-[A-Za-z0-9-]{1,30}", fullmatch=True), line, max_size=3),
    inline=st.lists(image, max_size=3),
    attachments=st.lists(file, max_size=3),
)
@example(subject="x", text="\0\ud800.\n", html="\0", headers={}, inline=[LOGO], attachments=[TERMS])
@example(
    subject="x",
    text="",
    html=None,
    headers={},
    inline=[LOGO],
    attachments=[
        Enclosure(name="a" * 255, content=b""),
        Enclosure(name="ü" * 120 + ".csv", content="ü;\n".encode()),
        Enclosure(name='a "quoted" \\ name.pdf', content=b"a"),
        Enclosure(name="=?utf-8?q?x?=.pdf", content=b"a"),
        Enclosure(name=" a  b ", content=b"\r.\n"),
        Enclosure(name="a\r\nBcc: eve@example.org", content=b"a"),
    ],
)
def test_everything_in_a_mail_reads_back_as_it_was_put_in(
    subject: str,
    text: str,
    html: str | None,
    headers: dict[str, str],
    inline: list[Enclosure],
    attachments: list[Enclosure],
) -> None:
    content = replace(MINIMAL, subject=subject, text=text, html=html, headers=tuple(headers.items()))
    octets = octets_of(content, Skeleton(seed="campaign", inline=inline, attachments=attachments))
    message = parse(octets)
    assert message["subject"] == subject
    for name, value in headers.items():
        assert str(make_header(decode_header(raw_header(octets, name)))) == value
    assert all(not part.defects for part in message.walk())  # type: ignore[attr-defined]

    def sent(text: str) -> str:
        return ended(re.sub("[\0\ud800-\udfff]", "?", text))

    assert read(message, "plain") == sent(text)
    if html is not None:
        assert read(message, "html") == sent(html)
        assert [read_file(part) for part in message.walk() if part["content-id"]] == [
            ("inline", f"<{file.content_id}>", file.name, file.content) for file in inline
        ]
    else:
        assert message.get_body(("html",)) is None
    assert [read_file(part) for part in message.iter_attachments()] == [
        ("attachment", None, file.name, file.content) for file in attachments
    ]


def read_file(part: Message) -> tuple[object, ...]:
    disposition = part["content-disposition"]
    name = disposition.params["filename"]
    return disposition.content_disposition, part["content-id"], name, part.get_payload(decode=True)


@pytest.mark.parametrize(
    ("html", "inline", "attachments", "expected"),
    [
        (None, [], [], "text/plain"),
        (None, [LOGO], [], "text/plain"),
        ("x", [], [], {"multipart/alternative": ["text/plain", "text/html"]}),
        (
            "x",
            [LOGO],
            [],
            {"multipart/alternative": ["text/plain", {"multipart/related": ["text/html", "image/png"]}]},
        ),
        (None, [], [TERMS], {"multipart/mixed": ["text/plain", "application/pdf"]}),
        (
            "x",
            [LOGO],
            [TERMS, TERMS],
            {
                "multipart/mixed": [
                    {
                        "multipart/alternative": [
                            "text/plain",
                            {"multipart/related": ["text/html", "image/png"]},
                        ]
                    },
                    "application/pdf",
                    "application/pdf",
                ]
            },
        ),
    ],
)
def test_parts_are_nested_as_their_meaning_is(
    html: str | None, inline: list[Enclosure], attachments: list[Enclosure], expected: object
) -> None:
    skeleton = Skeleton(seed="campaign", inline=inline, attachments=attachments)
    assert shape(parse(octets_of(replace(MINIMAL, html=html), skeleton))) == expected


def test_what_is_enclosed_is_encoded_once_for_all_mails() -> None:
    skeleton = Skeleton(seed="campaign", inline=[LOGO], attachments=[TERMS])
    endings = [build_message(replace(RICH, text=text), skeleton)[1] for text in ("one", "two")]
    assert endings[0] is endings[1]
    assert b64encode(TERMS.content) in endings[0].octets


@pytest.mark.parametrize("where", ["text", "html"])
def test_a_boundary_is_drawn_again_where_a_text_has_it(where: str) -> None:
    skeleton = Skeleton(seed="campaign", inline=[LOGO], attachments=[TERMS])
    boundaries = set(re.findall(rb'boundary="([^"]+)"', octets_of(RICH, skeleton)))
    assert len(boundaries) == 3
    assert not [(a, b) for a in boundaries for b in boundaries if a != b and a.startswith(b)]
    hostile = "".join(f"\n--{boundary.decode()}--\n" for boundary in boundaries)
    octets = octets_of(replace(RICH, **{where: hostile}), skeleton)  # type: ignore[arg-type]
    assert boundaries.isdisjoint(re.findall(rb'boundary="([^"]+)"', octets))
    message = parse(octets)
    assert read(message, {"text": "plain"}.get(where, where)) == ended(hostile)
    assert [part.get_payload(decode=True) for part in message.iter_attachments()] == [TERMS.content]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.PDF", b"\xff", "application/pdf"),
        ("a.csv", "ü".encode(), "text/csv"),
        ("a.csv", "ü".encode("latin-1"), "application/octet-stream"),
        ("a.eml", b"Subject: x", "application/octet-stream"),
        ("a.tar.gz", b"\x1f", "application/gzip"),
        ("pdf", b"", "application/octet-stream"),
    ],
)
def test_a_file_is_what_its_suffix_says_if_that_can_be(name: str, content: bytes, expected: str) -> None:
    skeleton = Skeleton(seed="campaign", attachments=[Enclosure(name=name, content=content)])
    [part] = parse(octets_of(MINIMAL, skeleton)).iter_attachments()
    assert part.get_content_type() == expected
    assert part["content-transfer-encoding"] == "base64"
    assert part.get_content_charset() == ("utf-8" if expected.startswith("text/") else None)


@given(file)
@example(Enclosure(name="ü" * 255, content=b""))
@example(Enclosure(name='"' * 60, content=b""))
def test_an_enclosed_file_has_lines_of_at_most_78(file: Enclosure) -> None:
    part = attached_part(file)
    assert part.isascii()
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", part)
    head, _, body = part.partition(b"\r\n\r\n")
    assert max(map(len, body.split(b"\r\n"))) <= 76
    if len(file.media_type) < 40:
        assert max(map(len, head.split(b"\r\n"))) <= 78


@given(subject=line, text=st.text(), html=st.none() | st.text(), to_name=line, value=line)
@example(
    subject="w" * 5000, text="w" * 5000, html="<p>" + "w" * 999, to_name="w" * 500, value="w" * 900 + " x"
)
def test_a_mail_is_short_ascii_lines_that_end_with_crlf(
    subject: str, text: str, html: str | None, to_name: str, value: str
) -> None:
    octets = octets_of(
        replace(
            MINIMAL, subject=subject, text=text, html=html, to_name=to_name, headers=(("X-Extra", value),)
        )
    )
    assert octets.isascii()
    assert b"\0" not in octets
    assert octets.endswith(b"\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", octets)
    assert max(map(len, octets.split(b"\r\n"))) <= 998


@given(to_name=line)
@example(to_name="Ada")
@example(to_name='Müller, "Ada" <x@y>')
@example(to_name="ü" * 200)
@example(to_name='A. "B", \\ C (d) <e@f> @ g: h;')
@example(to_name="=?utf-8?q?x?=")
def test_a_display_name_reads_back_as_it_was_written(to_name: str) -> None:
    to = raw_header(octets_of(replace(MINIMAL, to_name=to_name)), "To")
    phrase = to.removesuffix("<ada@example.org>").removesuffix("ada@example.org").strip()
    if phrase.startswith('"'):
        assert re.sub(r"\\(.)", r"\1", phrase[1:-1]) == to_name
    else:
        assert str(make_header(decode_header(phrase))) == to_name


@pytest.mark.parametrize(
    "to_name",
    ["Ada", "Ada Müller", "Müller, Ada", 'Ada "A." L.', "Ada (L)", "<ada>", "A  L", " A ", "=?utf-8?q?x?="],
)
def test_the_standard_parser_reads_a_name_as_it_was_written(to_name: str) -> None:
    message = parse(octets_of(replace(MINIMAL, to_name=to_name)))
    assert message["to"].addresses[0].display_name == to_name


def test_headers_are_folded_at_78() -> None:
    octets = octets_of(replace(RICH, subject="word " * 60 + "word", to_name="Ünü " * 40))
    head = octets.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert max(map(len, head)) <= 78


def test_no_line_of_a_folded_header_is_empty() -> None:
    octets = octets_of(replace(RICH, subject=f"{'w' * 100} {'v' * 100}"))
    assert f"\r\nSubject: {'w' * 100}\r\n {'v' * 100}\r\n".encode() in octets


@given(line)
@example("a" + "ü" * 100)
def test_every_encoded_word_holds_whole_characters(subject: str) -> None:
    header = raw_header(octets_of(replace(MINIMAL, subject=subject)), "Subject")
    for word in re.findall(r"=\?utf-8\?[bq]\?[^ ?]*\?=", header):
        ((octets, charset),) = decode_header(word)
        assert isinstance(octets, bytes)
        assert octets.decode(str(charset))
        assert len(word) <= 75


def test_the_same_record_gives_the_same_octets() -> None:
    assert octets_of(RICH) == octets_of(replace(RICH))


def test_message_id_and_date_are_those_of_the_record() -> None:
    message = parse(
        octets_of(replace(RICH, date=datetime(2026, 7, 1, 9, tzinfo=timezone(timedelta(hours=2)))))
    )
    assert message["message-id"] == "<0123456789abcdef@acme.example>"
    assert message["date"] == "Wed, 01 Jul 2026 09:00:00 +0200"
    assert parsedate_to_datetime(message["date"]) == datetime(2026, 7, 1, 7, tzinfo=UTC)


def test_the_date_is_written_in_its_own_zone_whatever_was_written_before() -> None:
    berlin = MINIMAL.date.astimezone(timezone(timedelta(hours=1)))
    written = [raw_header(octets_of(replace(MINIMAL, date=date)), "Date") for date in (MINIMAL.date, berlin)]
    assert written == ["Mon, 23 Nov 2026 07:00:05 +0000", "Mon, 23 Nov 2026 08:00:05 +0100"]


def test_a_date_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        octets_of(replace(MINIMAL, date=datetime(2026, 7, 1)))  # noqa: DTZ001


def test_all_headers_are_there_once_and_in_order() -> None:
    assert parse(octets_of(RICH)).keys() == [
        "From", "To", "Reply-To", "Subject", "Date", "Message-ID", "List-Id", "Auto-Submitted", "MIME-Version",
        "Content-Type",
    ]  # fmt: skip


def test_a_boundary_never_occurs_in_the_parts() -> None:
    boundary = str(parse(octets_of(RICH)).get_boundary())
    octets = octets_of(replace(RICH, text=f"--{boundary}--\r\n{boundary}\r\n"))
    message = parse(octets)
    assert message.get_boundary() != boundary
    assert read(message, "plain") == f"--{boundary}--\n{boundary}\n"


def test_mails_of_other_mailings_have_other_boundaries() -> None:
    other = octets_of(RICH, Skeleton(seed="another"))
    assert parse(octets_of(RICH)).get_boundary() != parse(other).get_boundary()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain", "7bit"),
        ("w" * 1000, "quoted-printable"),
        ("Grüße, and the rest is in plain English", "quoted-printable"),
        ("Привет", "base64"),
    ],
)
def test_a_body_never_needs_8bitmime(text: str, encoding: str) -> None:
    assert parse(octets_of(replace(MINIMAL, text=text)))["content-transfer-encoding"] == encoding


def test_what_cannot_be_sent_is_replaced() -> None:
    assert read(parse(octets_of(replace(MINIMAL, text="a\0b\ud800c"))), "plain") == "a?b?c\n"


def test_an_international_domain_is_written_in_a_labels() -> None:
    content = replace(MINIMAL, to=parse_address("ada@münchen.example"))
    assert not needs_smtputf8(content)
    assert raw_header(octets_of(content), "To") == "ada@xn--mnchen-3ya.example"


@pytest.mark.parametrize("role", ["to", "from_address", "reply_to"])
def test_an_international_local_part_is_written_in_utf8(role: str) -> None:
    content = replace(MINIMAL, to_name="Jürgen")
    content = replace(content, **{role: parse_address("jürgen@münchen.example")})  # type: ignore[arg-type]
    assert needs_smtputf8(content)
    assert "jürgen@münchen.example".encode() in octets_of(content)


@pytest.mark.parametrize("character", LINE_BREAKS, ids=ascii)
@pytest.mark.parametrize("field", ["from_name", "to_name", "subject"])
def test_no_line_break_or_control_gets_into_a_header(field: str, character: str) -> None:
    content = replace(MINIMAL, **{field: f"Ada{character}Bcc: eve@example.org"})  # type: ignore[arg-type]
    with pytest.raises(UnsafeHeader) as refusal:
        octets_of(content)
    assert "eve" not in str(refusal.value)


@pytest.mark.parametrize("character", LINE_BREAKS, ids=ascii)
def test_no_line_break_or_control_gets_into_an_extra_header(character: str) -> None:
    for header in (("X-Extra", f"a{character}b"), (f"X-Ex{character}tra", "a")):
        with pytest.raises(UnsafeHeader):
            octets_of(replace(MINIMAL, headers=(header,)))


@pytest.mark.parametrize("character", LINE_BREAKS, ids=ascii)
def test_no_line_break_or_control_gets_into_an_address_or_identifier(character: str) -> None:
    mailbox = f"ada@example.org{character}"
    forged = replace(MINIMAL.to, mailbox=mailbox, ascii_mailbox=mailbox)
    changes = (
        {"to": forged},
        {"from_address": forged},
        {"reply_to": forged},
        {"message_id": f"<a@b{character}>"},
    )
    for change in changes:
        with pytest.raises(UnsafeHeader):
            octets_of(replace(MINIMAL, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message_id", ["", "a@b", "<a>", "<a@b", "<a@b>\n", "<a b@c>", "<ü@b>", f"<{'a' * 998}@b>"]
)
def test_a_message_id_has_its_form(message_id: str) -> None:
    with pytest.raises(UnsafeHeader, match="Message-ID"):
        octets_of(replace(MINIMAL, message_id=message_id))


@pytest.mark.parametrize(
    "name", ["", "X Extra", "X-Extra:", "X-Exträ", "From", "bcc", "SUBJECT", "Content-Type"]
)
def test_an_extra_header_is_neither_malformed_nor_one_of_the_message_s_own(name: str) -> None:
    with pytest.raises(UnsafeHeader):
        octets_of(replace(MINIMAL, headers=((name, "x"),)))
