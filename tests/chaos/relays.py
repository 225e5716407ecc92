"""The mail servers that a performance hands its mail to: all on one event loop, with one script between them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

from maintd.clock import SystemClock
from maintd.smtp.mailbox import Accepted, read_index
from maintd.smtp.sink import Sink
from tests.chaos.weather import Relay, Weather
from tests.sinks import SinkThread

#: Of one relay, of two, of three: the last of three gets mail only while no other takes any.
_OPTIONS = (("",), ("?weight=2", ""), ("?weight=2", "?messages=20", "?weight=0"))


class Relays:
    """Some relays; the script has the account of what all of them do."""

    def __init__(self, thread: SinkThread, others: list[Sink], *, script: Relay) -> None:
        self._thread = thread
        self.script = script
        self._sinks = [thread.sink, *others]
        for sink in self._sinks:
            sink.script = script
        self._ports = [thread.port, *(thread.start(sink) for sink in others)]

    @property
    def url(self) -> str:
        """Of all of them, as a setting has it."""
        options = _OPTIONS[len(self._sinks) - 1]
        return " ".join(
            f"smtp://127.0.0.1:{port}{option}" for port, option in zip(self._ports, options, strict=True)
        )

    @property
    def accepted(self) -> int:
        """How many messages they have accepted."""
        return self.script.accepted()

    def release_answers(self) -> None:
        """Gives the answers that are held back."""
        self._thread.call(self.script.release)

    def settle_down(self) -> None:
        """From now on they behave."""
        self._thread.call(self.script.settle_down)

    @contextlib.contextmanager
    def one_away(self, draw: random.Random) -> Iterator[None]:
        """While the block runs, one does not listen, and its connections are dropped."""
        number = draw.randrange(len(self._sinks))
        self._thread.stop(self._sinks[number])
        try:
            yield
        finally:
            self._thread.start(self._sinks[number], port=self._ports[number])

    def close(self) -> None:
        """Ends those besides the first, which its thread ends."""
        for sink in self._sinks[1:]:
            self._thread.stop(sink)


@contextlib.contextmanager
def relays(directory: Path, *, count: int, weather: Weather, draw: random.Random) -> Iterator[Relays]:
    """So many relays while the block runs, with their mailboxes in a directory."""
    others = [
        Sink(directory / f"mailbox-{number}", clock=SystemClock(), store=False) for number in range(1, count)
    ]
    with SinkThread(directory / "mailbox-0", store=False) as thread:
        script = Relay(
            weather=weather,
            draw=draw,
            accepted=lambda: sum(sink.accepted for sink in (thread.sink, *others)),
            notes=directory / "faults.jsonl",
        )
        with contextlib.closing(Relays(thread, others, script=script)) as found:
            yield found


def taken(directory: Path) -> tuple[Accepted, ...]:
    """What all of them have accepted."""
    return tuple(
        message for mailbox in sorted(directory.glob("mailbox-*")) for message in read_index(mailbox)
    )
