"""Watching a run in the ledger, with its steps and campaigns, until it is over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.errors import UsageError
from maintd.ledger import campaigns, deliveries, runs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.runs import Run
from maintd.ledger.states import (
    RUN_MOVES,
    UNSETTLED_DELIVERIES,
    CampaignState,
    DeliveryState,
    RunState,
    is_final,
)

_LOOK_EVERY_S = 0.2
#: Looks from one counting of deliveries to the next: of a million of them it takes a second.
_COUNT_EVERY = 25


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A run at one moment.

    Attributes:
        steps: Of a pipeline, in the order they were made.
        campaigns: The campaigns that it and its steps work on, by the id of the run.
        settled: Of those that are sending, if they were counted: how many deliveries ended in which state.
        idle: The ids of runs that found their edition finished: the mails it counts are an earlier run's.
    """

    run: Run
    steps: tuple[Run, ...]
    campaigns: Mapping[int, Campaign]
    settled: Mapping[int, Mapping[DeliveryState, int]] = field(default_factory=dict)
    idle: frozenset[int] = frozenset()

    @property
    def over(self) -> bool:
        """Whether nothing moves any more by itself: it has ended, or waits for a person."""
        campaign = self.campaigns.get(self.run.id)
        if self.run.state is RunState.UNDERWAY and campaign is not None:
            return campaign.state is CampaignState.PAUSED
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
    all_runs = [run, *steps]
    working = campaigns.of_runs(connection, [one.id for one in all_runs])
    return Standing(
        run=run,
        steps=steps,
        campaigns=working,
        idle=found_finished(connection, all_runs),
    )


def counted(connection: Connection, now: Standing) -> Standing:
    """The same, with the deliveries that are settled by now."""
    sending = [one.id for one in (now.run, *now.steps) if one.state is RunState.UNDERWAY]
    settled = {id: _settled(connection, now.campaigns[id]) for id in sending if id in now.campaigns}
    return replace(now, settled=settled)


def _settled(connection: Connection, campaign: Campaign) -> dict[DeliveryState, int]:
    counts = deliveries.counts(connection, campaign.id)
    return {state: count for state, count in counts.items() if state not in UNSETTLED_DELIVERIES}


def found_finished(connection: Connection, found: Iterable[Run]) -> frozenset[int]:
    """Which of these runs began when their edition was finished already, by their ids."""
    return frozenset(one.id for one in found if _was_finished(connection, one))


def _was_finished(connection: Connection, one: Run) -> bool:
    job, _, edition = str((one.result or {}).get("campaign", "")).partition("/")
    campaign = campaigns.find(connection, job=job, edition=edition) if edition else None
    if campaign is None or campaign.state is not CampaignState.FINISHED:
        return False
    if campaign.finished_at is None or one.started_at is None:
        return False
    return campaign.finished_at <= one.started_at


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
    settled: Mapping[int, Mapping[DeliveryState, int]] = {}
    for look in itertools.count():
        with ledger.read() as connection:
            now = standing(connection, run_id)
            if look % _COUNT_EVERY == 0:
                settled = counted(connection, now).settled
        now = replace(now, settled=settled)
        yield now
        if now.over:
            return
        pause(_LOOK_EVERY_S)
