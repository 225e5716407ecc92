"""A ledger that went back in time: looking at it, making it good from this host's recordings, and accepting it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from maintd.errors import MaintdError
from maintd.execution.runtime import Runtime
from maintd.execution.worker import scene_of
from maintd.ledger import campaigns, deliveries
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import UNSETTLED_DELIVERIES, CampaignState
from maintd.ledger.timeline import LedgerHeld, Standing, hold, standing
from maintd.ledger.witness import Point, WitnessDamaged
from maintd.mail.recording.recorder import DAMAGED
from maintd.mail.recording.replay import Replayed, replay


class NotHeld(MaintdError):
    """There is nothing to accept: the ledger has not gone back as far as this host can tell."""


@dataclass(frozen=True, kw_only=True)
class LedgerStatus:
    """Where the ledger stands, and what this host knows of it.

    Attributes:
        seen: The newest point that this host has seen; None if it has seen none, or cannot know.
        held: Why nothing may happen outside; None when all is well.
        damaged: Recordings of this host that cannot be read to their end.
    """

    point: Point
    seen: Point | None
    held: str | None
    damaged: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GoesOn:
    """A campaign that is mailed when the ledger is let go.

    Attributes:
        campaign: Its name.
        state: `sending`, or `enrolling`: then more are added first.
        left: How many are still to be mailed, as the ledger stands: what is replayed into it makes that fewer.
    """

    campaign: str
    state: CampaignState
    left: int


def status(runtime: Runtime) -> LedgerStatus:
    """Looks at the ledger and at this host; nothing is written anywhere.

    Raises:
        Unavailable: The ledger does not answer.
    """
    directory = scene_of(runtime).directory
    return LedgerStatus(
        point=_standing(runtime).point,
        seen=_seen(runtime),
        held=runtime.timeline.trouble(),
        damaged=tuple(sorted(path.name for path in directory.glob(f"*{DAMAGED}"))),
    )


def hold_ledger(runtime: Runtime, *, reason: str) -> None:
    """Holds the ledger because a person says so; one that is held already keeps its reason.

    Raises:
        Unavailable: The ledger does not answer.
    """
    with runtime.ledger.write() as connection:
        hold(connection, reason)


def make_good(
    runtime: Runtime, *, dry_run: bool, claims_of_all: bool, progress: Callable[[int, int], None]
) -> Replayed:
    """Makes a held ledger good from this host's recordings; it stays held.

    Args:
        runtime: The surroundings.
        dry_run: Only count; nothing is written anywhere.
        claims_of_all: Also end the claims of other hosts' mail processes, whose recordings are not here.
        progress: Told after every recording how many were read, and of how many.

    Raises:
        NotHeld: The ledger is not held, and this host sees no reason.
        StillMailing: A mail process of this host still runs.
        Unavailable: The ledger does not answer; do it again.
    """
    _check_held(runtime)
    if not dry_run:
        with contextlib.suppress(LedgerHeld):
            runtime.timeline.look()  # writes the hold if only this host knows the reason, so that nobody acts meanwhile
    return replay(
        runtime.ledger,
        scene=scene_of(runtime),
        clock=runtime.clock,
        dry_run=dry_run,
        claims_of_all=claims_of_all,
        progress=progress,
    )


def accept(runtime: Runtime, *, progress: Callable[[int, int], None]) -> tuple[Replayed, Point]:
    """Makes the ledger good, ends all claims of the past and lets it go.

    Returns:
        What was replayed, and where the ledger stands now.

    Raises:
        NotHeld: The ledger is not held and this host sees no reason, or somebody else has accepted it meanwhile.
        StillMailing: A mail process of this host still runs.
        Unavailable: The ledger does not answer; do it again.
    """
    was = _standing(runtime)
    replayed = make_good(runtime, dry_run=False, claims_of_all=True, progress=progress)
    point = runtime.timeline.accept(was)
    if point is None:
        raise NotHeld("somebody else has accepted the ledger meanwhile")
    return replayed, point


def going_on(runtime: Runtime, *, forgotten: Collection[str]) -> list[GoesOn]:
    """The campaigns that are mailed when the ledger is let go, the oldest first.

    Args:
        runtime: The surroundings.
        forgotten: Names of those that accepting closes.

    Raises:
        Unavailable: The ledger does not answer.
    """
    with runtime.ledger.read() as connection:
        return [
            GoesOn(campaign=one.name, state=one.state, left=_left(connection, one))
            for one in campaigns.going_on(connection)
            if one.name not in forgotten
        ]


def _left(connection: Connection, campaign: Campaign) -> int:
    counts = deliveries.counts(connection, campaign.id)
    return sum(counts[state] for state in UNSETTLED_DELIVERIES)


def _check_held(runtime: Runtime) -> None:
    if runtime.timeline.trouble() is None:
        raise NotHeld(
            "the ledger is not held, and this host has seen nothing newer of it: there is nothing to accept. "
            "If you know better, `maintd ledger hold` comes first"
        )


def _standing(runtime: Runtime) -> Standing:
    with runtime.ledger.read() as connection:
        return standing(connection)


def _seen(runtime: Runtime) -> Point | None:
    try:
        return runtime.witness.seen()
    except WitnessDamaged:
        return None
