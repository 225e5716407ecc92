from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.errors import Problems
from maintd.smtp.relays import Relay, Security, parse_relay_url

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
    ],
)
def test_anything_else_is_refused_without_repeating_the_password(url: str) -> None:
    with pytest.raises(Problems) as refusal:
        parse_relay_url(url, where="MAINTD_RELAY_URL")
    assert "hunter2" not in str(refusal.value)
    assert str(refusal.value).startswith("MAINTD_RELAY_URL: ")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_a_password_goes_in_the_clear_to_this_machine_only(host: str) -> None:
    assert parse_relay_url(f"smtp://somebody:hunter2@{host}").password == "hunter2"


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(Problems) as refusal:
        parse_relay_url("smtp://somebody@mail.example.com:0/inbox")
    assert len(refusal.value.problems) == 4
