"""Results on their way to who sends."""

from __future__ import annotations

from maintd.smtp.session import Result, Watcher


class InOrder:
    """Passes results on in the order of the messages, each exactly once; one that is known early waits its turn."""

    def __init__(self, watcher: Watcher, *, count: int) -> None:
        """Begins with message 0.

        Args:
            watcher: Who is told.
            count: How many messages there are.
        """
        self._watcher = watcher
        self._count = count
        self._next = 0
        self._early: dict[int, Result] = {}

    def put(self, index: int, result: Result) -> None:
        """Takes in the result of a message that has none yet."""
        self._early[index] = result
        while self._next in self._early:
            index, self._next = self._next, self._next + 1
            self._watcher.result(index, self._early.pop(index))

    def rest(self, result: Result) -> None:
        """Gives the same result to every message that has none yet."""
        while self._next < self._count:
            self.put(self._next, result)
