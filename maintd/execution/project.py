"""The user's files as a whole: jobs, the texts they depend on, and whether they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from maintd.config.settings import Settings
from maintd.errors import MaintdError, Problem, Problems, did_you_mean
from maintd.execution.kinds import KINDS, SPECS
from maintd.execution.pipelines import PipelineSpec
from maintd.execution.runtime import Runtime
from maintd.scheduling.apply import Prepared
from maintd.scheduling.files import read_jobs
from maintd.scheduling.job import Job


def read_project(settings: Settings) -> list[Prepared]:
    """Reads all job files and what they depend on.

    Raises:
        Problems: Everything wrong with any of it, at once.
    """
    jobs = read_jobs(settings.schedules_dir, kinds=SPECS)
    problems = _pipeline_problems(jobs)
    prepared = []
    for job in jobs:
        try:
            files = KINDS[job.header.kind].read_files(
                job.spec, schedules=settings.schedules_dir, templates=settings.templates_dir
            )
            prepared.append(Prepared(job=job, files=files))
        except Problems as error:
            problems += [replace(problem, where=where_is(job, problem.where)) for problem in error.problems]
    if problems:
        raise Problems(problems)
    return prepared


def examine(prepared: Sequence[Prepared], runtime: Runtime) -> list[Problem]:
    """Checks every job against its databases; nothing is written anywhere."""
    problems = []
    for one in prepared:
        try:
            examine_one(one, runtime)
        except MaintdError as error:
            problems.append(Problem(where=where_is(one.job), what=str(error)))
    return problems


def examine_one(one: Prepared, runtime: Runtime) -> None:
    """Checks one job against its databases; nothing is written anywhere.

    Raises:
        JobFailed: It could not run; the key at fault is named.
        Problems: The same, or the URL of its source is not usable.
        Unavailable: Its source does not answer.
    """
    KINDS[one.job.header.kind].examine(one.job.spec, one.files, runtime)


def where_is(job: Job, key: str = "") -> str:
    """File, table and key, for errors."""
    return f"{job.file}: [{job.name}] {key}".rstrip()


def _pipeline_problems(jobs: Sequence[Job]) -> list[Problem]:
    kinds = {job.name: job.header.kind for job in jobs}
    steps = [job for job in jobs if job.header.kind != "pipeline"]
    problems = []
    for job in jobs:
        for step in job.spec.steps if isinstance(job.spec, PipelineSpec) else ():
            if step not in kinds:
                hint = did_you_mean(step, (other.name for other in steps))
                problems.append(Problem(where=where_is(job, f"steps.{step}"), what="is no job", cure=hint))
            elif kinds[step] == "pipeline":
                problems.append(
                    Problem(
                        where=where_is(job, f"steps.{step}"),
                        what="is a pipeline itself",
                        cure="put its steps into this one",
                    )
                )
    return problems
