"""What pipelining saves: messages a second over one connection, plain and pipelined, by the distance of the relay.

    python benchmarks/smtp.py [--count 2000] [--size 2000] [--rtt 0 1 5 20] [--json]

The relay is the sink, in a process of its own, keeping nothing; distance is made by a proxy in that process that holds
every octet back for half a round trip in each direction. Ratios are within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from maintd.clock import SystemClock
from maintd.smtp.lines import Lines
from maintd.smtp.opening import open_client, open_session
from maintd.smtp.plain import PlainSession
from maintd.smtp.relays import Relay, Security
from maintd.smtp.session import Outgoing, Result, Session, Timeouts, Verdict
from maintd.smtp.sink import Sink

ROUNDS = 3
SHORTEST_S = 4.0  # of one measurement, over a distance: fewer messages are enough there
TIMEOUTS = Timeouts(connect_s=30, command_s=30, dot_s=600)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Medians of a few rounds; a second and a message, CPU is that of the sender alone."""

    rtt_ms: float
    plain_per_s: float
    pipelined_per_s: float
    ratio: float
    plain_cpu_us: float
    pipelined_cpu_us: float


class Accepting:
    """Expects every message to be accepted."""

    def may_write_dot(self, index: int) -> bool:
        return True

    def result(self, index: int, result: Result) -> None:
        assert result.verdict is Verdict.ACCEPTED, result


class Distance(asyncio.Protocol):
    """One direction of a connection, or with `other` unset the half that opens the other one."""

    def __init__(self, *, port: int, delay_s: float, other: Distance | None = None) -> None:
        self._port = port
        self._delay_s = delay_s
        self._other = other
        self._held: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._other is None:
            other = Distance(port=self._port, delay_s=self._delay_s, other=self)
            self._other = other
            transport.pause_reading()
            loop = asyncio.get_running_loop()
            opening = loop.create_task(loop.create_connection(lambda: other, "127.0.0.1", self._port))
            opening.add_done_callback(lambda _: transport.resume_reading())

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        asyncio.get_running_loop().call_later(self._delay_s, self._pass_on)

    def _pass_on(self) -> None:
        data = self._held.popleft()
        if self._other is not None and self._other._transport is not None:
            self._other._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2_000, help="messages at distance 0")
    parser.add_argument("--size", type=int, default=2_000, help="octets of a message")
    parser.add_argument("--rtt", type=float, nargs="+", default=[0, 1, 5, 20], help="milliseconds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--relay", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.relay:
        serve(arguments.rtt)
        return
    figures = [asdict(each) for each in measure(arguments.rtt, count=arguments.count, size=arguments.size)]
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)


def serve(rtts_ms: list[float]) -> None:
    """Runs the sink and a proxy for each distance, and prints the ports."""
    # epoll sleeps whole milliseconds; select is exact enough for half a one.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    loop.run_until_complete(_serve(rtts_ms))


async def _serve(rtts_ms: list[float]) -> None:
    loop = asyncio.get_running_loop()
    port = await Sink(None, clock=SystemClock()).start()
    for rtt_ms in rtts_ms:
        at = port
        if rtt_ms:
            proxy = functools.partial(Distance, port=port, delay_s=rtt_ms / 2_000)
            server = await loop.create_server(proxy, "127.0.0.1", 0)
            at = server.sockets[0].getsockname()[1]
        print(at, flush=True)
    await asyncio.Event().wait()


def measure(rtts_ms: list[float], *, count: int, size: int) -> list[Figures]:
    command = [sys.executable, __file__, "--relay", "--rtt", *map(str, rtts_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as relay:
        assert relay.stdout is not None
        ports = [int(relay.stdout.readline()) for _ in rtts_ms]
        try:
            return [
                asyncio.run(_compare(rtt_ms, port=port, count=count, size=size))
                for rtt_ms, port in zip(rtts_ms, ports, strict=True)
            ]
        finally:
            relay.kill()


def sink_per_s(port: int, *, count: int, size: int) -> float:
    """Messages a second that the sink takes over one connection from a sender that never waits for a reply."""
    opening = b"EHLO bench.example\r\n"
    one = (b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA", b"x" * 70, b".", b"")
    line = b"\r\n".join([*one[:3], *[one[3]] * (size // 72), *one[4:]])
    began_s = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        sender = threading.Thread(target=connection.sendall, args=(opening + line * count + b"QUIT\r\n",))
        sender.start()
        accepted = sum(reply.startswith(b"250 2.0.0") for reply in connection.makefile("rb"))
        sender.join()
    assert accepted == count, f"{accepted} of {count}"
    return count / (time.perf_counter() - began_s)


async def _compare(rtt_ms: float, *, port: int, count: int, size: int) -> Figures:
    relay = Relay(host="127.0.0.1", port=port, security=Security.PLAIN)
    plain = PlainSession(
        await open_client(relay, timeouts=TIMEOUTS, hello="bench.example"), timeouts=TIMEOUTS
    )
    pipelined = await open_session(relay, timeouts=TIMEOUTS, hello="bench.example")
    messages = _messages(_enough(rtt_ms, count=count), size=size)
    rounds = [[await _send(session, messages) for session in (plain, pipelined)] for _ in range(ROUNDS)]
    for session in (plain, pipelined):
        await session.close()
    (plain_s, plain_cpu_s), (pipelined_s, pipelined_cpu_s) = (
        [statistics.median(each) for each in zip(*of_one, strict=True)]
        for of_one in zip(*rounds, strict=True)
    )
    return Figures(
        rtt_ms=rtt_ms,
        plain_per_s=1 / plain_s,
        pipelined_per_s=1 / pipelined_s,
        ratio=plain_s / pipelined_s,
        plain_cpu_us=plain_cpu_s * 1e6,
        pipelined_cpu_us=pipelined_cpu_s * 1e6,
    )


def _enough(rtt_ms: float, *, count: int) -> int:
    return count if not rtt_ms else max(20, min(count, int(SHORTEST_S * 1_000 / (5 * rtt_ms) / ROUNDS)))


def _messages(count: int, *, size: int) -> list[Outgoing]:
    content = Lines.of(b"Subject: x\r\n\r\n" + (b"x" * 70 + b"\r\n") * (size // 72))
    return [
        Outgoing(sender="a@example.com", recipient=f"{number}@example.com", content=content, smtputf8=False)
        for number in range(count)
    ]


async def _send(session: Session, messages: list[Outgoing]) -> tuple[float, float]:
    """Seconds and CPU seconds for one message."""
    start, start_cpu = time.perf_counter(), time.process_time()
    await session.send_all(messages, watcher=Accepting())
    took, took_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return took / len(messages), took_cpu / len(messages)


def show(figures: list[dict[str, float]]) -> None:
    table = Table("RTT", "plain", "pipelined", "ratio", "CPU plain", "CPU pipelined")
    for each in figures:
        table.add_row(
            f"{each['rtt_ms']:g} ms",
            f"{each['plain_per_s']:,.0f}/s",
            f"{each['pipelined_per_s']:,.0f}/s",
            f"{each['ratio']:.1f} ×",
            f"{each['plain_cpu_us']:.0f} µs",
            f"{each['pipelined_cpu_us']:.0f} µs",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
