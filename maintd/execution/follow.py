"""Watching a run in the ledger, with its steps and campaigns, until it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.errors import UsageError
from maintd.ledger import campaigns, runs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.runs import Run
from maintd.ledger.states import RUN_MOVES, RunState, is_final

_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A run at one moment.

    Attributes:
        steps: Of a pipeline, in the order they were made.
        campaigns: The campaigns that it and its steps work on, by the id of the run.
    """

    run: Run
    steps: tuple[Run, ...]
    campaigns: Mapping[int, Campaign]

    @property
    def over(self) -> bool:
        """Whether nothing moves any more by itself: it has ended, or waits for a person."""
        return self.run.state is RunState.PARKED or is_final(RUN_MOVES, self.run.state)


def standing(connection: Connection, run_id: int) -> Standing:
    """How a run stands.

    Raises:
        UsageError: There is no such run.
    """
    run = runs.get(connection, run_id)
    if run is None:
        raise UsageError(f"there is no run {run_id}; `maintd runs` lists the newest")
    steps = tuple(runs.steps(connection, run_id))
    return Standing(
        run=run, steps=steps, campaigns=campaigns.of_runs(connection, [run_id, *(step.id for step in steps)])
    )


def follow(run_id: int, ledger: Database, *, pause: Callable[[float], object]) -> Iterator[Standing]:
    """Looks at a run five times a second until it is over; the last look shows its end.

    Args:
        run_id: Of the run.
        ledger: Where it is.
        pause: Waits for so many seconds.

    Raises:
        UsageError: There is no such run.
        Unavailable: The ledger does not answer (any more); the run goes on.
    """
    while True:
        with ledger.read() as connection:
            now = standing(connection, run_id)
        yield now
        if now.over:
            return
        pause(_LOOK_EVERY_S)
