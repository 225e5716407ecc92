"""A mail server that keeps everything and delivers nothing: for the demo, for trying out, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

from maintd.clock import Clock
from maintd.smtp.faults import Action, Moment, Script, Step, Then
from maintd.smtp.mailbox import Mailbox

_LONGEST_LINE = 8_192  # octets; RFC 5321 §4.5.3.1.4 wants 512 and more for extensions
_LARGEST_MESSAGE = 64 * 2**20
_EXTENSIONS = ("PIPELINING", f"SIZE {_LARGEST_MESSAGE}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")


class Sink:
    """An SMTP server (RFC 5321, 2920, 1870, 6152, 6531, 2034) on one event loop.

    Attributes:
        accepted: How many messages it has accepted since it was made.
    """

    def __init__(
        self,
        mailbox: Path | None,
        *,
        clock: Clock,
        store: bool = True,
        script: Script | None = None,
        starttls: ssl.SSLContext | None = None,
        login: tuple[str, str] | None = None,
    ) -> None:
        """Prepares a server; nothing is opened before `start`.

        Args:
            mailbox: Directory of the index and the messages; None keeps nothing at all.
            clock: Tells when a message was accepted.
            store: Whether messages are kept beside their index lines.
            script: Bad behaviour on order.
            starttls: Offers STARTTLS with this server context.
            login: User and password that AUTH PLAIN takes, and without which no mail is taken.
        """
        self.accepted = 0
        self.transactions = 0
        self.script = script
        self.starttls = starttls
        self.login = login
        self._directory = mailbox
        self._store = store
        self._clock = clock
        self._mailbox: Mailbox | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    async def start(
        self, host: str = "127.0.0.1", port: int = 0, *, tls: ssl.SSLContext | None = None
    ) -> int:
        """Listens and returns the port.

        Args:
            host: Address to listen on.
            port: 0 takes a free one.
            tls: Speaks TLS from the first byte with this server context.

        Raises:
            OSError: The address cannot be had.
            MaintdError: Another sink writes to the mailbox.
        """
        if self._directory is not None:
            self._mailbox = Mailbox(self._directory, store=self._store)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self), host, port, ssl=tls, backlog=1024
            )
        except BaseException:
            await self.close()
            raise
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stops listening and drops every connection."""
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.abort()
            await self._server.wait_closed()
            self._server = None
        if self._mailbox is not None:
            self._mailbox.close()
            self._mailbox = None

    async def wait_for(self, count: int) -> None:
        """Returns once `accepted` has reached that count."""
        if self.accepted < count:
            reached = asyncio.get_running_loop().create_future()
            self._waiters.append((count, reached))
            await reached

    def take(self, message: bytes, *, sender: str, recipients: list[str]) -> None:
        """Accepts a message: when this returns it may be acknowledged.

        Raises:
            OSError: It could not be kept.
        """
        if self._mailbox is not None:
            self._mailbox.append(message, at=self._clock.now(), sender=sender, recipients=recipients)
        self.accepted += 1
        if self._waiters:
            self._wake()

    def _wake(self) -> None:
        for count, reached in self._waiters:
            if self.accepted >= count and not reached.done():
                reached.set_result(None)
        self._waiters = [waiter for waiter in self._waiters if not waiter[1].done()]

    def joined(self, connection: Connection) -> None:
        """Notes an open connection."""
        self._connections.add(connection)

    def left(self, connection: Connection) -> None:
        """Forgets a connection that ended."""
        self._connections.discard(connection)


class Connection(asyncio.Protocol):
    """One client. Takes in any number of pipelined commands at once and answers them with one write."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._searched = 0  # octets of an incomplete message in which there is no end
        self._replies: list[bytes] = []
        self._in_message = False
        self._deaf = False
        self._secured = False
        self._trusted = sink.login is None
        self._waiting: asyncio.Task[None] | None = None  # nothing is read before it is done
        self._sender: str | None = None
        self._recipients: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._sink.joined(self)
        self._answer(Step.CONNECT, b"", b"220 sink.invalid ESMTP")
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._sink.left(self)
        if self._waiting is not None:
            self._waiting.cancel()

    def abort(self) -> None:
        """Drops the connection."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._waiting is None:
            self._advance()

    def _advance(self) -> None:
        position = 0
        while not self._deaf and self._waiting is None and (end := self._end(position)) > 0:
            unit = bytes(self._buffer[position:end])
            position = end
            if self._in_message:
                self._on_message(unit)
            else:
                self._on_command(unit.rstrip())
        del self._buffer[:position]
        self._limit()
        self._flush()

    def _end(self, start: int) -> int:
        """Where the next command or message ends; 0 if it is not all here yet."""
        if not self._in_message:
            return self._buffer.find(b"\n", start) + 1
        if self._buffer.startswith(b".\r\n", start):
            return start + 3
        found = self._buffer.find(b"\r\n.\r\n", start + self._searched)
        self._searched = 0 if found >= 0 else max(len(self._buffer) - start - 4, 0)
        return found + 5 if found >= 0 else 0

    def _limit(self) -> None:
        if self._deaf:
            self._buffer.clear()
        elif self._waiting is None and len(self._buffer) > (
            _LARGEST_MESSAGE if self._in_message else _LONGEST_LINE
        ):
            reply = "552 5.3.4 Too large" if self._in_message else "500 5.5.6 Line too long"
            self._carry_out(Action(reply=reply, then=Then.DROP))

    def _flush(self) -> None:
        if self._replies:
            self._transport.write(b"".join(self._replies))
            self._replies.clear()

    def _say(self, reply: bytes) -> None:
        self._replies.append(reply + b"\r\n")

    def _wait(self, work: Coroutine[None, None, None]) -> None:
        self._flush()
        self._waiting = asyncio.ensure_future(work)

    def _on_command(self, line: bytes) -> None:
        handle = _HANDLERS.get(line[:8].split(b" ", 1)[0].upper())
        if handle is None:
            self._say(b"500 5.5.2 Command not recognised")
        else:
            handle(self, line)

    def _answer(self, step: Step, line: bytes, usual: bytes, *, recipient: str = "") -> bool:
        """Answers as usual or as scripted; returns whether the command takes effect."""
        said = usual
        action = self._ask(step, line, recipient=recipient)
        if action is None:
            self._say(usual)
        else:
            self._carry_out(action)
            said = action.octets
        return said.startswith(b"3" if step is Step.DATA else b"2")

    def _ask(self, step: Step, line: bytes, *, recipient: str = "") -> Action | None:
        if self._sink.script is None:
            return None
        moment = Moment(
            step=step,
            message=self._sink.transactions,
            recipient=recipient or (self._recipients[0] if self._recipients else ""),
            line=line.decode("utf-8", "replace"),
        )
        return self._sink.script(moment)

    def _carry_out(self, action: Action) -> None:
        if action.after is not None:
            self._wait(self._carry_out_later(action, after=action.after))
            return
        self._replies.append(action.octets)
        self._deaf = self._deaf or action.then is not Then.GO_ON
        if action.then is Then.DROP:
            self._flush()
            self._transport.close()

    async def _carry_out_later(self, action: Action, *, after: asyncio.Event) -> None:
        await after.wait()
        self._waiting = None
        self._carry_out(replace(action, after=None))
        self._advance()

    def _hello(self, line: bytes) -> None:
        self._forget_envelope()
        lines = ["sink.invalid"]
        if line[:4].upper() == b"EHLO":
            lines += _EXTENSIONS
            lines += ["STARTTLS"] if self._sink.starttls is not None and not self._secured else []
            lines += ["AUTH PLAIN"] if self._sink.login is not None else []
        usual = "\r\n".join([*(f"250-{each}" for each in lines[:-1]), f"250 {lines[-1]}"])
        self._answer(Step.HELLO, line, usual.encode())

    def _starttls(self, line: bytes) -> None:
        if self._sink.starttls is None or self._secured:
            self._say(b"502 5.5.1 Not offered")
        elif self._answer(Step.STARTTLS, line, b"220 2.0.0 Go ahead"):
            self._deaf = (
                True  # RFC 3207 §4.2: what was pipelined behind it in the clear is not to be believed
            )
            self._wait(self._secure(self._sink.starttls))
            self._transport.pause_reading()

    async def _secure(self, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(self._transport, self, context, server_side=True)
        except OSError:
            self.abort()  # a client that does not trust the certificate
            return
        assert transport is not None
        self._transport = transport
        self._secured, self._deaf = True, False
        self._forget_envelope()
        self._waiting = None
        self._advance()  # what came right behind the handshake

    def _auth(self, line: bytes) -> None:
        expected = "\0".join(["", *(self._sink.login or ())]).encode()
        trusted = self._sink.login is not None and line == b"AUTH PLAIN " + base64.b64encode(expected)
        usual = b"235 2.7.0 Welcome" if trusted else b"535 5.7.8 User or password is wrong"
        self._trusted = self._answer(Step.AUTH, line, usual) and trusted

    def _mail(self, line: bytes) -> None:
        self._sink.transactions += 1
        sender = _path(line, after=b"MAIL FROM:")
        if sender is None:
            self._say(b"501 5.5.4 Write MAIL FROM:<address>")
        elif not self._trusted:
            self._say(b"530 5.7.0 Authentication required")
        elif self._sender is not None:
            self._say(b"503 5.5.1 One message at a time")
        elif self._answer(Step.MAIL, line, b"250 2.1.0 OK"):
            self._sender = sender

    def _rcpt(self, line: bytes) -> None:
        recipient = _path(line, after=b"RCPT TO:")
        if not recipient:
            self._say(b"501 5.5.4 Write RCPT TO:<address>")
        elif self._sender is None:
            self._say(b"503 5.5.1 MAIL first")
        elif self._answer(Step.RCPT, line, b"250 2.1.5 OK", recipient=recipient):
            self._recipients.append(recipient)

    def _data(self, line: bytes) -> None:
        usual = b"354 End with a dot" if self._recipients else b"503 5.5.1 RCPT first"
        self._in_message = self._answer(Step.DATA, line, usual)

    def _on_message(self, stuffed: bytes) -> None:
        self._in_message = False
        action = self._ask(Step.DOT, b"")
        if action is None:
            self._say(self._keep(stuffed))
        else:
            if action.accept:
                self._keep(stuffed)
            self._carry_out(action)
        self._forget_envelope()

    def _keep(self, stuffed: bytes) -> bytes:
        if not self._recipients:
            return b"554 5.5.1 No recipients"
        try:
            self._sink.take(_unstuffed(stuffed), sender=self._sender or "", recipients=self._recipients)
        except OSError as error:
            return f"452 4.3.1 Not kept: {error.strerror}".encode()
        return b"250 2.0.0 Kept"

    def _reset(self, line: bytes) -> None:
        self._forget_envelope()
        self._answer(Step.RESET, line, b"250 2.0.0 OK")

    def _noop(self, _line: bytes) -> None:
        self._say(b"250 2.0.0 OK")

    def _verify(self, _line: bytes) -> None:
        self._say(b"252 2.1.5 It may exist")

    def _quit(self, line: bytes) -> None:
        if self._answer(Step.QUIT, line, b"221 2.0.0 Bye"):
            self._carry_out(Action(then=Then.DROP))

    def _forget_envelope(self) -> None:
        self._sender = None
        self._recipients = []


_HANDLERS: dict[bytes, Callable[[Connection, bytes], None]] = {
    b"EHLO": Connection._hello,
    b"HELO": Connection._hello,
    b"STARTTLS": Connection._starttls,
    b"AUTH": Connection._auth,
    b"MAIL": Connection._mail,
    b"RCPT": Connection._rcpt,
    b"DATA": Connection._data,
    b"RSET": Connection._reset,
    b"NOOP": Connection._noop,
    b"VRFY": Connection._verify,
    b"QUIT": Connection._quit,
}


def _path(line: bytes, *, after: bytes) -> str | None:
    """The address between angle brackets, None if the command is not written so."""
    start, end = line.find(b"<"), line.find(b">")
    if line[: len(after)].upper() != after or not 0 <= start < end:
        return None
    return line[start + 1 : end].decode("utf-8", "replace")


def _unstuffed(stuffed: bytes) -> bytes:
    """The message without its terminating dot and without the dots that protected its lines (RFC 5321 §4.5.2)."""
    message = stuffed[:-3].replace(b"\r\n.", b"\r\n")
    return message[1:] if message.startswith(b".") else message


async def serve_forever(
    *,
    host: str,
    port: int,
    directory: Path,
    clock: Clock,
    listening: Callable[[int], None] = lambda _port: None,
) -> None:
    """Runs a sink until it is cancelled, and then returns.

    Args:
        host: Address to listen on.
        port: 0 takes a free one.
        directory: The mailbox.
        clock: Tells when a message was accepted.
        listening: Called once with the port, when connections are taken.

    Raises:
        OSError: The address cannot be had.
        MaintdError: Another sink writes to the directory.
    """
    sink = Sink(directory, clock=clock)
    listening(await sink.start(host, port))
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    finally:
        await sink.close()
