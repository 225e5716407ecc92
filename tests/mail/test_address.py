from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from maintd.mail import address
from maintd.mail.address import Fault, InvalidAddress, parse_address, parse_from, recipient_key

VECTORS = tomllib.loads(Path(__file__).with_name("address_vectors.toml").read_text(encoding="utf-8"))

plain = st.emails() | st.from_regex(address._PLAIN, fullmatch=True, alphabet=st.characters(codec="ascii"))
international = st.builds(
    "{}@{}".format, st.text(min_size=1, max_size=20), st.sampled_from(["例え.example", "x.test"])
)


@pytest.mark.parametrize(("text", "canonical"), VECTORS["canonical"].items(), ids=ascii)
def test_an_address_has_the_canonical_form_of_its_vector(text: str, canonical: str) -> None:
    assert parse_address(text).canonical == canonical


@pytest.mark.parametrize(("text", "fault"), VECTORS["fault"].items(), ids=ascii)
def test_a_text_is_refused_for_the_reason_of_its_vector(text: str, fault: str) -> None:
    with pytest.raises(InvalidAddress) as refusal:
        parse_address(text)
    assert refusal.value.fault is Fault[fault]


def test_every_fault_has_a_vector() -> None:
    assert set(VECTORS["fault"].values()) == {fault.name for fault in Fault}


def test_no_address_at_all_is_refused() -> None:
    with pytest.raises(InvalidAddress, match="there is no address"):
        parse_address(None)


@given(plain)
@example("A@X.Example")
def test_the_short_way_reads_an_address_as_the_long_way_does(text: str) -> None:
    quick = address._parse_plain(text)
    assume(quick is not None)
    assert quick == address._parse_any(text)


def test_the_short_way_takes_everyday_addresses() -> None:
    for text in ("ada@example.org", "Ada.Lovelace+news@Mail.Example.CO", "o'brien@a-b.test"):
        assert address._parse_plain(text) is not None


@pytest.mark.parametrize("labels", ["b" * 63 + ".", "b."])
def test_254_octets_are_accepted_and_one_more_is_refused(labels: str) -> None:
    domain = (labels * 200)[: 254 - 64 - 1 - 4].rstrip(".") + "b.org"
    local = "a" * (254 - 1 - len(domain))
    assert parse_address(f"{local[:64]}@{domain}").domain == domain
    with pytest.raises(InvalidAddress) as refusal:
        parse_address("a" * 64 + "@b" + domain)
    assert refusal.value.fault is Fault.TOO_LONG


def test_octets_count_not_characters() -> None:
    with pytest.raises(InvalidAddress) as refusal:
        parse_address(f"ada@{('ü' * 30 + '.') * 5}example")
    assert refusal.value.fault is Fault.TOO_LONG


def test_a_huge_text_is_refused_without_being_read() -> None:
    with pytest.raises(InvalidAddress) as refusal:
        parse_address("ü" * 10_000_000)
    assert refusal.value.fault is Fault.TOO_LONG


@given(plain | international | st.text(max_size=40))
def test_whatever_is_accepted_is_fit_for_the_wire(text: str) -> None:
    try:
        parsed = parse_address(text)
    except InvalidAddress as refusal:
        assert text.strip() == "" or len(text) < 4 or text not in str(refusal)
        return
    for form in (parsed.mailbox, parsed.ascii_mailbox or "a@b", parsed.canonical):
        assert re.fullmatch(r"[^\s\x00-\x1f\x7f-\x9f@<>()\"]+@[^\s\x00-\x1f\x7f-\x9f@<>()\"]+", form)
    assert parsed.domain.isascii()
    assert (parsed.ascii_mailbox is None) == (not parsed.mailbox.rpartition("@")[0].isascii())


@given(plain | international)
def test_a_canonical_form_is_its_own_canonical_form(text: str) -> None:
    try:
        canonical = parse_address(text).canonical
    except InvalidAddress:
        return
    assert parse_address(canonical).canonical == canonical


def test_every_form_of_an_address_serves_its_purpose() -> None:
    parsed = parse_address("Ada.L@MÜNCHEN.example")
    assert parsed.mailbox == "Ada.L@münchen.example"
    assert parsed.ascii_mailbox == "Ada.L@xn--mnchen-3ya.example"
    assert parsed.domain == "xn--mnchen-3ya.example"


def test_a_local_part_beyond_ascii_has_no_ascii_form() -> None:
    parsed = parse_address("ju\u0308rgen@example.org")
    assert parsed.ascii_mailbox is None
    assert parsed.mailbox == "jürgen@example.org"


def test_a_recipient_key_never_changes() -> None:
    assert recipient_key("ada@example.org", key=b"k" * 32).hex() == "26f7cb13afbd1efdc176a42be29288d5"


def test_a_recipient_key_depends_on_the_recipient_and_on_the_secret() -> None:
    keys = {recipient_key(who, key=key) for who in ("ada@x.test", "bob@x.test") for key in (b"1", b"2")}
    assert len(keys) == 4
    assert all(len(key) == 16 for key in keys)


@pytest.mark.parametrize(
    ("text", "name", "mailbox"),
    [
        ("Acme <news@acme.example>", "Acme", "news@acme.example"),
        ("  Acme News<news@acme.example> ", "Acme News", "news@acme.example"),
        ("Acme, Inc. <news@acme.example>", "Acme, Inc.", "news@acme.example"),
        (r'"Acme \"A\", \\ Inc." <news@acme.example>', r'Acme "A", \ Inc.', "news@acme.example"),
        ("Mu\u0308ller <news@acme.example>", "Müller", "news@acme.example"),
        ("<news@acme.example>", "", "news@acme.example"),
        ("news@acme.example", "", "news@acme.example"),
    ],
)
def test_a_sender_is_a_name_and_an_address(text: str, name: str, mailbox: str) -> None:
    read_name, read_address = parse_from(text)
    assert (read_name, read_address.mailbox) == (name, mailbox)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", Fault.EMPTY),
        ("Acme <>", Fault.EMPTY),
        ("Acme", Fault.NO_AT),
        ("Acme\r\nBcc: x <news@acme.example>", Fault.CONTROL),
        ("Acme\x00 <news@acme.example>", Fault.CONTROL),
        ("A <a@acme.example>, B <b@acme.example>", Fault.NAMED),
        ("A <b@acme.example> <c@acme.example>", Fault.NAMED),
        ('Acme "A" Inc. <news@acme.example>', Fault.NAMED),
        ("Acme <news@acme>", Fault.DOTLESS),
    ],
)
def test_a_sender_that_is_not_one_name_and_one_address_is_refused(text: str, fault: Fault) -> None:
    with pytest.raises(InvalidAddress) as refusal:
        parse_from(text)
    assert refusal.value.fault is fault
