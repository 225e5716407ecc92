"""How much goes into one window."""

from __future__ import annotations

import math

#: A window should take no longer: pausing bites at its end, and its outcomes wait in memory.
_WINDOW_S = 0.5
#: Of a relay that is not known yet.
_FIRST = 4


class Pace:
    """How many messages a connection gets in one window, found by how long windows take.

    Kept over all batches of a process: each window costs a commit, and nearly the same whatever is in it.

    Attributes:
        depth: Messages of the next window for each connection.
    """

    def __init__(self, *, most: int) -> None:
        self.depth = min(most, _FIRST)
        self._most = most

    def took(self, seconds: float, *, of_s: float = math.inf) -> None:
        """Takes in how long a window took, and within how many seconds its messages had to be written."""
        most_s = min(_WINDOW_S, of_s)
        if seconds > most_s:
            self.depth = max(1, self.depth // 2)
        elif seconds < most_s / 2:
            self.depth = min(self._most, self.depth * 2)
