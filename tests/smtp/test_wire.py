"""The connection on which several replies may be awaited at once."""

from __future__ import annotations

import asyncio
import socket

import pytest

from maintd.smtp.wire import BrokenOff, Wire
from tests.smtp.relaying import Blinded


@pytest.fixture
def selector() -> Blinded:
    return Blinded()


async def wire_and_relay() -> tuple[Wire, socket.socket]:
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    return Wire(transport), theirs


def test_a_reply_that_came_in_time_is_read_however_late_we_look(selector: Blinded) -> None:
    async def scenario() -> int:
        wire, relay = await wire_and_relay()
        with relay:
            wire.write(b"NOOP\r\n", replies=1)
            relay.sendall(b"250 OK\r\n")
            selector.blind = True
            reply = await wire.reply(within_s=0)
            wire.break_off("the end")
        return reply.code

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        assert runner.run(scenario()) == 250


def test_who_does_not_answer_in_time_is_given_up() -> None:
    async def scenario() -> None:
        wire, relay = await wire_and_relay()
        with relay:
            wire.write(b"NOOP\r\n", replies=1)
            await wire.reply(within_s=0)

    with pytest.raises(BrokenOff, match="no answer in time"):
        asyncio.run(scenario())
