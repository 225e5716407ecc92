"""A mail server beside synchronous tests: the sink on an event loop of its own, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from maintd.clock import SystemClock
from maintd.smtp.faults import Script
from maintd.smtp.sink import Sink

T = TypeVar("T")


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port on 127.0.0.1 at which nobody answers, and that nobody is given but a sink that asks for it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


class SinkThread:
    """`with SinkThread(tmp_path / "mail") as sink: … sink.url …`.

    Attributes:
        sink: The server. Read it, but await on it only through this class.
        port: Where it listens, on 127.0.0.1; 0 until it does, unless one was asked for.
        url: That as a relay URL.
    """

    def __init__(
        self, mailbox: Path | None, *, store: bool = True, script: Script | None = None, port: int = 0
    ) -> None:
        self.sink = Sink(mailbox, clock=SystemClock(), store=store, script=script)
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sink", daemon=True)

    def __enter__(self) -> SinkThread:
        self._thread.start()
        self.port = self._run(self.sink.start(port=self.port))
        self.url = f"smtp://127.0.0.1:{self.port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self.sink.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, sink: Sink, *, port: int = 0) -> int:
        """Starts another server on the same event loop, and returns its port."""
        return self._run(sink.start(port=port))

    def stop(self, sink: Sink) -> None:
        """Stops a server; it can be started again."""
        self._run(sink.close())

    def wait_for(self, count: int, *, timeout: float = 120.0) -> None:
        """Returns once so many messages were accepted; raises `TimeoutError` if that takes too long."""
        self._run(asyncio.wait_for(self.sink.wait_for(count), timeout))

    def set(self, event: asyncio.Event) -> None:
        """Lets happen what a script waits for."""
        self._loop.call_soon_threadsafe(event.set)

    def call(self, function: Callable[[], None]) -> None:
        """Calls a function in the event loop of the sink, and returns when it has returned."""

        async def called() -> None:
            function()

        self._run(called())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
