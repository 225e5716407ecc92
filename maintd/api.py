"""For programs: start a job from Python.

import maintd.api

maintd.api.trigger("weekly-digest")
"""

from __future__ import annotations

import contextlib

from maintd.broker.wake import open_wake
from maintd.clock import SystemClock
from maintd.config.load import from_process
from maintd.config.settings import Settings
from maintd.execution import trigger as execution
from maintd.execution.queues import Queue
from maintd.execution.runtime import open_runtime


def trigger(job: str, *, new_edition: bool = False, settings: Settings | None = None) -> int:
    """Queues a run of an applied job, now, and wakes a worker.

    Args:
        job: Its name.
        new_edition: Of a campaign: begin another edition although the period has one.
        settings: Those of the process without it.

    Returns:
        The id of the run.

    Raises:
        UsageError: No such job is applied.
        Unavailable: The ledger does not answer. Redis may be away: the run is queued and starts when it is back.
    """
    settings = settings or from_process()
    with contextlib.closing(open_runtime(settings, clock=SystemClock())) as runtime:
        run = execution.trigger(job, runtime, new_edition=new_edition)
    with open_wake(settings) as wake:
        wake({Queue(run.queue)})
    return run.id
