"""The product without one of its guards: what the checker must notice, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.ledger import batches, deliveries
from maintd.ledger.batches import Batch
from maintd.ledger.states import BatchState
from maintd.ledger.tables import batches as table
from maintd.mail.recording import recover
from maintd.mail.recording.recorder import Recorder
from maintd.mail.recording.recordings import Judgement, Recording, judge
from maintd.mail.recording.replay import _Replay
from maintd.mail.sending.held import HeldBatch
from maintd.smtp.pipelined import PipelinedSession


class Guard(StrEnum):
    """What can be taken out."""

    CLAIM = "claim"  #: only a batch that nobody holds is claimed
    MARK = "mark"  #: the mark is set before the dots
    BOOT = "boot"  #: what is missing in a recording proves something only since the same boot
    MERGE = "merge"  #: a reply that was read counts although the claim was lost
    RESET = "reset"  #: RSET comes before the next transaction where one was left open
    INTENT = "intent"  #: the recorder has a dot before it is written
    PROOF = "proof"  #: of what the recording of the dead does not have no dot was written
    TAKEOVER = "takeover"  #: who begins to mail merges what the dead of that host had read
    REPLAY = "replay"  #: the recordings of all hosts are replayed into a ledger that went back
    SUPPRESSION = "suppression"  #: who came onto the suppression list is looked up again with the mark


def take_out(guards: Iterable[str]) -> None:
    """Removes guards from this process."""
    for guard in guards:
        place, name, value = _REMOVED[Guard(guard)]
        setattr(place, name, value)


def _claim_any(
    connection: Connection, campaign_id: int, lane: int, holder: Mapping[str, str | None]
) -> Batch | None:
    open_ones = sa.select(table.c.id).where(
        table.c.campaign_id == campaign_id, table.c.lane == lane, table.c.state == BatchState.OPEN
    )
    found = connection.scalars(open_ones.order_by(table.c.id).limit(1)).first()
    if found is None:
        return None
    connection.execute(sa.update(table).where(table.c.id == found).values(**holder))
    return batches.get(connection, found)


def _mark_nothing(connection: Connection, batch: Batch, *, wire_hi: int) -> None:
    batches.beat(connection, batch)


def _same_boot(_self: Recording, **_judge: str) -> bool:
    return True


def _keep_nothing(self: HeldBatch) -> None:
    self.known.clear()
    self.settled = True


def _intend_nothing(_self: Recorder, _batch_id: int, _recipient_key: bytes) -> None:
    """Writes nothing."""


def _finished(_self: PipelinedSession) -> bool:
    return False


def _unfinished(_self: PipelinedSession, _value: bool) -> None:
    """Forgets it."""


def _nobody(*_args: Any, **_kwargs: Any) -> set[bytes]:
    return set()


def _judge_without(_recording: Recording | None, **scene: Any) -> Judgement:
    return judge(None, **scene)


def _do_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Merges nothing, replays nothing."""


_REMOVED: Mapping[Guard, tuple[Any, str, Callable[..., Any] | property]] = {
    Guard.CLAIM: (batches, "_claim_left", _claim_any),
    Guard.MARK: (batches, "mark", _mark_nothing),
    Guard.BOOT: (Recording, "same_boot", _same_boot),
    Guard.MERGE: (HeldBatch, "keep_facts", _keep_nothing),
    Guard.RESET: (PipelinedSession, "_unfinished", property(_finished, _unfinished)),
    Guard.INTENT: (Recorder, "intend", _intend_nothing),
    Guard.PROOF: (recover, "judge", _judge_without),
    Guard.TAKEOVER: (recover, "_merge_acceptances", _do_nothing),
    Guard.REPLAY: (_Replay, "take", _do_nothing),
    Guard.SUPPRESSION: (deliveries, "suppressed_keys", _nobody),
}
