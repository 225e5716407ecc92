"""Starting a job by hand."""

from __future__ import annotations

from typing import Any

from maintd.clock import new_token
from maintd.errors import UsageError
from maintd.execution.kinds import KINDS
from maintd.execution.runtime import Runtime
from maintd.ledger import jobs, runs
from maintd.ledger.runs import NewRun
from maintd.ledger.states import Cause, RunState
from maintd.ledger.timeline import Timeline
from maintd.scheduling.occurrences import header_of, options_of


def trigger(
    job_name: str, runtime: Runtime, *, key: str | None = None, new_edition: bool = False
) -> runs.Run:
    """Queues a run of a job, now, whatever its schedule says.

    Args:
        job_name: An applied job.
        runtime: The surroundings.
        key: Asking twice with the same key makes one run; without a key each asking makes one.
        new_edition: Of a campaign: begin another edition although the period has one.

    Raises:
        UsageError: No such job is applied; the nearest is named.
        LedgerHeld: Nothing may be begun.
    """
    now = runtime.clock.now()
    # Without a witness: whoever starts a job need not be able to read the daemons' state directory.
    with Timeline(runtime.ledger).write() as connection:
        job = jobs.require(connection, job_name)
        if new_edition and job.kind != "campaign":
            raise UsageError(f'--new-edition is for campaigns; "{job_name}" is of kind {job.kind}')
        options: dict[str, Any] = options_of(header_of(job).when)
        options |= {"new_edition": True} if new_edition else {}
        # Two people may ask within the same second.
        occurrence = f"#{key}" if key else f"{now:%Y-%m-%dT%H:%M:%S}[UTC]#{new_token()[:6]}"
        new = NewRun(
            job=job_name,
            kind=job.kind,
            occurrence=occurrence,
            cause=Cause.MANUAL,
            nominal_at=now,
            options=options,
            state=RunState.QUEUED,
            queue=KINDS[job.kind].queue_of(job.spec),
            due_at=now,
        )
        runs.create(connection, new, now=now)
        return runs.of_occurrence(connection, job=job_name, occurrence=occurrence)
