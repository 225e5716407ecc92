"""The states of the ledger's rows, and every move between them. What is not listed here cannot happen."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class RunState(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"  #: a pipeline step whose predecessors have not all ended
    QUEUED = "queued"  #: to be taken by a worker, at `due_at` or later
    RUNNING = "running"  #: claimed by one worker, which holds the token and moves the counter
    UNDERWAY = "underway"  #: its work lives in rows of its own (steps, deliveries); no worker holds it
    SUCCEEDED = "succeeded"  #: it did all it should
    FAILED = "failed"  #: it was tried and cannot or may no longer be tried again; the reason says why
    DEAD = "dead"  #: its workers vanished as often as is allowed
    PARKED = "parked"  #: its worker vanished and the job says `on_lost = "park"`: a person decides
    SKIPPED = "skipped"  #: it did not run, for the recorded reason
    CANCELLED = "cancelled"  #: a person took it back


class Cause(StrEnum):
    """Why a run was made."""

    SCHEDULE = "schedule"  #: its instant had come
    MANUAL = "manual"  #: somebody asked for it
    STEP = "step"  #: a pipeline has it as a step


class CampaignState(StrEnum):
    """Where one edition of a mailing stands."""

    ENROLLING = "enrolling"  #: the audience streams in; nothing is sent
    SENDING = "sending"  #: enrolment is complete; batches are cut and sent
    PAUSED = "paused"  #: no new window goes to the wire until somebody resumes it
    FINISHED = "finished"  #: nothing is left to send
    CANCELLED = "cancelled"  #: given up; what was not sent never will be


class DeliveryState(StrEnum):
    """What became of one recipient of one campaign."""

    PENDING = "pending"  #: not settled; on the wire if its batch's `wire_hi` is beyond it
    DEFERRED = "deferred"  #: the relay said "later"; comes back into the line at `due_at`
    SENT = "sent"  #: the relay's acceptance was read
    REJECTED = "rejected"  #: refused for good, by the relay or before it
    UNCERTAIN = "uncertain"  #: nobody can know: the last dot may have been written and no reply was read
    SUPPRESSED = "suppressed"  #: the recipient is on the suppression list
    EXPIRED = "expired"  #: its time had passed before it could be sent
    CANCELLED = "cancelled"  #: the campaign was given up before it was sent, or a person dropped it


class BatchState(StrEnum):
    """Where a claimed range of ordinals stands."""

    OPEN = "open"  #: some of its deliveries are not settled
    DONE = "done"  #: every one of them is


State = TypeVar("State", bound=StrEnum)

_R = RunState
RUN_MOVES: Mapping[RunState, frozenset[RunState]] = {
    _R.WAITING: frozenset({_R.QUEUED, _R.SKIPPED, _R.CANCELLED}),
    _R.QUEUED: frozenset({_R.RUNNING, _R.CANCELLED}),
    _R.RUNNING: frozenset({_R.QUEUED, _R.UNDERWAY, _R.SUCCEEDED, _R.FAILED, _R.DEAD, _R.PARKED}),
    _R.UNDERWAY: frozenset({_R.SUCCEEDED, _R.FAILED, _R.CANCELLED}),
    _R.PARKED: frozenset({_R.QUEUED, _R.CANCELLED}),
    _R.SUCCEEDED: frozenset(),
    _R.FAILED: frozenset(),
    _R.DEAD: frozenset(),
    _R.SKIPPED: frozenset(),
    _R.CANCELLED: frozenset(),
}

_C = CampaignState
CAMPAIGN_MOVES: Mapping[CampaignState, frozenset[CampaignState]] = {
    _C.ENROLLING: frozenset({_C.SENDING, _C.CANCELLED}),
    _C.SENDING: frozenset({_C.PAUSED, _C.FINISHED, _C.CANCELLED}),
    _C.PAUSED: frozenset({_C.SENDING, _C.CANCELLED}),
    # A person may send a doubtful message again after the campaign has finished.
    _C.FINISHED: frozenset({_C.SENDING}),
    _C.CANCELLED: frozenset(),
}

_D = DeliveryState
_SETTLED = frozenset({_D.SENT, _D.REJECTED, _D.UNCERTAIN, _D.SUPPRESSED, _D.EXPIRED, _D.CANCELLED})
DELIVERY_MOVES: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    _D.PENDING: _SETTLED | {_D.DEFERRED},
    # A ledger that went back may have forgotten the last attempt, of which nobody knows what became.
    _D.DEFERRED: frozenset({_D.PENDING, _D.SENT, _D.UNCERTAIN, _D.EXPIRED, _D.CANCELLED}),
    # Proof, policy or a person settles a doubt.
    _D.UNCERTAIN: frozenset({_D.SENT, _D.REJECTED, _D.DEFERRED, _D.CANCELLED}),
    # An acceptance that was read is a fact, whatever was believed before.
    _D.REJECTED: frozenset({_D.SENT}),
    _D.SUPPRESSED: frozenset({_D.SENT}),
    _D.EXPIRED: frozenset({_D.SENT}),
    _D.CANCELLED: frozenset({_D.SENT}),
    _D.SENT: frozenset(),
}

_B = BatchState
BATCH_MOVES: Mapping[BatchState, frozenset[BatchState]] = {
    _B.OPEN: frozenset({_B.DONE}),
    _B.DONE: frozenset(),
}


def sources(moves: Mapping[State, frozenset[State]], to: State) -> list[State]:
    """The states from which a row may move to this one: the WHERE of every conditional update."""
    return [state for state, targets in moves.items() if to in targets]


def is_final(moves: Mapping[State, frozenset[State]], state: State) -> bool:
    """Whether a row in this state never moves again."""
    return not moves[state]


#: Runs that are not over: one of these keeps an overlapping occurrence of its job away, unless it only tries again.
UNFINISHED_RUNS = (RunState.WAITING, RunState.QUEUED, RunState.RUNNING, RunState.UNDERWAY, RunState.PARKED)

#: Runs that are over for good.
ENDED_RUNS = tuple(state for state in RunState if is_final(RUN_MOVES, state))

#: Deliveries that are still to be sent.
UNSETTLED_DELIVERIES = frozenset({DeliveryState.PENDING, DeliveryState.DEFERRED})

#: Campaigns of which nothing is being sent or waits for its turn; a finished one may send a doubtful message again.
ENDED_CAMPAIGNS = (CampaignState.FINISHED, CampaignState.CANCELLED)
