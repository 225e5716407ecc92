from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest

from maintd.clock import SystemClock
from maintd.supervise import supervisor
from maintd.supervise.supervisor import Child, Supervisor

SLEEPER = Child(
    name="sleeper", command=[sys.executable, "-c", "import signal; signal.pause()"], environment={}
)


class Heard(logging.Handler):
    """What the supervisor says, to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._said: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._said.put_nowait(record.getMessage())

    async def until(self, words: str) -> None:
        async with asyncio.timeout(120):
            while words not in await self._said.get():
                pass


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    before = supervisor.logger.level
    supervisor.logger.addHandler(handler)
    supervisor.logger.setLevel(logging.INFO)
    yield handler
    supervisor.logger.removeHandler(handler)
    supervisor.logger.setLevel(before)


def test_a_child_that_could_not_be_started_again_is_tried_until_it_can(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def live() -> None:
        tree = Supervisor(clock=SystemClock(), stop_timeout=timedelta(seconds=10))
        await tree.start(SLEEPER)
        await heard.until("sleeper started with pid")
        first = tree.pid("sleeper")
        assert first is not None
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/no/such/python")
            os.kill(first, signal.SIGKILL)
            await heard.until("sleeper cannot be started: ")
        await heard.until("sleeper started with pid")
        assert tree.pid("sleeper") not in (None, first)
        await tree.stop()

    asyncio.run(live())
