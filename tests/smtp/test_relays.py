from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.errors import Problems
from maintd.smtp.relays import Relay, Security, parse_relay_url, parse_relays

LOGIN = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("url", "host", "port", "security", "where"),
    [
        ("smtp://mail.example.com", "mail.example.com", 25, Security.PLAIN, "smtp://mail.example.com:25"),
        ("smtp+starttls://mx", "mx", 587, Security.STARTTLS, "smtp+starttls://mx:587"),
        ("smtps://mx/", "mx", 465, Security.TLS, "smtps://mx:465"),
        ("smtp://127.0.0.1:2525", "127.0.0.1", 2525, Security.PLAIN, "smtp://127.0.0.1:2525"),
        ("smtp://[::1]:2525", "::1", 2525, Security.PLAIN, "smtp://[::1]:2525"),
        (
            "SMTPS://Mail_Relay.Example",
            "mail_relay.example",
            465,
            Security.TLS,
            "smtps://mail_relay.example:465",
        ),
    ],
)
def test_a_relay_url_names_host_port_and_security(
    url: str, host: str, port: int, security: Security, where: str
) -> None:
    relay = parse_relay_url(url)
    assert relay == Relay(host=host, port=port, security=security)
    assert relay.where == where


@given(LOGIN, LOGIN)
def test_every_user_and_password_can_be_written(username: str, password: str) -> None:
    relay = parse_relay_url(f"smtps://{quote(username, safe='')}:{quote(password, safe='')}@mx")
    assert (relay.username, relay.password) == (username, password)


def test_a_login_is_in_no_repr_and_no_log() -> None:
    relay = parse_relay_url("smtps://somebody:hunter2@mx")
    assert "hunter2" not in f"{relay!r} {relay} {relay.where}"
    assert "somebody" not in f"{relay!r} {relay} {relay.where}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mail.example.com",
        "somebody:hunter2@mx:25",
        "http://somebody:hunter2@mx",
        "smtp:somebody:hunter2@mx",
        "smtps://somebody:hunter2@",
        "smtps://somebody:hunter2@:465",
        "smtps://somebody:hunter2@mx:0",
        "smtps://somebody:hunter2@mx:70000",
        "smtps://somebody:hunter2@mx:smtp",
        "smtps://somebody:hunter2@mx:-1",
        "smtps://somebody:hunter2@mx/inbox",
        "smtps://somebody:hunter2@mx?timeout=3",
        "smtps://somebody:hunter2@mx#x",
        "smtps://somebody:hunter2/4@mx",
        "smtps://somebody:hunter2#4@mx",
        "smtps://somebody:hunter2?4@mx",
        "smtps://somebody:hunter2@4@mx y",
        "smtps://somebody:hunter2%00@mx",
        "smtps://somebody:hunter2%ff@mx",
        "smtps://somebody@mx",
        "smtps://:hunter2@mx",
        "smtps://somebody:hunter2@[::1",
        "smtps://somebody:hunter2@[nonsense]",
        "smtps://somebody:hunter2@-mx",
        "smtp://somebody:hunter2@mail.example.com",
        "smtps://somebody:secret@mx?hunter2",
        "smtps://somebody:secret@mx?weight=hunter2",
        "smtps://somebody:secret@mx?weight=1&hunter2=3",
        "smtps://somebody:secret@mx?weight=1&weight=2",
        "smtps://somebody:secret@mx?weight=-1",
        "smtps://somebody:secret@mx?weight=1001",
        "smtps://somebody:secret@mx?weight=1.5",
        "smtps://somebody:secret@mx?connections=0",
        "smtps://somebody:secret@mx?connections=",
        "smtps://somebody:secret@mx?messages=0",
        "smtps://somebody:secret@mx?messages=1000000000000",
    ],
)
def test_anything_else_is_refused_without_repeating_the_password(url: str) -> None:
    with pytest.raises(Problems) as refusal:
        parse_relay_url(url, where="MAINTD_RELAY_URL")
    assert "hunter2" not in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert str(refusal.value).startswith("MAINTD_RELAY_URL: ")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_a_password_goes_in_the_clear_to_this_machine_only(host: str) -> None:
    assert parse_relay_url(f"smtp://somebody:hunter2@{host}").password == "hunter2"


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(Problems) as refusal:
        parse_relay_url("smtp://somebody@mail.example.com:0/inbox")
    assert len(refusal.value.problems) == 4


def test_a_relay_url_may_have_options() -> None:
    relay = parse_relay_url("smtp://mx?weight=3&connections=40&messages=100")
    assert relay == Relay(host="mx", port=25, security=Security.PLAIN, weight=3, connections=40, messages=100)
    assert relay.where == "smtp://mx:25"


def test_several_relays_are_separated_by_white_space() -> None:
    relays = parse_relays(" smtp://a\n\tsmtp+starttls://user:hunter2@b?weight=0  smtps://c ", where="X")
    assert [(relay.host, relay.weight) for relay in relays] == [("a", 1), ("b", 0), ("c", 1)]


def test_everything_wrong_with_all_relays_is_said_at_once_and_where() -> None:
    with pytest.raises(Problems) as refusal:
        parse_relays("smtp://mx?weight=x&messages=0 smtp://mx smtps://u:hunter2@[ smtp://mx:25", where="X")
    assert [problem.where for problem in refusal.value.problems] == ["X, relay 1"] * 2 + ["X, relay 3", "X"]
    assert "hunter2" not in str(refusal.value)
    assert all(problem.cure for problem in refusal.value.problems)


@pytest.mark.parametrize(
    ("option", "meant"), [("wieght=3", "weight"), ("conections=2", "connections"), ("message=1", "messages")]
)
def test_a_misspelt_option_gets_a_proposal(option: str, meant: str) -> None:
    with pytest.raises(Problems, match=f'each once; did you mean "{meant}"\\?; a "\\?" in a password'):
        parse_relays(f"smtp://mx?{option}", where="X")


@pytest.mark.parametrize("urls", ["smtp://a?weight=0", "smtp://a?weight=0 smtp://b?weight=0"])
def test_a_stand_by_needs_somebody_to_stand_by_for(urls: str) -> None:
    with pytest.raises(Problems, match="every relay has weight=0"):
        parse_relays(urls, where="X")


def test_no_relay_is_none_at_all() -> None:
    with pytest.raises(Problems):
        parse_relays(" ", where="X")


def test_one_server_is_one_relay_whatever_else_differs_and_two_users_are_two() -> None:
    with pytest.raises(Problems, match="the same host, port and user"):
        parse_relays("smtps://u:one@mx smtps://u:two@MX:465?weight=2", where="X")
    one, other = parse_relays("smtps://u:one@mx smtps://w:one@mx", where="X")
    assert one.key != other.key
