"""Opening a session with a relay: TCP, greeting, TLS when asked for, AUTH when there is a login.

aiosmtplib does all of that, and reads one reply at a time. If the relay offers PIPELINING, the open connection is then
taken over from it.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import socket
import ssl
from typing import cast

from aiosmtplib import SMTP
from aiosmtplib.errors import SMTPException, SMTPHeloError, SMTPResponseException, SMTPServerDisconnected

from maintd.smtp.pipelined import PipelinedSession
from maintd.smtp.plain import PlainSession
from maintd.smtp.relays import Relay, Security
from maintd.smtp.reply import Reply, sanitised
from maintd.smtp.session import OpenFailed, Phase, Session, Timeouts
from maintd.smtp.wire import Wire


async def open_session(relay: Relay, *, timeouts: Timeouts, hello: str) -> Session:
    """Opens a session with a relay: a pipelined one if the relay offers that (RFC 2920).

    Args:
        relay: Where to.
        timeouts: For opening and for every message.
        hello: The name to introduce ourselves by in EHLO.

    Raises:
        OpenFailed: The relay is away, refused us, or does not offer the TLS or AUTH that is asked for.
    """
    client = await open_client(relay, timeouts=timeouts, hello=hello)
    if not client.supports_extension("pipelining"):
        return PlainSession(client, timeouts=timeouts)
    return PipelinedSession(
        Wire(cast(asyncio.Transport, client.transport)),
        extensions=frozenset(client.esmtp_extensions),
        timeouts=timeouts,
    )


async def open_client(relay: Relay, *, timeouts: Timeouts, hello: str) -> SMTP:
    """Opens a connection that has said EHLO and is ready for MAIL.

    TLS certificates are checked against the machine's authorities; `SSL_CERT_FILE` names others, as for all of OpenSSL.

    Args:
        relay: Where to.
        timeouts: `connect_s` holds for each step of opening.
        hello: The name to introduce ourselves by (RFC 5321 §4.1.4): this host's own, as the relay knows it.

    Raises:
        OpenFailed: Any step failed, with the step and the relay's reply.
    """
    client = SMTP(
        hostname=relay.host,
        port=relay.port,
        local_hostname=hello,
        timeout=timeouts.connect_s,
        use_tls=relay.security is Security.TLS,
        start_tls=False,
        tls_context=None if relay.security is Security.PLAIN else _tls_context(relay),
    )
    phase = Phase.CONNECT
    try:
        await client.connect()
        await _say_hello(client)
        if relay.security is Security.STARTTLS:
            phase = Phase.TLS
            await client.starttls()
            await _say_hello(client)
        if relay.username:
            phase = Phase.AUTH
            await client.login(relay.username, relay.password)
        _check_silence(client)
        _bound_lingering(client, within_s=timeouts.dot_s)
    except (SMTPException, OSError) as error:
        _drop(client)
        raise _failure(relay, error, phase=phase) from None  # its chain may quote what was sent
    except BaseException:
        _drop(client)
        raise
    return client


@functools.lru_cache(maxsize=8)
def _tls_context(_relay: Relay) -> ssl.SSLContext:
    # Reading the authorities takes tens of milliseconds: once for each relay, not for each connection.
    return ssl.create_default_context()


async def _say_hello(client: SMTP) -> None:
    try:
        await client.ehlo()
    except SMTPHeloError as error:
        if error.code // 100 != 5:
            raise
        await client.helo()  # RFC 5321 §3.2: what does not know EHLO knows HELO


def _check_silence(client: SMTP) -> None:
    """Makes sure that the relay is there and awaits a command: the next reply must not be one to something before."""
    if client.protocol is None or client.transport is None:
        raise SMTPServerDisconnected("the connection was lost")
    if getattr(client.protocol, "_buffer", b""):
        raise SMTPServerDisconnected("the relay said something that nobody asked for")


def _bound_lingering(client: SMTP, *, within_s: float) -> None:
    """Lets the system give up what is not acknowledged in time: a dot must not arrive long after it was given up."""
    link = cast(asyncio.Transport, client.transport).get_extra_info("socket")
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # RFC 5482; Linux
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(within_s * 1000)))


def _drop(client: SMTP) -> None:
    if client.transport is not None:
        cast(asyncio.WriteTransport, client.transport).abort()


def _failure(relay: Relay, error: SMTPException | OSError, *, phase: Phase) -> OpenFailed:
    if isinstance(error.__cause__, ssl.SSLError):
        phase = Phase.TLS  # TLS from the first byte is part of connecting
    reply = None
    what = sanitised(error.message if isinstance(error, SMTPException) else str(error))
    if isinstance(error, SMTPResponseException):
        reply = Reply.parse(error.code, _without_password(error.message, relay=relay))
        what = f"the relay answered {reply}"
    return OpenFailed(f"{relay.where} did not open ({phase}): {what}", phase=phase, reply=reply)


def _without_password(text: str, *, relay: Relay) -> str:
    """Some relays quote the command they did not like; one quoted AUTH is the password."""
    plain = f"\0{relay.username}\0{relay.password}".encode()
    forms = [relay.password, *(base64.b64encode(each).decode() for each in (plain, relay.password.encode()))]
    quoted = relay.password and any(form in text for form in forms)
    return "(withheld: it repeats the password)" if quoted else text
