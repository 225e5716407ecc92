"""The kinds of jobs: for each its keys, its queue, the texts it depends on, how to check it and how to run it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sqlalchemy.engine import Connection

from maintd.cleanup import rows
from maintd.clock import new_token
from maintd.errors import Interrupted
from maintd.execution import pipelines
from maintd.execution.pipelines import PipelineSpec
from maintd.execution.queues import Queue, mail_queue
from maintd.execution.runtime import Runtime
from maintd.ledger import campaigns, jobs, runs
from maintd.ledger.jobs import ListedJob
from maintd.ledger.runs import Run
from maintd.ledger.states import RunState
from maintd.mail import campaign as mailing
from maintd.mail.campaign import CampaignSpec
from maintd.mail.compose import sender_of
from maintd.mail.content.templates import compile_bundle
from maintd.mail.enrolling.audience import columns_of
from maintd.mail.enrolling.enrol import Edition, check_columns, enrol
from maintd.mail.preview import Draft, NobodyThere, preview
from maintd.ratings import recompute
from maintd.ratings.spec import RatingsSpec
from maintd.scheduling.job import Job
from maintd.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Work:
    """One claimed run, with what it needs.

    Attributes:
        run: As claimed.
        job: Its job, as applied.
        files: The texts it depends on, as applied.
        runtime: The surroundings.
        hold: To be called in every transaction on the ledger; raises when the claim is lost.
        stopping: Asked at every border between batches: whether to stop in order. Raises when the run must not go on.
        progress: Told what is done so far, by name.
    """

    run: Run
    job: Job
    files: Mapping[str, str]
    runtime: Runtime
    hold: Callable[[Connection], None]
    stopping: Callable[[], bool]
    progress: Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Done:
    """How far a run came when its worker is through with it.

    Attributes:
        state: `SUCCEEDED`, or `UNDERWAY` when it goes on in rows of its own.
        result: What was counted.
        wakes: Queues that have new work.
        also_write: Writes what belongs to that state, in the very transaction that records it.
    """

    result: dict[str, Any]
    state: RunState = RunState.SUCCEEDED
    wakes: frozenset[Queue] = frozenset()
    also_write: Callable[[Connection], None] = lambda _: None


def _no_files(_spec: Spec, **_directories: Path) -> dict[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of job.

    Attributes:
        name: As job files write it.
        queue: Where its runs wait for a worker.
        urgent_queue: Where those of an urgent job wait, so that they are not behind the others; None: no job is urgent.
        spec: The model of its keys.
        run: Carries out a claimed run.
        examine: Checks an applied or read job against its databases; raises `JobFailed`.
        read_files: Reads the texts it depends on, to be frozen with it; raises `Problems`.
    """

    name: str
    queue: Queue
    spec: type[Spec]
    run: Callable[[Work], Done]
    examine: Callable[[Spec, Mapping[str, str], Runtime], None]
    read_files: Callable[..., dict[str, str]] = field(default=_no_files)
    urgent_queue: Queue | None = None

    def queue_of(self, keys: Mapping[str, Any]) -> Queue:
        """Where the runs of a job with these keys wait."""
        return self.urgent_queue if self.urgent_queue and keys.get("urgent") else self.queue


def _run_rows(work: Work) -> Done:
    spec = cast(rows.RowsSpec, work.job.spec)
    source = work.runtime.sources.get(spec.source)
    cleaned = rows.clean(
        spec,
        source,
        cutoff_at=work.run.nominal_at - spec.older_than.age,
        clock=work.runtime.clock,
        stopping=work.stopping,
        progress=lambda removed: work.progress({"removed": removed}),
        pause=time.sleep,
    )
    return Done(result=_counted(cleaned))


def _examine_rows(spec: Spec, _files: Mapping[str, str], runtime: Runtime) -> None:
    rows_spec = cast(rows.RowsSpec, spec)
    rows.examine(rows_spec, runtime.sources.get(rows_spec.source))


def _run_ratings(work: Work) -> Done:
    spec = cast(RatingsSpec, work.job.spec)
    source = work.runtime.sources.get(spec.source)
    return Done(result=_counted(recompute.recompute(spec, source)))


def _examine_ratings(spec: Spec, _files: Mapping[str, str], runtime: Runtime) -> None:
    ratings_spec = cast(RatingsSpec, spec)
    recompute.examine(ratings_spec, runtime.sources.get(ratings_spec.source))


def _run_campaign(work: Work) -> Done:
    runtime = work.runtime
    spec = cast(CampaignSpec, work.job.spec).sent_by(runtime.settings.mail_from)
    sender_of(spec)

    def hold(connection: Connection) -> None:
        if work.stopping():
            raise Interrupted("enrolment was stopped; it begins anew")
        work.hold(connection)

    enrolled = enrol(
        _edition(work, spec),
        ledger=runtime.ledger,
        timeline=runtime.timeline,
        source=runtime.sources.get(spec.source),
        clock=runtime.clock,
        hold=hold,
        progress=lambda read: work.progress({"audience": read}),
        pause=time.sleep,
    )
    result: dict[str, Any] = {"campaign": enrolled.campaign.name, "resumed": enrolled.resumed}
    if enrolled.campaign.run_id != work.run.id:
        return Done(result=result | {"goes_on_in_run": enrolled.campaign.run_id})
    return Done(
        state=RunState.UNDERWAY,
        result=result,
        wakes=frozenset({mail_queue(urgent=enrolled.campaign.urgent)}),
    )


def _edition(work: Work, spec: CampaignSpec) -> Edition:
    name = work.run.options.get("edition") or _named_edition(work, spec)
    lanes = work.runtime.settings.lanes
    return Edition(
        job=work.run.job,
        name=name,
        run_id=work.run.id,
        spec=spec,
        files=work.files,
        uid=new_token(),
        lanes={domain: lane for lane, limit in lanes.items() for domain in limit.domains},
    )


def _named_edition(work: Work, spec: CampaignSpec) -> str:
    """Names the edition of a run, once: what is tried again later must not come to another one."""
    run = work.run
    name = mailing.edition_of(
        spec.once_per,
        nominal_at=run.nominal_at,
        occurrence=run.occurrence,
        timezone=run.options.get("timezone", "UTC"),
    )
    with work.runtime.ledger.write() as connection:
        work.hold(connection)
        if run.options.get("new_edition"):
            name = campaigns.free_edition(connection, job=run.job, edition=name)
        runs.keep_options(connection, run.id, run.options | {"edition": name})
    return name


def _examine_campaign(spec: Spec, files: Mapping[str, str], runtime: Runtime) -> None:
    campaign = cast(CampaignSpec, spec)
    sender_of(campaign.sent_by(runtime.settings.mail_from))
    source = runtime.sources.get(campaign.source)
    template = compile_bundle(mailing.bundle_of(campaign, files))
    queries = {"audience.sql": campaign.audience.sql}
    queries |= {f"shared.{name}": sql for name, sql in campaign.shared.items()}
    columns = {
        key: columns_of(source, files[mailing.SQL_PREFIX + sql], key=f"{key} ({sql})")
        for key, sql in queries.items()
    }
    check_columns(campaign, template, columns["audience.sql"])
    _try_one(campaign, files, runtime)


def _try_one(campaign: CampaignSpec, files: Mapping[str, str], runtime: Runtime) -> None:
    """Makes the mail of the first in line, and throws it away: what cannot be made for one is seen before it is due."""
    draft = Draft(
        job="check",
        spec=campaign.sent_by(runtime.settings.mail_from),
        files=files,
        timezone="UTC",
        uid="check",
        now=runtime.clock.now(),
    )
    source = runtime.sources.get(campaign.source)
    with contextlib.suppress(NobodyThere):  # an empty audience is no mistake
        _ = preview(draft, source=source, recipient=None, redirect=None).message


def _run_pipeline(work: Work) -> Done:
    spec = cast(PipelineSpec, work.job.spec)

    def make_steps(connection: Connection) -> None:
        applied = {job.name: job for job in jobs.every(connection)}

        def step_job(name: str) -> tuple[str, Queue] | None:
            job = applied.get(name)
            queue = queue_of(job) if job else None
            return (job.kind, queue) if job and queue else None

        pipelines.expand(connection, work.run, spec, step_job=step_job, now=work.runtime.clock.now())

    return Done(state=RunState.UNDERWAY, result={}, also_write=make_steps)


def _examine_pipeline(_spec: Spec, _files: Mapping[str, str], _runtime: Runtime) -> None:
    """A pipeline touches no database; that its steps are jobs is checked with the other files."""


def _counted(result: Any) -> dict[str, Any]:
    """A feature's counts in the form in which a run keeps them."""
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else value
        for name, value in dataclasses.asdict(result).items()
    }


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="cleanup.rows",
            queue=Queue.MAINTENANCE,
            spec=rows.RowsSpec,
            run=_run_rows,
            examine=_examine_rows,
        ),
        Kind(
            name="ratings",
            queue=Queue.RATINGS,
            spec=RatingsSpec,
            run=_run_ratings,
            examine=_examine_ratings,
        ),
        Kind(
            name="campaign",
            queue=Queue.MAINTENANCE,
            spec=CampaignSpec,
            run=_run_campaign,
            urgent_queue=Queue.MAIL_URGENT,
            examine=_examine_campaign,
            read_files=mailing.read_files,
        ),
        Kind(
            name="pipeline",
            queue=Queue.CONTROL,
            spec=PipelineSpec,
            run=_run_pipeline,
            examine=_examine_pipeline,
        ),
    )
}


def queue_of(job: ListedJob) -> Queue | None:
    """The queue of a job's runs; None for a kind that this version does not know."""
    kind = KINDS.get(job.kind)
    return kind.queue_of(job.spec) if kind else None


SPECS: Mapping[str, type[Spec]] = {kind.name: kind.spec for kind in KINDS.values()}
