"""Carrying out runs: claim, act, record."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from maintd.clock import new_token
from maintd.database import Database, first_line
from maintd.errors import ClaimLost, Interrupted, JobFailed, MaintdError, Unavailable
from maintd.execution import mailings, pipelines
from maintd.execution.kinds import KINDS, SPECS, Done, Work
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime
from maintd.ledger import jobs, runs
from maintd.ledger.jobs import StoredJob
from maintd.ledger.runs import Claim, Run
from maintd.ledger.states import RunState
from maintd.ledger.timeline import LedgerHeld
from maintd.scheduling.files import load
from maintd.scheduling.job import Job
from maintd.units import format_duration

logger = logging.getLogger(__name__)

_RECORD_TRIES = 3


@dataclass(kw_only=True)
class Drained:
    """What one working of a queue did.

    Attributes:
        ran: How many runs were carried out.
        wakes: Queues that have new work.
    """

    ran: int = 0
    wakes: set[Queue] = field(default_factory=set)


def drain(queue: Queue, runtime: Runtime, *, stopping: Callable[[], bool], budget: timedelta) -> Drained:
    """Carries out due runs of a queue until there is none, the budget is spent or it is told to stop.

    The budget bounds beginning; what was begun is brought to its end.

    Raises:
        LedgerHeld: Nothing may be begun.
        Unavailable: The ledger does not answer.
    """
    drained = Drained()
    until_s = runtime.clock.monotonic_s() + budget.total_seconds()
    while not stopping() and runtime.clock.monotonic_s() < until_s:
        wakes = _run_next(queue, runtime, stopping=stopping)
        if wakes is None:
            break
        drained.ran += 1
        drained.wakes |= wakes
    else:
        drained.wakes.add(queue)
    return drained


def _run_next(queue: Queue, runtime: Runtime, *, stopping: Callable[[], bool]) -> set[Queue] | None:
    """Carries out the next due run; None when there is none."""
    token = new_token()
    with runtime.timeline.write() as connection:
        run = runs.claim(connection, queue=queue, token=token, owner=runtime.owner, now=runtime.clock.now())
        stored = jobs.get(connection, run.job) if run else None
    if run is None:
        return None
    claim = Claim(run_id=run.id, token=token)
    try:
        return _carry_out(run, claim, stored, runtime, stopping=stopping)
    except ClaimLost as error:
        logger.warning("%s; what it did stands", error, extra={"run": run.id, "job": run.job})
        return set()


def _carry_out(
    run: Run, claim: Claim, stored: StoredJob | None, runtime: Runtime, *, stopping: Callable[[], bool]
) -> set[Queue]:
    context = {"run": run.id, "job": run.job}
    logger.info("run begins: %s", run.name, extra=context)
    job: Job | None = None
    try:
        if stored is None:
            raise JobFailed("the job is not applied (any more)")
        job = load(stored.name, stored.spec, kinds=SPECS)
        done = _work(run, claim, job, stored.files, runtime, stopping=stopping)
    except ClaimLost:
        raise
    except (Interrupted, LedgerHeld) as error:
        with runtime.ledger.write() as connection:
            now = runtime.clock.now()
            runs.put_back(connection, claim, due_at=now, reason=f"interrupted: {error}", failed=False)
        return {Queue(run.queue)}
    except Exception as error:  # noqa: BLE001 - whatever happened is recorded with the run, never swallowed
        return _record_failure(run, claim, job, error, runtime)
    try:
        wakes = _record(run, claim, done, runtime)
    except (ClaimLost, Unavailable):
        raise
    except Exception as error:  # noqa: BLE001 - as above: what cannot be written down is a failure of the run
        return _record_failure(run, claim, job, error, runtime)
    logger.info("run %s: %s", done.state, run.name, extra=context | {"result": done.result})
    return wakes


def _work(
    run: Run,
    claim: Claim,
    job: Job,
    files: Mapping[str, str],
    runtime: Runtime,
    *,
    stopping: Callable[[], bool],
) -> Done:
    """Does what the kind does, with a beating heart."""
    with _Heartbeat(claim, runtime.ledger, every=runtime.settings.heartbeat) as heartbeat:
        guard = _Guard(heartbeat, runtime, stopping=stopping, timeout=job.header.timeout)
        return KINDS[job.header.kind].run(
            Work(
                run=run,
                job=job,
                files=files,
                runtime=runtime,
                hold=lambda connection: runs.hold(connection, claim),
                stopping=guard.stopping,
                progress=heartbeat.tell,
            )
        )


def _record(run: Run, claim: Claim, done: Done, runtime: Runtime) -> set[Queue]:
    """Writes how a run ended, and in the same transaction what follows from it.

    What is done is done: a ledger that is away for a moment makes no failure of it. If it stays away, the claim runs
    out and the run is carried out again, which every kind must bear.
    """
    for _ in range(_RECORD_TRIES - 1):
        try:
            return _record_once(run, claim, done, runtime)
        except Unavailable as error:
            logger.warning("%s; it is written down again", error, extra={"run": run.id, "job": run.job})
    return _record_once(run, claim, done, runtime)


def _record_once(run: Run, claim: Claim, done: Done, runtime: Runtime) -> set[Queue]:
    now = runtime.clock.now()
    with runtime.ledger.write() as connection:
        if done.state is not RunState.UNDERWAY:
            runs.finish(connection, claim, state=done.state, now=now, result=done.result, reason=None)
            return pipelines.step_ended(connection, run, now=now) | done.wakes
        runs.hand_over(connection, claim, result=done.result)
        done.also_write(connection)
        ready = pipelines.advance(connection, run.id, now=now)
    return ready | done.wakes | mailings.conclude(runtime.ledger, now=now)


def _record_failure(
    run: Run, claim: Claim, job: Job | None, error: Exception, runtime: Runtime
) -> set[Queue]:
    """Writes down a failure: tried again later when that may help and attempts are left, else final."""
    context = {"run": run.id, "job": run.job}
    known = isinstance(error, MaintdError)
    # A database's error may go on with the statement and its values; these are nobody's business.
    reason = str(error) if known else f"{type(error).__name__}: {first_line(error)}"
    logger.error("run failed: %s: %s", run.name, reason, extra=context, exc_info=None if known else error)
    may_help = not known or isinstance(error, Unavailable)
    now = runtime.clock.now()
    with runtime.ledger.write() as connection:
        if job is not None and may_help and run.failures + 1 < job.header.retry.attempts:
            wait = job.header.retry.backoff().wait(failures=run.failures + 1)
            runs.put_back(connection, claim, due_at=now + wait, reason=reason, failed=True)
            return set()
        runs.finish(connection, claim, state=RunState.FAILED, now=now, result=None, reason=reason)
        return pipelines.step_ended(connection, run, now=now)


class _Guard:
    """Asked at every border between batches whether a run may go on."""

    def __init__(
        self,
        heartbeat: _Heartbeat,
        runtime: Runtime,
        *,
        stopping: Callable[[], bool],
        timeout: timedelta,
    ) -> None:
        self._heartbeat = heartbeat
        self._clock = runtime.clock
        self._stopping = stopping
        self._timeout = timeout
        self._until_s = runtime.clock.monotonic_s() + timeout.total_seconds()

    def stopping(self) -> bool:
        """Whether to stop in order.

        Raises:
            ClaimLost: Somebody took the run over.
            JobFailed: It has taken longer than its `timeout`.
        """
        if self._heartbeat.lost:
            raise ClaimLost("the run is no longer held by this worker")
        if self._clock.monotonic_s() > self._until_s:
            raise JobFailed(f"timeout: it was still running after {format_duration(self._timeout)}")
        return self._stopping()


class _Heartbeat:
    """Moves the counter of a claim from a thread of its own while a run is carried out."""

    def __init__(self, claim: Claim, ledger: Database, *, every: timedelta) -> None:
        self._claim = claim
        self._ledger = ledger
        self._every_s = every.total_seconds()
        self._ended = threading.Event()
        self._progress: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{claim.run_id}", daemon=True)
        #: Somebody took the run over.
        self.lost = False

    def tell(self, progress: dict[str, Any]) -> None:
        """What is done so far; it goes into the ledger with the next beat."""
        self._progress = progress

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                with self._ledger.write() as connection:
                    runs.hold(connection, self._claim, progress=self._progress)
            except ClaimLost:
                self.lost = True
                return
            except Exception as error:  # noqa: BLE001 - a heartbeat that fails is one that is missing, no more
                logger.warning("heartbeat failed: %s", first_line(error), extra={"run": self._claim.run_id})
