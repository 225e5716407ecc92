"""Starting a job by hand."""

from __future__ import annotations

from typing import Any

from maintd.clock import new_token
from maintd.errors import UsageError
from maintd.execution.kinds import KINDS
from maintd.execution.runtime import Runtime
from maintd.ledger import jobs, runs
from maintd.ledger.runs import NewRun
from maintd.ledger.states import RunState
from maintd.scheduling.occurrences import header_of, options_of


def trigger(job_name: str, runtime: Runtime, *, new_edition: bool = False) -> runs.Run:
    """Queues a run of a job, now, whatever its schedule says.

    Args:
        job_name: An applied job.
        runtime: The surroundings.
        new_edition: Of a campaign: begin another edition although the period has one.

    Raises:
        UsageError: No such job is applied; the nearest is named.
    """
    now = runtime.clock.now()
    with runtime.ledger.write() as connection:
        job = jobs.require(connection, job_name)
        if new_edition and job.kind != "campaign":
            raise UsageError(f'--new-edition is for campaigns; "{job_name}" is of kind {job.kind}')
        options: dict[str, Any] = options_of(header_of(job).when)
        options |= {"new_edition": True} if new_edition else {}
        run_id = runs.create(
            connection,
            NewRun(
                job=job_name,
                kind=job.kind,
                # Two people may ask within the same second.
                occurrence=f"{now:%Y-%m-%dT%H:%M:%S}[UTC]#{new_token()[:6]}",
                cause="manual",
                nominal_at=now,
                options=options,
                state=RunState.QUEUED,
                queue=KINDS[job.kind].queue,
                due_at=now,
            ),
            now=now,
        )
        assert run_id is not None
        run = runs.get(connection, run_id)
        assert run is not None
        return run
