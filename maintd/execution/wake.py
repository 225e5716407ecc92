"""How a use case asks for workers, without knowing the broker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from maintd.execution.queues import Queue


class Wake(Protocol):
    """Something that can tell workers to look into the ledger."""

    def __call__(self, queues: Iterable[Queue]) -> None:
        """Wakes workers of these queues; a wake-up may be lost, doubled or late without harm."""
        ...
