"""Making a ledger good that went back in time, with what the flight recorders of this host know and it has forgotten.

Recordings are matched by what never comes again: the uid of a campaign and the key of a recipient. The numbers of
batches do come again, and count only within the recording whose name the batch has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter

from sqlalchemy.engine import Connection

from maintd.clock import Clock
from maintd.database import Database
from maintd.errors import MaintdError
from maintd.ledger import batches, campaigns, deliveries
from maintd.ledger.batches import Batch
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import DELIVERY_MOVES, DeliveryState, sources
from maintd.mail.recording import forgotten
from maintd.mail.recording.entries import Binding
from maintd.mail.recording.forgotten import Forgotten, is_forgotten
from maintd.mail.recording.recorder import DAMAGED, DONE
from maintd.mail.recording.recordings import Orphan, adopt, judge
from maintd.mail.recording.recover import Scene, only_judge, recover
from maintd.mail.verdicts.outcomes import is_news

_CHUNK = 500
_DETAIL = "the ledger went back in time while the message may have been handed over"


class StillMailing(MaintdError):
    """A mail process of this host has not let its recorder go."""


@dataclass(kw_only=True)
class Replayed:
    """What a replay did, or would do at most.

    Attributes:
        recordings: How many were read.
        damaged: Names of those that cannot be read to their end.
        accepted: Deliveries that became `sent`.
        doubtful: Deliveries that became `uncertain`.
        released: Batches whose claim is of the past.
        forgotten: Editions that the ledger does not know, or not to their end.
    """

    recordings: int = 0
    damaged: list[str] = field(default_factory=list)
    accepted: int = 0
    doubtful: int = 0
    released: int = 0
    forgotten: list[Forgotten] = field(default_factory=list)


def replay(
    ledger: Database,
    *,
    scene: Scene,
    clock: Clock,
    dry_run: bool,
    claims_of_all: bool,
    progress: Callable[[int, int], None],
) -> Replayed:
    """Replays every recording of this host into a ledger that is held. May be done again: it comes to the same.

    What a recording accepts is sent. A dot without an answer makes its delivery uncertain, unless it is settled or the
    campaign's policy is to lose none. Claims end, and their marked windows are judged as those of the dead.

    Args:
        ledger: Held; nobody else writes deliveries.
        scene: Where the recordings are.
        clock: Dates what is written.
        dry_run: Only count; what several recordings say of one delivery may be counted more than once.
        claims_of_all: End the claims of every host, and not only of those whose recorder is here.
        progress: Told after every recording how many were read, and of how many.

    Raises:
        StillMailing: Somebody on this host may still be mailing; nothing was done.
        Unavailable: The ledger does not answer; do it again.
    """
    with only_judge(scene), _all_of(scene) as orphans:
        work = _Replay(ledger, scene, clock, dry_run=dry_run)
        for number, orphan in enumerate(orphans, start=1):
            work.take(orphan)
            progress(number, len(orphans))
        work.doubt()
        work.release({orphan.name: orphan for orphan in orphans}, of_all=claims_of_all)
        work.close_forgotten()
        if not dry_run:
            _put_away(orphans, clock=clock)
        return work.replayed


@contextlib.contextmanager
def _all_of(scene: Scene) -> Iterator[list[Orphan]]:
    """Every recording of this host, those of the dead held."""
    with contextlib.ExitStack() as stack:
        found = []
        for path in sorted(scene.directory.glob("*.rec")):
            orphan = stack.enter_context(adopt(path))
            if orphan is None and path.exists():
                raise StillMailing(
                    f"a mail process of this host still holds its flight recorder ({path}); stop maintd on this "
                    "host, or try again when that process has noticed that the ledger is held"
                )
            found += [] if orphan is None else [orphan]
        kept = sorted(path for suffix in (DONE, DAMAGED) for path in scene.directory.glob(f"*{suffix}"))
        yield [*found, *(Orphan(path) for path in kept)]


def _put_away(orphans: Sequence[Orphan], *, clock: Clock) -> None:
    for orphan in orphans:
        if orphan.path.suffix not in (DONE, DAMAGED):
            orphan.put_away(now=clock.now())


class _Replay:
    def __init__(self, ledger: Database, scene: Scene, clock: Clock, *, dry_run: bool) -> None:
        self._ledger = ledger
        self._scene = scene
        self._clock = clock
        self._dry_run = dry_run
        self._campaigns: dict[Binding, Campaign | None] = {}
        self._forgotten: dict[Binding, Forgotten] = {}
        #: Recipients of whom some recording has a dot and no answer; few, because a dot is open only for moments.
        self._unanswered: dict[Binding, set[bytes]] = {}
        self.replayed = Replayed()

    def take(self, orphan: Orphan) -> None:
        """Merges the replies of a recording, and keeps in mind what had none."""
        self.replayed.recordings += 1
        facts = groupby(self._read(orphan), key=itemgetter(0))
        for binding, of_binding in facts:
            while chunk := [outcome for _, outcome in islice(of_binding, _CHUNK)]:
                self._merge(binding, chunk)
        if orphan.damage is not None:
            self.replayed.damaged.append(orphan.path.name)

    def _read(self, orphan: Orphan) -> Iterator[tuple[Binding, Outcome]]:
        unanswered: dict[tuple[Binding, int], set[bytes]] = {}
        for binding, entry, did in orphan.attempts():
            keys = unanswered.setdefault((binding, entry.batch_id), set())
            if did is None:
                keys.add(entry.recipient_key)
            else:
                keys.discard(entry.recipient_key)
                yield binding, did
        for (binding, _), keys in unanswered.items():
            self._unanswered.setdefault(binding, set()).update(keys)

    def _merge(self, binding: Binding, outcomes: list[Outcome]) -> None:
        campaign = self._campaign(binding)
        accepted = {one.recipient_key for one in outcomes if one.state is DeliveryState.SENT}
        self._unanswered.get(binding, set()).difference_update(accepted)
        if campaign is None:
            self._forget(binding).mailed += len(accepted)
            return
        with self._transaction() as connection:
            keys = [one.recipient_key for one in outcomes]
            states = deliveries.states(connection, campaign.id, keys)
            unknown = accepted - states.keys()
            if unknown:
                self._forget(binding).mailed += len(unknown)
            news = [one for one in outcomes if is_news(one, states.get(one.recipient_key))]
            if campaign.uid != binding.uid:  # the edition was made anew: its line is another one
                news = [one for one in news if one.state is DeliveryState.SENT]
            self.replayed.accepted += sum(one.state is DeliveryState.SENT for one in news)
            if news and not self._dry_run:
                deliveries.settle(connection, campaign.id, news, now=self._clock.now())

    def doubt(self) -> None:
        """Makes uncertain what has no answer in any recording."""
        for binding, keys in self._unanswered.items():
            campaign = self._campaign(binding)
            if campaign is None:
                self._forget(binding).doubtful += len(keys)
            elif campaign.spec["uncertain"] != "never_lose":  # they are sent again in any case
                rest = iter(sorted(keys))
                while chunk := list(islice(rest, _CHUNK)):
                    self.replayed.doubtful += self._doubt(campaign, chunk)

    def _doubt(self, campaign: Campaign, keys: list[bytes]) -> int:
        with self._transaction() as connection:
            if self._dry_run:
                may = sources(DELIVERY_MOVES, DeliveryState.UNCERTAIN)
                states = deliveries.states(connection, campaign.id, keys)
                return sum(state in may for state in states.values())
            return deliveries.doubt(connection, campaign.id, keys, now=self._clock.now(), detail=_DETAIL)

    def release(self, orphans: dict[str, Orphan], *, of_all: bool) -> None:
        """Ends the claims of the past: nobody holds them any more who would know."""
        with self._ledger.read() as connection:
            held = batches.held(connection)
        for batch in held:
            orphan = orphans.get(batch.recorder or "")
            if orphan is not None or of_all:
                self.replayed.released += 1
                self.replayed.doubtful += self._release(batch, orphan)

    def _release(self, batch: Batch, orphan: Orphan | None) -> int:
        recording = orphan.recording(batch.id) if orphan is not None else None
        with self._transaction() as connection:
            if not self._dry_run:
                now = self._clock.now()
                return recover(connection, batch, recording=recording, scene=self._scene, now=now) or 0
            judged = judge(
                recording,
                recorder=batch.recorder,
                boot_id=self._scene.boot_id,
                machine_id=self._scene.machine_id,
                unsettled=deliveries.pending_keys(connection, batch.marked),
            )
            return len(judged.doubtful)

    def close_forgotten(self) -> None:
        """Sees to it that no edition begins anew of which mail went out."""
        self.replayed.forgotten = sorted(self._forgotten.values(), key=lambda one: one.name)
        if not self._dry_run:
            for one in self.replayed.forgotten:
                forgotten.close(self._ledger, one, clock=self._clock)

    def _campaign(self, binding: Binding) -> Campaign | None:
        """What the ledger has of an edition; None while that is not all of its recipients."""
        if binding not in self._campaigns:
            with self._ledger.read() as connection:
                campaign = campaigns.of_uid(connection, binding.uid) or campaigns.find(
                    connection, job=binding.job, edition=binding.edition
                )
            self._campaigns[binding] = None if is_forgotten(campaign) else campaign
        return self._campaigns[binding]

    def _forget(self, binding: Binding) -> Forgotten:
        return self._forgotten.setdefault(binding, Forgotten(binding=binding))

    def _transaction(self) -> AbstractContextManager[Connection]:
        return self._ledger.read() if self._dry_run else self._ledger.write()
