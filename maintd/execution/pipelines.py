"""Pipelines: steps that wait for each other in the ledger, so that a waiting step holds no worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from graphlib import CycleError, TopologicalSorter

from pydantic import Field, model_validator
from sqlalchemy.engine import Connection

from maintd.errors import did_you_mean
from maintd.execution.queues import Queue
from maintd.ledger import runs
from maintd.ledger.runs import NewRun, Run
from maintd.ledger.states import RUN_MOVES, Cause, RunState, is_final
from maintd.spec import Spec

#: How a step's run tells its job's queue and kind; None when the job is gone.
StepJob = Callable[[str], tuple[str, Queue] | None]


class Step(Spec):
    """One job in a pipeline."""

    after: list[str] = []
    """Steps that must have succeeded before this one begins; none: it begins at once."""


class PipelineSpec(Spec):
    """Jobs that run after each other. When a step fails, what comes after it is skipped and says why."""

    steps: dict[str, Step] = Field(min_length=1)
    """A table of job names, each with the steps it waits for: `title-ratings = { after = ["expired-sessions"] }`."""

    @model_validator(mode="after")
    def _is_a_graph(self) -> PipelineSpec:
        for name, step in self.steps.items():
            for other in step.after:
                if other not in self.steps:
                    raise ValueError(
                        f'step "{name}" waits for "{other}", which is no step; {did_you_mean(other, self.steps)}'
                    )
        try:
            TopologicalSorter({name: step.after for name, step in self.steps.items()}).prepare()
        except CycleError as error:
            raise ValueError(
                f"the steps wait for each other in a circle: {' → '.join(error.args[1])}"
            ) from None
        return self


def expand(connection: Connection, run: Run, spec: PipelineSpec, *, step_job: StepJob, now: datetime) -> None:
    """Makes the step runs of a pipeline's run; those that exist are left alone."""
    for name, step in spec.steps.items():
        found = step_job(name)
        kind, queue = found or ("", Queue.CONTROL)
        runs.create(
            connection,
            NewRun(
                job=name,
                kind=kind,
                occurrence=run.name,
                cause=Cause.STEP,
                nominal_at=run.nominal_at,
                options=run.options,
                state=RunState.WAITING,
                queue=queue,
                due_at=now,
                parent_id=run.id,
                after=step.after,
            ),
            now=now,
        )


def step_ended(connection: Connection, run: Run, *, now: datetime) -> set[Queue]:
    """Tells the pipeline of a run, if it is a step of one, that it has ended; see `advance`."""
    return set() if run.parent_id is None else advance(connection, run.parent_id, now=now)


def advance(connection: Connection, parent_id: int, *, now: datetime) -> set[Queue]:
    """Does what the ended steps of a pipeline allow: readies, skips, and ends the pipeline itself.

    The parent's row is locked, so that two steps ending at once are seen one after the other.

    Returns:
        The queues in which steps became ready.
    """
    parent = runs.lock(connection, parent_id)
    if parent is None or parent.kind != "pipeline" or parent.state is not RunState.UNDERWAY:
        return set()
    ready: set[Queue] = set()
    steps = {step.job: step for step in runs.steps(connection, parent_id)}
    for step in _in_order(steps):
        if step.state is not RunState.WAITING:
            continue
        to, reason = _next(step, steps)
        if to is RunState.WAITING:
            continue
        runs.move(connection, step.id, to=to, now=now, reason=reason)
        steps[step.job] = _moved(step, to)
        if to is RunState.QUEUED:
            ready.add(Queue(step.queue))
    _end(connection, parent, steps, now=now)
    return ready


def _in_order(steps: dict[str, Run]) -> Iterator[Run]:
    graph = {name: step.after or [] for name, step in steps.items()}
    return (steps[name] for name in TopologicalSorter(graph).static_order())


def _next(step: Run, steps: dict[str, Run]) -> tuple[RunState, str | None]:
    """Where a waiting step goes now, and why."""
    before = [steps[name] for name in step.after or []]
    for other in before:
        if is_final(RUN_MOVES, other.state) and other.state is not RunState.SUCCEEDED:
            return RunState.SKIPPED, f'step "{other.job}" {other.state}'
    if all(other.state is RunState.SUCCEEDED for other in before):
        return RunState.QUEUED, None
    return RunState.WAITING, None


def _moved(step: Run, to: RunState) -> Run:
    return Run(**{**step.__dict__, "state": to})


def _end(connection: Connection, parent: Run, steps: dict[str, Run], *, now: datetime) -> None:
    if not all(is_final(RUN_MOVES, step.state) for step in steps.values()):
        return
    result = {"steps": {name: step.state.value for name, step in steps.items()}}
    bad = [f'"{name}" {step.state}' for name, step in steps.items() if step.state is not RunState.SUCCEEDED]
    to = RunState.FAILED if bad else RunState.SUCCEEDED
    reason = f"steps: {', '.join(bad)}" if bad else None
    runs.move(connection, parent.id, to=to, now=now, result=result, reason=reason)
