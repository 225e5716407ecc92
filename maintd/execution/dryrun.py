"""What a run would do now: counted and sampled in the process that asks, read-only, leaving no trace anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, cast

from maintd.cleanup import rows
from maintd.errors import Problems, UsageError
from maintd.execution.kinds import KINDS, SPECS
from maintd.execution.runtime import Runtime
from maintd.ledger import jobs
from maintd.ledger.jobs import StoredJob
from maintd.ledger.states import CampaignState
from maintd.mail import campaign as mailing
from maintd.mail.campaign import CampaignSpec
from maintd.mail.enrolling.overlap import Overlap, count_overlap
from maintd.ratings import recompute
from maintd.ratings.spec import RatingsSpec
from maintd.scheduling.files import load, read_jobs
from maintd.scheduling.occurrences import header_of, options_of
from maintd.spec import Spec

#: An edition that there is not, and one whose enrolment begins anew.
_TO_ENROL = (None, CampaignState.ENROLLING)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would do.

    Attributes:
        counts: By name, in an order that reads well.
        samples: A few of what it would touch, each by column.
        would_stop: Why a cap would stop it before it did anything; empty when none would.
    """

    job: str
    kind: str
    counts: Mapping[str, Any]
    samples: tuple[Mapping[str, Any], ...] = field(default=())
    would_stop: str = ""


def dry_run(job_name: str, runtime: Runtime) -> DryRun:
    """Counts what a run of an applied job would do now.

    Raises:
        UsageError: No such job is applied, or its kind cannot be counted beforehand.
        JobFailed: A run would fail, for the same reason.
        Unavailable: The ledger or the source does not answer.
    """
    stored = _stored(job_name, runtime)
    count = _COUNTS.get(stored.kind)
    if count is None:
        cure = f"; its steps can: {', '.join(stored.spec['steps'])}" if "steps" in stored.spec else ""
        raise UsageError(f'a job of kind {stored.kind} cannot be counted beforehand ("{job_name}"){cure}')
    spec = load(stored.name, stored.spec, kinds=SPECS).spec
    KINDS[stored.kind].examine(spec, stored.files, runtime)
    return count(stored, spec, runtime)


def overlap_of(job_name: str, runtime: Runtime) -> Overlap:
    """How a campaign's audience stands to the editions that the present period has.

    Raises:
        UsageError: No such job is applied, or it is no campaign.
        JobFailed: A run would fail, for the same reason.
        Unavailable: The ledger or the source does not answer.
    """
    stored = _stored(job_name, runtime)
    if stored.kind != "campaign":
        raise UsageError(f'only campaigns have editions; "{job_name}" is of kind {stored.kind}')
    spec = load(stored.name, stored.spec, kinds=SPECS).spec
    KINDS[stored.kind].examine(spec, stored.files, runtime)
    return _overlap(stored, cast(CampaignSpec, spec), runtime, period=_period(stored, runtime.clock.now()))


def _stored(job_name: str, runtime: Runtime) -> StoredJob:
    with runtime.ledger.read() as connection:
        if jobs.get(connection, job_name) is None and (file := _file_of(job_name, runtime)):
            raise UsageError(f'"{job_name}" is in {file}, not applied yet: run `maintd apply`')
        return jobs.require(connection, job_name)


def _file_of(job_name: str, runtime: Runtime) -> str | None:
    """The job file that has the job; None where none has it, or the files are wrong, which `maintd apply` tells."""
    with contextlib.suppress(Problems):
        found = read_jobs(runtime.settings.schedules_dir, kinds=SPECS)
        return next((job.file for job in found if job.name == job_name), None)
    return None


def _count_rows(stored: StoredJob, spec: Spec, runtime: Runtime) -> DryRun:
    rows_spec = cast(rows.RowsSpec, spec)
    cutoff_at = runtime.clock.now() - rows_spec.older_than.age
    plan = rows.dry_run(rows_spec, runtime.sources.get(rows_spec.source), cutoff_at=cutoff_at)
    return DryRun(
        job=stored.name,
        kind=stored.kind,
        counts={
            "would_remove": plan.matching,
            "of_rows": plan.total,
            "older_than": plan.cutoff_at,
            "in_order_of": ", ".join(plan.order),
        },
        samples=plan.samples,
        would_stop=plan.would_stop,
    )


def _count_ratings(stored: StoredJob, spec: Spec, runtime: Runtime) -> DryRun:
    ratings_spec = cast(RatingsSpec, spec)
    plan = recompute.dry_run(ratings_spec, runtime.sources.get(ratings_spec.source))
    counts = asdict(plan)
    samples = counts.pop("samples")
    return DryRun(job=stored.name, kind=stored.kind, counts=counts, samples=tuple(samples))


def _count_campaign(stored: StoredJob, spec: Spec, runtime: Runtime) -> DryRun:
    campaign = cast(CampaignSpec, spec)
    period = _period(stored, runtime.clock.now())
    overlap = _overlap(stored, campaign, runtime, period=period)
    state = overlap.editions.get(period)
    counts = {
        "edition": period,
        "it_would": _what_it_would(state),
        "audience": overlap.audience,
        "recipients": overlap.recipients,
        "invalid": overlap.invalid,
        "suppressed": overlap.suppressed,
        "mailed_in_this_period": overlap.mailed,
        "still_to_come": overlap.to_come,
    }
    samples = [{"address": address, "problem": ""} for address in overlap.samples]
    samples += [{"address": address, "problem": problem} for address, problem in overlap.invalid_samples]
    cap = campaign.stop_at.recipients
    beyond = cap is not None and state in _TO_ENROL and overlap.recipients > cap
    return DryRun(
        job=stored.name,
        kind=stored.kind,
        counts=counts,
        samples=tuple(samples),
        would_stop=f"stop_at.recipients: the audience has more than {cap:,} recipients" if beyond else "",
    )


def _what_it_would(state: CampaignState | None) -> str:
    if state is CampaignState.ENROLLING:
        return "enrol this edition, which was begun and not completed, and send it"
    return f"go on with this edition, which is {state}" if state else "enrol this edition and send it"


def _overlap(stored: StoredJob, spec: CampaignSpec, runtime: Runtime, *, period: str) -> Overlap:
    return count_overlap(
        spec,
        stored.files,
        job=stored.name,
        period=period,
        ledger=runtime.ledger,
        source=runtime.sources.get(spec.source),
    )


def _period(stored: StoredJob, now: datetime) -> str:
    """The edition that a run by hand would have now. Of `once_per = "occurrence"` each has one of its own."""
    return mailing.edition_of(
        stored.spec["once_per"],
        nominal_at=now,
        occurrence="one of its own",
        timezone=options_of(header_of(stored).when)["timezone"],
    )


_COUNTS: Mapping[str, Callable[[StoredJob, Spec, Runtime], DryRun]] = {
    "cleanup.rows": _count_rows,
    "ratings": _count_ratings,
    "campaign": _count_campaign,
}
