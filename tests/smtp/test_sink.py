from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.clock import SystemClock
from maintd.errors import MaintdError
from maintd.smtp.faults import Action, Step, Then
from maintd.smtp.mailbox import read_index
from maintd.smtp.sink import Connection, Sink, serve_forever
from tests.sinks import SinkThread
from tests.smtp.relaying import CONTENT, Once


class Wire:
    """A client that writes octets and reads lines."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._lines: IO[bytes] = self._socket.makefile("rb")
        assert self.line().startswith("220")

    def line(self) -> str:
        return self._lines.readline().decode().rstrip("\r\n")

    def say(self, octets: bytes) -> None:
        self._socket.sendall(octets)

    def codes(self, count: int) -> list[int]:
        return [int(self.line()[:3]) for _ in range(count)]

    def rest(self) -> bytes:
        return self._lines.read()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def wire(port: int) -> Iterator[Wire]:
    client = Wire(port)
    try:
        yield client
    finally:
        client.close()


def transaction(recipient: str = "b@example.com", content: bytes = CONTENT) -> bytes:
    return b"MAIL FROM:<a@example.com>\r\nRCPT TO:<%s>\r\nDATA\r\n%s.\r\n" % (recipient.encode(), content)


def test_ehlo_offers_what_a_bulk_sender_uses() -> None:
    with SinkThread(None) as sink, wire(sink.port) as client:
        client.say(b"EHLO client.example\r\n")
        offers = [client.line() for _ in range(6)]
    assert [line[:4] for line in offers] == ["250-"] * 5 + ["250 "]
    assert {line[4:].split()[0] for line in offers[1:]} == {
        "PIPELINING",
        "SIZE",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
    }


def test_any_number_of_transactions_may_come_at_once(tmp_path: Path) -> None:
    with SinkThread(tmp_path) as sink, wire(sink.port) as client:
        client.say(b"EHLO c\r\n" + b"".join(transaction(f"{n}@example.com") for n in range(50)) + b"QUIT\r\n")
        assert client.codes(6) == [250] * 6
        assert client.codes(200) == [250, 250, 354, 250] * 50
        assert client.codes(1) == [221]
        assert client.line() == ""  # closed
        sink.wait_for(50)
    assert [accepted.recipients for accepted in read_index(tmp_path)] == [
        (f"{n}@example.com",) for n in range(50)
    ]


def test_the_index_tells_everything_that_is_asked_of_it(tmp_path: Path) -> None:
    head = b"Message-ID:\r\n <1@x>\r\nx-maintd-CAMPAIGN: weekly 2026\r\nX-Other: a\r\n b\r\n"
    content = head + b"\r\nX-Maintd-Campaign: no\r\n..\r\n"
    with SinkThread(tmp_path) as sink, wire(sink.port) as client:
        two = b"mail from: <a@example.com> SIZE=3\r\nRCPT TO:<b@x>\r\nRCPT TO:<c@x>\r\nDATA\r\n"
        client.say(two + content + b".\r\n" + transaction(content=b""))
        assert client.codes(9) == [250, 250, 250, 354, 250, 250, 250, 354, 250]
    first, second = read_index(tmp_path)
    assert (first.seq, first.sender, first.recipients) == (1, "a@example.com", ("b@x", "c@x"))
    assert (first.message_id, first.campaign) == ("<1@x>", "weekly 2026")
    assert first.size == len(content) - 1 == (tmp_path / "messages" / "1.eml").stat().st_size
    assert datetime.fromisoformat(first.at).utcoffset() is not None
    assert (second.seq, second.message_id, second.campaign, second.size) == (2, "", "", 0)


def test_messages_need_not_be_stored_to_be_counted(tmp_path: Path) -> None:
    with SinkThread(tmp_path, store=False) as sink, wire(sink.port) as client:
        client.say(transaction())
        assert client.codes(4)[-1] == 250
    assert len(list(read_index(tmp_path))) == 1
    assert list((tmp_path / "messages").iterdir()) == []


@pytest.mark.parametrize(
    ("commands", "codes"),
    [
        (b"MAIL FROM:<a@x>\r\nMAIL FROM:<a@x>\r\n", [250, 503]),
        (b"RCPT TO:<a@x>\r\n", [503]),
        (b"MAIL FROM:<a@x>\r\nRSET\r\nRCPT TO:<a@x>\r\n", [250, 250, 503]),
        (b"MAIL FROM:<a@x>\r\nEHLO c\r\n", [250] * 7),
        (b"MAIL FROM:<>\r\nDATA\r\n", [250, 503]),
        (b"MAIL a@x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<>\r\n", [501, 250, 501]),
        (
            b"NOOP\r\nVRFY a\r\nHELO c\r\nSTARTTLS\r\nAUTH PLAIN eA==\r\nEXPN a\r\n\r\n",
            [250, 252, 250, 502, 535, 500, 500],
        ),
        (b"NOOP\nNOOP\n", [250, 250]),
        (b"x" * 10_000, [500]),
    ],
)
def test_commands_out_of_order_are_refused(commands: bytes, codes: list[int]) -> None:
    with SinkThread(None) as sink, wire(sink.port) as client:
        client.say(commands)
        assert client.codes(len(codes)) == codes


class Recording(asyncio.Transport):
    """Remembers what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)


@given(st.lists(st.integers(1, 40), max_size=30))
def test_it_does_not_matter_how_the_octets_arrive(sizes: list[int]) -> None:
    stream = (
        transaction(content=b"")
        + transaction(content=b"..a\r\n\r\n..\r\n")
        + b"NOOP\r\n"
        + transaction(content=b"..\r\n")
    )

    def answered(chunks: list[bytes]) -> bytes:
        sink, transport = Sink(None, clock=SystemClock()), Recording()
        connection = Connection(sink)
        connection.connection_made(transport)
        for chunk in chunks:
            connection.data_received(chunk)
        assert sink.accepted == 3
        return transport.written

    chunks, rest = [], stream
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    assert answered([*chunks, rest]) == answered([stream])


def test_what_cannot_be_kept_is_not_acknowledged(tmp_path: Path) -> None:
    with SinkThread(tmp_path) as sink, wire(sink.port) as client:
        shutil.rmtree(tmp_path / "messages")
        client.say(transaction())
        assert client.codes(4) == [250, 250, 354, 452]
        assert sink.sink.accepted == 0
    assert list(read_index(tmp_path)) == []


def test_a_mailbox_is_continued_and_a_torn_line_was_never_acknowledged(tmp_path: Path) -> None:
    for _ in range(2):
        with SinkThread(tmp_path) as sink, wire(sink.port) as client:
            client.say(transaction())
            assert client.codes(4)[-1] == 250
        with (tmp_path / "index.jsonl").open("a") as index:
            index.write('{"seq": 77, "at": "20')
        assert [accepted.seq for accepted in read_index(tmp_path)][-1] != 77
    assert [accepted.seq for accepted in read_index(tmp_path)] == [1, 2]


def test_a_mailbox_without_an_index_is_empty(tmp_path: Path) -> None:
    assert list(read_index(tmp_path / "nothing")) == []


def test_a_mailbox_has_one_writer(tmp_path: Path) -> None:
    with SinkThread(tmp_path), pytest.raises(MaintdError, match="another sink"), SinkThread(tmp_path):
        pass


def test_a_script_may_store_and_then_vanish(tmp_path: Path) -> None:
    script = Once(Step.DOT, Action(accept=True, then=Then.DROP))
    with SinkThread(tmp_path, script=script) as sink, wire(sink.port) as client:
        client.say(transaction())
        assert client.codes(3) == [250, 250, 354]
        assert client.line() == ""
    assert len(list(read_index(tmp_path))) == 1


@pytest.mark.parametrize("reply", [b"2", b"250-half a reply", b"\xff\0\r\n", b"250 one\r\n250 two\r\n"])
def test_a_script_may_write_any_octets(reply: bytes) -> None:
    script = Once(Step.MAIL, Action(reply=reply, then=Then.DROP))
    with SinkThread(None, script=script) as sink, wire(sink.port) as client:
        client.say(b"MAIL FROM:<a@x>\r\n")
        assert client.rest() == reply


def test_a_script_may_hold_a_reply_back_and_what_is_behind_it_waits() -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        sink = Sink(
            None, clock=SystemClock(), script=Once(Step.RCPT, Action(reply="250 At last", after=go_on))
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", await sink.start())
        await reader.readline()
        writer.write(transaction())
        assert (await reader.readline()).startswith(b"250 2.1.0")
        assert sink.accepted == 0
        go_on.set()
        assert await reader.readline() == b"250 At last\r\n"
        assert [(await reader.readline())[:3] for _ in range(2)] == [b"354", b"250"]
        assert sink.accepted == 1
        writer.close()
        await sink.close()

    asyncio.run(main())


def test_a_script_may_grant_a_message_without_recipients_and_it_is_not_taken() -> None:
    script = Once(Step.DATA, Action(reply="354 Go on"))
    with SinkThread(None, script=script) as sink, wire(sink.port) as client:
        client.say(b"MAIL FROM:<a@x>\r\nDATA\r\n.\r\nMAIL FROM:<a@x>\r\n")
        assert client.codes(4) == [250, 354, 554, 250]
        assert sink.sink.accepted == 0


SERVER = """
import asyncio, sys
from pathlib import Path
from maintd.clock import SystemClock
from maintd.smtp.sink import serve_forever

listening = lambda port: print(port, flush=True)
directory = Path(sys.argv[1])
asyncio.run(serve_forever(host="127.0.0.1", port=0, directory=directory, clock=SystemClock(), listening=listening))
"""

CLIENT = """
import socket, sys

link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
lines = link.makefile("rb")
lines.readline()
for number in range(1_000_000):
    content = b"Message-ID: <%d>\\r\\n\\r\\n" % number
    link.sendall(b"MAIL FROM:<a@x>\\r\\nRCPT TO:<b@x>\\r\\nDATA\\r\\n" + content + b".\\r\\n")
    assert [lines.readline()[:3] for _ in range(4)] == [b"250", b"250", b"354", b"250"]
    print(f"<{number}>", flush=True)
"""


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def acknowledged(client: subprocess.Popen[str], *, at_least: int) -> set[str]:
    """Reads so many acknowledgements of the client."""
    assert client.stdout is not None
    return {client.stdout.readline().strip() for _ in range(at_least)}


def indexed(mailbox: Path) -> set[str]:
    return {accepted.message_id for accepted in read_index(mailbox)}


def test_what_was_acknowledged_is_in_the_index_when_the_client_is_killed(tmp_path: Path) -> None:
    with SinkThread(tmp_path) as sink, process(CLIENT, str(sink.port)) as client:
        known = acknowledged(client, at_least=50)
        client.kill()
        assert client.stdout is not None
        known |= {line.strip() for line in client.stdout if line.endswith("\n")}
        assert known <= indexed(tmp_path)


def test_what_was_acknowledged_is_in_the_index_when_the_sink_is_killed(tmp_path: Path) -> None:
    with process(SERVER, str(tmp_path)) as server:
        assert server.stdout is not None
        with process(CLIENT, server.stdout.readline().strip()) as client:
            known = acknowledged(client, at_least=50)
            server.kill()
            server.wait()
            assert client.stdout is not None
            known |= {line.strip() for line in client.stdout if line.endswith("\n")}
    assert known <= indexed(tmp_path)


def test_a_served_sink_ends_quietly_when_it_is_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            serve_forever(
                host="127.0.0.1", port=0, directory=tmp_path, clock=SystemClock(), listening=port.set_result
            )
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", await port)
        assert (await reader.readline()).startswith(b"220 ")
        serving.cancel()
        await serving
        assert await reader.read() == b""
        writer.close()

    asyncio.run(main())


def test_the_index_is_one_json_object_a_line(tmp_path: Path) -> None:
    with SinkThread(tmp_path) as sink, wire(sink.port) as client:
        client.say(transaction("jürgen@exämple.com"))
        assert client.codes(4)[-1] == 250
        (line,) = (tmp_path / "index.jsonl").read_bytes().splitlines()
    assert json.loads(line)["recipients"] == ["jürgen@exämple.com"]
    assert list(json.loads(line)) == ["seq", "at", "sender", "recipients", "message_id", "campaign", "size"]
