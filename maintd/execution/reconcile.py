"""The reconciler: makes good, from the ledger alone, whatever a lost message or a dead process left undone."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from maintd.execution import mailings, pipelines
from maintd.execution.liveness import Pulse, Watch
from maintd.execution.queues import Queue, queues_with_mail
from maintd.execution.retention import Retention
from maintd.execution.runtime import Runtime, limits_of
from maintd.execution.worker import scene_of
from maintd.ledger import batches, campaigns, jobs, runs
from maintd.ledger.runs import Run
from maintd.ledger.states import RunState
from maintd.mail.recording import recover
from maintd.mail.sending.finish import finish_if_done

logger = logging.getLogger(__name__)

#: Claims that one run may lose. An orderly stop is no loss, so five of them mean that the run itself kills its worker.
MOST_LOSSES = 5
_LINE_CHUNK = 1000
_BATCH_CHUNK = 10


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """What one pass did.

    Attributes:
        freed: Claims on runs and batches taken from the dead.
        doubtful: Deliveries that became uncertain by it.
        back_in_line: Deferred deliveries whose time had come.
        queues: Queues that have work to be done now.
    """

    freed: int
    doubtful: int
    back_in_line: int
    queues: frozenset[Queue]


class Reconciler:
    """Holds what one judge has seen of everybody's counters; for the leading beat."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._runs = Watch(lease=runtime.settings.lease)
        self._batches = Watch(lease=runtime.settings.lease)
        self._retention = Retention(runtime.ledger, keep=runtime.settings.keep, clock=runtime.clock)

    def run_once(self) -> Reconciled:
        """One pass.

        Raises:
            LedgerHeld: Nothing may be made good before a person has accepted the ledger.
            Unavailable: The ledger does not answer.
        """
        self._runtime.timeline.look()
        freed = self._free_runs()
        freed_batches, doubtful = self._free_batches()
        ledger, now = self._runtime.ledger, self._runtime.clock.now()
        with ledger.write() as connection:
            back = recover.put_back_in_line(connection, now=now, limit=_LINE_CHUNK)
            recover.settle_cancelled(connection, now=now, limit=_BATCH_CHUNK)
            self._advance_pipelines(connection)
            sending = campaigns.sending(connection)
        for campaign in sending:
            finish_if_done(ledger, campaign, now=now)
        mailings.conclude(ledger, now=now)
        self._retention.run_once()
        with ledger.read() as connection:
            # A queue that only a newer version knows is for workers of that version.
            known = {Queue(name) for name in runs.due_queues(connection, now=now) if name in frozenset(Queue)}
            queues = known | queues_with_mail(connection, limits_of(self._runtime.settings), now=now)
        return Reconciled(
            freed=freed + freed_batches,
            doubtful=doubtful,
            back_in_line=back,
            queues=frozenset(queues),
        )

    def _free_runs(self) -> int:
        with self._runtime.ledger.read() as connection:
            running = {run.id: run for run in runs.running(connection)}
        pulses = [Pulse(key=run.id, token=run.token or "", counter=run.counter) for run in running.values()]
        stopped = self._runs.stopped(pulses, monotonic_s=self._runtime.clock.monotonic_s())
        freed = 0
        for run_id in stopped:
            with self._runtime.ledger.write() as connection:
                freed += self._free_run(connection, running[run_id])
        return freed

    def _free_run(self, connection: Connection, run: Run) -> bool:
        now = self._runtime.clock.now()
        job = jobs.get(connection, run.job)
        to, reason = RunState.QUEUED, f"its worker ({run.owner}) vanished; it is tried again"
        if job is not None and job.spec.get("on_lost") == "park":
            to, reason = RunState.PARKED, f"its worker ({run.owner}) vanished; how far it came is unknown"
        elif run.losses + 1 >= MOST_LOSSES:
            to, reason = RunState.DEAD, f"its worker vanished {MOST_LOSSES} times"
        if not runs.take_from_the_dead(connection, run, to=to, now=now, reason=reason):
            return False
        logger.warning("%s: %s", run.name, reason, extra={"run": run.id, "job": run.job})
        pipelines.step_ended(connection, run, now=now)
        return True

    def _free_batches(self) -> tuple[int, int]:
        with self._runtime.ledger.read() as connection:
            held = {batch.id: batch for batch in batches.held(connection)}
        pulses = [Pulse(key=b.id, token=b.token or "", counter=b.counter) for b in held.values()]
        stopped = self._batches.stopped(pulses, monotonic_s=self._runtime.clock.monotonic_s())
        freed = total = 0
        for batch_id in stopped:
            doubtful = recover.recover_batch(
                self._runtime.ledger,
                held[batch_id],
                scene=scene_of(self._runtime),
                now=self._runtime.clock.now(),
            )
            if doubtful is None:
                continue
            freed, total = freed + 1, total + doubtful
            logger.warning(
                "a sender (%s) vanished; %d messages are uncertain",
                held[batch_id].owner,
                doubtful,
                extra={"batch": batch_id},
            )
        return freed, total

    def _advance_pipelines(self, connection: Connection) -> None:
        now = self._runtime.clock.now()
        runs.skip_orphans(connection, now=now)
        for run in runs.underway(connection, kind="pipeline"):
            pipelines.advance(connection, run.id, now=now)
