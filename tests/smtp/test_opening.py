from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from maintd.clock import SystemClock
from maintd.errors import Unavailable
from maintd.smtp.faults import Action, Moment, Script, Step, Then
from maintd.smtp.opening import open_session
from maintd.smtp.pipelined import PipelinedSession
from maintd.smtp.plain import PlainSession
from maintd.smtp.relays import Relay, Security
from maintd.smtp.session import OpenFailed, Phase, Session, Timeouts, Verdict
from maintd.smtp.sink import Sink
from tests.smtp.relaying import HELLO, PATIENT, Always, Recording, Watching, local_relay, message, send

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


@contextlib.asynccontextmanager
async def opened(
    *,
    security: Security = Security.PLAIN,
    host: str = "127.0.0.1",
    script: Script | None = None,
    starttls: bool = False,
    tls: bool = False,
    login: tuple[str, str] | None = None,
    password: str = LOGIN[1],
    timeouts: Timeouts = PATIENT,
) -> AsyncIterator[Session]:
    """A session with a sink that is set up so."""
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
        session = await open_session(relay, timeouts=timeouts, hello=HELLO)
        yield session
        await session.close()
    finally:
        await sink.close()


async def attempt(**how: Any) -> Verdict:
    """Opens a session and sends one message over it."""
    async with opened(**how) as session:
        return (await send(session, message())).verdict


def failure(**how: Any) -> OpenFailed:
    with pytest.raises(OpenFailed) as failed:
        asyncio.run(attempt(**how))
    return failed.value


def test_a_relay_knows_us_by_the_name_we_were_given() -> None:
    watching = Watching()
    assert asyncio.run(attempt(script=watching)) is Verdict.ACCEPTED
    assert watching.first("EHLO") == f"EHLO {HELLO}"


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
def test_an_unknown_certificate_is_not_trusted(how: dict[str, Any]) -> None:
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
            asyncio.run(open_session(relay, timeouts=PATIENT, hello=HELLO))
    assert (failed.value.phase, failed.value.reply) == (Phase.CONNECT, None)


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"login": LOGIN},
        {"security": Security.STARTTLS, "starttls": True, "login": LOGIN},
        {"security": Security.TLS, "tls": True, "login": LOGIN},
    ],
)
def test_a_relay_that_offers_pipelining_is_pipelined_however_it_is_reached(how: dict[str, Any]) -> None:
    async def main() -> None:
        async with opened(**how) as session:
            assert isinstance(session, PipelinedSession)
            recording = Recording()
            large = message(content=(b"y" * 998 + b"\r\n") * 1_000)
            await session.send_all([message(), large] * 5, watcher=recording)
            assert recording.verdicts == [Verdict.ACCEPTED] * 10
            assert session.usable

    asyncio.run(main())


@pytest.mark.usefixtures("trusted")
def test_only_what_is_offered_under_tls_counts() -> None:
    class InTheClear:
        hellos = 0

        def __call__(self, moment: Moment) -> Action | None:
            self.hellos += moment.step is Step.HELLO
            under_tls = moment.step is Step.HELLO and self.hellos == 2
            return Action(reply="250 sink.invalid") if under_tls else None

    async def main() -> None:
        async with opened(security=Security.STARTTLS, starttls=True, script=InTheClear()) as session:
            assert isinstance(session, PlainSession)

    asyncio.run(main())


def test_a_relay_that_says_more_than_it_was_asked_is_not_used() -> None:
    script = Always({Step.HELLO: Action(reply="250-sink.invalid\r\n250 PIPELINING\r\n250 And more")})
    assert "nobody asked" in str(failure(script=script))


def test_a_relay_that_greets_and_leaves_is_not_used() -> None:
    script = Always({Step.HELLO: Action(reply="250 sink.invalid", then=Then.DROP)})

    async def main() -> None:
        try:
            async with opened(script=script) as session:
                assert (await send(session, message())).verdict is Verdict.UNSENT
        except OpenFailed as error:
            assert error.phase is Phase.CONNECT

    asyncio.run(main())


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux gives up unacknowledged octets"
)
@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("how", [{}, {"security": Security.STARTTLS, "starttls": True}])
def test_the_system_gives_up_a_dot_when_we_do(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    links: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        create = loop.create_connection

        async def watched(*args: Any, **kwargs: Any) -> Any:
            transport, protocol = await create(*args, **kwargs)
            links.append(transport.get_extra_info("socket"))
            return transport, protocol

        monkeypatch.setattr(loop, "create_connection", watched)
        async with opened(timeouts=Timeouts(connect_s=30, command_s=30, dot_s=7.5), **how):
            assert links[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7_500

    asyncio.run(main())
