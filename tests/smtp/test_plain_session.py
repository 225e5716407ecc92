"""The session that waits for each reply before the next command."""

from __future__ import annotations

import asyncio
import socket
import threading

from aiosmtplib import SMTP

from maintd.smtp.plain import PlainSession
from maintd.smtp.session import Result, Timeouts, Verdict
from tests.smtp.relaying import Blinded, message, send

TO_EACH = {b"EHLO": b"250 OK", b"MAIL": b"250 OK", b"RCPT": b"250 OK", b"DATA": b"354 Go on"}


def answer(relay: socket.socket) -> None:
    """Answers every command up to DATA."""
    relay.sendall(b"220 Here\r\n")
    with relay.makefile("rb") as said:
        for line in said:
            relay.sendall(TO_EACH[line[:4]] + b"\r\n")
            if line.startswith(b"DATA"):
                return


def test_a_reply_to_the_dot_that_came_in_time_is_read_however_late_we_look() -> None:
    selector = Blinded()
    ours, relay = socket.socketpair()

    def accept() -> bool:
        relay.sendall(b"250 Kept\r\n")
        selector.blind = True
        return True

    async def scenario() -> Result:
        client = SMTP(hostname=None, port=None, sock=ours, start_tls=False, local_hostname="maintd.test")
        await client.connect()
        await client.ehlo()
        session = PlainSession(client, timeouts=Timeouts(connect_s=30, command_s=30, dot_s=0))
        result = await send(session, message(), may_write_dot=accept)
        session.abort()
        return result

    relaying = threading.Thread(target=answer, args=(relay,))
    relaying.start()
    with relay, asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        result = runner.run(scenario())
        relaying.join()
    assert (result.verdict, str(result.reply)) == (Verdict.ACCEPTED, "250 Kept")
