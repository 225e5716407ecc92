"""Taking over a batch whose sender vanished: what was on the wire becomes doubtful, the rest is free again."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.ledger import batches, campaigns, deliveries
from maintd.ledger.batches import Batch
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Outcome
from maintd.ledger.lines import Stretch
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.mail.recording.recorder import recording_path
from maintd.mail.recording.recordings import Orphan, Recording, adopt, judge, orphans
from maintd.mail.verdicts.outcomes import is_news, vanished

logger = logging.getLogger(__name__)

#: Senders that one batch may cost: one is an accident, so many are a message that kills whoever makes or sends it.
MOST_LOSSES = 5
_CHUNK = 500
_CANCELLED = "the campaign was cancelled"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where a judge looks for flight recorders, and which of them can prove that something did not happen.

    Attributes:
        directory: Of the recordings of this host.
        boot_id: Of this host's running kernel.
        machine_id: Of this host.
    """

    directory: Path
    boot_id: str
    machine_id: str


def recover(
    connection: Connection, batch: Batch, *, recording: Recording | None, scene: Scene, now: datetime
) -> int | None:
    """Ends the claim of a vanished sender, settles what its recorder proves and names what nobody can know.

    Above the mark nothing was sent. Below it the recorder decides, as far as it can; without it every unsettled
    delivery there is doubtful.

    Args:
        connection: Of the ledger; everything happens in its transaction.
        batch: As it was last seen, its counter standing still or its holder known to be dead.
        recording: Of the recorder that the batch names; None when it is not here or its writer lives.
        scene: Where the judge is.
        now: When the outcomes are dated.

    Returns:
        How many deliveries became doubtful; None when somebody else moved the batch meanwhile.
    """
    if not batches.take_from_the_dead(connection, batch):
        return None
    # `batch.wire_hi` is up to date: the mark moves together with the counter, which the line above compared.
    unsettled = deliveries.pending(connection, batch.marked)
    ordinals = {delivery.recipient_key: delivery.ordinal for delivery in unsettled}
    judged = judge(
        recording,
        recorder=batch.recorder,
        boot_id=scene.boot_id,
        machine_id=scene.machine_id,
        unsettled=ordinals.keys(),
    )
    doubts = [vanished(key, ordinal=ordinals[key], owner=batch.owner) for key in judged.doubtful]
    deliveries.settle(connection, batch.campaign_id, [*judged.outcomes, *doubts], now=now)
    if any(one.state is DeliveryState.UNCERTAIN for one in [*judged.outcomes, *doubts]):
        campaign = campaigns.get(connection, batch.campaign_id)
        resend_as_allowed(connection, campaign, batch.marked, now=now)
    if batch.losses + 1 >= MOST_LOSSES:
        _pause(connection, batch, now=now)
    return len(doubts)


def _pause(connection: Connection, batch: Batch, *, now: datetime) -> None:
    reason = (
        f"{batch.losses + 1} senders vanished over the same {batch.hi - batch.lo} messages "
        f"(the last was {batch.owner}); find out what kills them"
    )
    if campaigns.move(connection, batch.campaign_id, to=CampaignState.PAUSED, now=now, reason=reason):
        name = campaigns.get(connection, batch.campaign_id).name
        logger.error("campaign %s is paused: %s", name, reason, extra={"campaign": name})


def recover_batch(ledger: Database, batch: Batch, *, scene: Scene, now: datetime) -> int | None:
    """Takes over a batch whose holder's counter stopped, with its recorder if that is here and free; see `recover`."""
    with only_judge(scene), _adopted(scene, batch.recorder) as orphan:
        recording = orphan.recording(batch.id) if orphan else None
        with ledger.write() as connection:
            doubtful = recover(connection, batch, recording=recording, scene=scene, now=now)
            done = orphan is not None and not batches.held_with(connection, orphan.name)
        if orphan is not None and done:
            _merge_acceptances(ledger, orphan, now=now)
            orphan.put_away(now=now)
    return doubtful


def recover_orphans(ledger: Database, *, scene: Scene, now: datetime) -> int:
    """Takes over what dead processes of this host held: the free lock proves their death, so no lease has to run out.

    Returns:
        How many deliveries became doubtful.
    """
    with only_judge(scene):
        return sum(
            _recover_orphan(ledger, orphan, scene=scene, now=now) for orphan in orphans(scene.directory)
        )


def _recover_orphan(ledger: Database, orphan: Orphan, *, scene: Scene, now: datetime) -> int:
    doubtful = 0
    with ledger.read() as connection:
        held = batches.held_with(connection, orphan.name)
    for batch in held:
        recording = orphan.recording(batch.id)
        with ledger.write() as connection:
            doubtful += recover(connection, batch, recording=recording, scene=scene, now=now) or 0
    _merge_acceptances(ledger, orphan, now=now)
    with ledger.read() as connection:
        # A commit of the dead may have come in behind the first look: then its recording is still wanted.
        done = not batches.held_with(connection, orphan.name)
    if done:
        orphan.put_away(now=now)
    return doubtful


def _merge_acceptances(ledger: Database, orphan: Orphan, *, now: datetime) -> None:
    """An acceptance holds whatever was believed since; anything else was about one attempt that others judged.

    It is of a campaign and a recipient: whoever judged may have let others have the batch.
    """
    accepted = ((binding.uid, one) for binding, one in orphan.facts() if one.state is DeliveryState.SENT)
    for uid, outcomes in groupby(accepted, key=itemgetter(0)):
        while chunk := [outcome for _, outcome in islice(outcomes, _CHUNK)]:
            with ledger.write() as connection:
                campaign = campaigns.of_uid(connection, uid)
                if campaign is not None:  # else the ledger was restored, or has forgotten it for its age
                    _merge(connection, campaign.id, chunk, now=now)


def _merge(connection: Connection, campaign_id: int, accepted: Sequence[Outcome], *, now: datetime) -> None:
    # Nearly all are known: whoever died had settled them long before.
    keys = [one.recipient_key for one in accepted]
    states = deliveries.states(connection, campaign_id, keys)
    news = [one for one in accepted if is_news(one, states.get(one.recipient_key))]
    deliveries.settle(connection, campaign_id, news, now=now)


@contextlib.contextmanager
def only_judge(scene: Scene) -> Iterator[None]:
    """One judge of this host at a time: a recording that another one reads must not look like one of the living."""
    if not scene.directory.is_dir():
        yield
        return
    with (scene.directory / "judge.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _adopted(scene: Scene, recorder: str | None) -> Iterator[Orphan | None]:
    if recorder is None:
        yield None
        return
    with adopt(recording_path(scene.directory, recorder)) as orphan:
        yield orphan


def resend_as_allowed(connection: Connection, campaign: Campaign, stretch: Stretch, *, now: datetime) -> None:
    """Puts doubtful deliveries of a stretch back into the line, if the campaign's policy is to lose none."""
    if campaign.spec["uncertain"] == "never_lose":
        copies = campaign.spec["max_copies"]
        deliveries.resend_doubtful(connection, stretch, now=now, max_copies=copies)


def settle_cancelled(connection: Connection, *, now: datetime, limit: int) -> int:
    """Settles what cancelled campaigns had with a sender, now that it let go or was found dead.

    Args:
        connection: Of the ledger.
        now: When the cancellations are dated.
        limit: Batches to look at.

    Returns:
        How many deliveries were cancelled.
    """
    settled = 0
    for batch in batches.left_by_cancelled(connection, limit=limit):
        settled += deliveries.cancel_range(connection, batch.stretch, now=now, detail=_CANCELLED)
        batches.close_left(connection, batch)
    return settled + deliveries.cancel_deferred(connection, now=now, detail=_CANCELLED)


def put_back_in_line(connection: Connection, *, now: datetime, limit: int) -> int:
    """Brings deferred deliveries of every sending campaign whose time has come back into its line.

    Returns:
        How many came back.
    """
    return sum(
        deliveries.put_back_in_line(connection, campaign.id, now=now, limit=limit)
        for campaign in campaigns.sending(connection)
    )
