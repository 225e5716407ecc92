from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from pathlib import Path

import pytest

from maintd.clock import SystemClock
from maintd.errors import Unavailable
from maintd.smtp.faults import Action, Script, Step, Then
from maintd.smtp.plain import open_session
from maintd.smtp.relays import Relay, Security
from maintd.smtp.session import OpenFailed, Phase, Timeouts, Verdict
from maintd.smtp.sink import Sink
from tests.smtp.relaying import PATIENT, Always, Watching, always, local_relay, message

CERTIFICATES = Path(__file__).parent / "certificates"
LOGIN = ("somebody", "hunter2 ü")


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the authority of the test server's certificate one of this machine's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "authority.pem"))


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATES / "server.pem")
    return context


async def attempt(
    *,
    security: Security = Security.PLAIN,
    host: str = "127.0.0.1",
    script: Script | None = None,
    starttls: bool = False,
    tls: bool = False,
    login: tuple[str, str] | None = None,
    password: str = LOGIN[1],
    timeouts: Timeouts = PATIENT,
) -> Verdict:
    """Opens a session to a sink that is set up so and sends one message over it."""
    sink = Sink(
        None, clock=SystemClock(), script=script, starttls=server_context() if starttls else None, login=login
    )
    port = await sink.start(tls=server_context() if tls else None)
    relay = Relay(
        host=host,
        port=port,
        security=security,
        username=login[0] if login else "",
        password=password if login else "",
    )
    try:
        session = await open_session(relay, timeouts=timeouts, hello="client.example")
        result = await session.send(message(), may_send=always)
        await session.close()
        return result.verdict
    finally:
        await sink.close()


def failure(**how: object) -> OpenFailed:
    with pytest.raises(OpenFailed) as failed:
        asyncio.run(attempt(**how))  # type: ignore[arg-type]
    return failed.value


def test_a_relay_knows_us_by_the_name_we_were_given() -> None:
    watching = Watching()
    assert asyncio.run(attempt(script=watching)) is Verdict.ACCEPTED
    assert watching.first("EHLO") == "EHLO client.example"


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("login", [None, LOGIN])
def test_starttls_and_auth_come_before_mail_and_ehlo_comes_again(login: tuple[str, str] | None) -> None:
    watching = Watching()
    verdict = asyncio.run(attempt(security=Security.STARTTLS, starttls=True, login=login, script=watching))
    assert verdict is Verdict.ACCEPTED
    verbs = [line.split()[0] for line in watching.lines if line]
    auth = ["AUTH"] if login else []
    assert verbs == ["EHLO", "STARTTLS", "EHLO", *auth, "MAIL", "RCPT", "DATA", "QUIT"]
    assert "SIZE=" in watching.first("MAIL")  # what the relay offers under TLS is known


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_tls_from_the_first_byte(host: str) -> None:
    assert asyncio.run(attempt(security=Security.TLS, tls=True, login=LOGIN, host=host)) is Verdict.ACCEPTED


@pytest.mark.parametrize(
    "how",
    [
        {"security": Security.STARTTLS, "starttls": True},
        {"security": Security.TLS, "tls": True},
    ],
)
def test_an_unknown_certificate_is_not_trusted(how: dict[str, object]) -> None:
    error = failure(**how)
    assert error.phase is Phase.TLS
    assert "certificate verify failed" in str(error)


def test_a_relay_without_starttls_is_not_used_in_the_clear() -> None:
    watching = Watching()
    error = failure(security=Security.STARTTLS, script=watching)
    assert (error.phase, error.reply) == (Phase.TLS, None)
    assert "STARTTLS" in str(error)
    assert [line for line in watching.lines if line.startswith(("AUTH", "MAIL"))] == []


def test_a_refused_starttls_is_a_failure() -> None:
    script = Always({Step.STARTTLS: Action(reply="454 4.7.0 TLS not available")})
    error = failure(security=Security.STARTTLS, starttls=True, script=script)
    assert error.phase is Phase.TLS
    assert str(error.reply) == "454 4.7.0 TLS not available"


def test_a_wrong_password_is_told_by_phase_and_reply() -> None:
    error = failure(login=LOGIN, password="hunter3")
    assert error.phase is Phase.AUTH
    assert error.reply is not None
    assert (error.reply.code, error.reply.enhanced) == (535, "5.7.8")
    assert "hunter" not in str(error)


@pytest.mark.parametrize(
    "quoted",
    [
        LOGIN[1],
        base64.b64encode(LOGIN[1].encode()).decode(),
        base64.b64encode("\0".join(["", *LOGIN]).encode()).decode(),
    ],
)
def test_a_relay_that_quotes_the_password_is_not_quoted(quoted: str) -> None:
    error = failure(
        login=LOGIN, script=Always({Step.AUTH: Action(reply=f"500 Unknown: AUTH PLAIN {quoted}")})
    )
    assert quoted not in f"{error} {error.reply}"
    assert error.__suppress_context__


def test_a_relay_that_offers_no_auth_is_not_used_without() -> None:
    script = Always({Step.HELLO: Action(reply="250 old.example")})
    assert failure(login=LOGIN, script=script).phase is Phase.AUTH


def test_an_old_relay_is_greeted_the_old_way() -> None:
    refused = Action(reply="502 5.5.1 EHLO is not known here")

    def script(moment: object) -> Action | None:
        return refused if getattr(moment, "line", "").startswith("EHLO") else None

    assert asyncio.run(attempt(script=script)) is Verdict.ACCEPTED


@pytest.mark.parametrize("step", [Step.CONNECT, Step.HELLO])
@pytest.mark.parametrize(
    "action", [Action(reply="421 4.3.2 Not now"), Action(then=Then.DROP), Action(reply="Hm")]
)
def test_a_relay_that_does_not_want_us_is_unavailable(step: Step, action: Action) -> None:
    error = failure(script=Always({step: action}))
    assert isinstance(error, Unavailable)
    assert error.phase is Phase.CONNECT
    assert "smtp://127.0.0.1:" in str(error)


@pytest.mark.parametrize("step", [Step.CONNECT, Step.HELLO])
def test_a_relay_that_says_nothing_is_unavailable(step: Step) -> None:
    hasty = Timeouts(connect_s=0.3, command_s=30, dot_s=30)
    assert failure(script=Always({step: Action(then=Then.HANG)}), timeouts=hasty).phase is Phase.CONNECT


def test_nobody_there() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        relay = local_relay(bound.getsockname()[1])
        with pytest.raises(OpenFailed) as failed:
            asyncio.run(open_session(relay, timeouts=PATIENT, hello="client.example"))
    assert (failed.value.phase, failed.value.reply) == (Phase.CONNECT, None)
