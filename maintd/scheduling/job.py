"""A job: the keys that every one has, and those of its kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, model_validator

from maintd.retry import Backoff
from maintd.scheduling.calendar import When
from maintd.spec import Duration, Spec

_LONGEST_WAIT = timedelta(hours=1)


class Retry(Spec):
    """How a failed run is tried again, where the reason may pass: a service that is away, or an unexpected error. What
    cannot succeed, such as a missing column or a cap that stopped it, fails at once."""

    attempts: int = Field(default=3, ge=1, le=20)
    """How often a run is tried in all, the first time included."""
    wait: Duration = timedelta(seconds=30)
    """The wait before the second attempt. It doubles before each further one, up to an hour."""

    def backoff(self) -> Backoff:
        """The waits between attempts."""
        return Backoff(first=self.wait, longest=max(self.wait, _LONGEST_WAIT))


class JobHeader(Spec):
    """The keys that every job has, whatever its kind."""

    kind: str
    """What the job does."""
    description: str = ""
    """A sentence for people, shown wherever the job is."""
    enabled: bool = True
    """Whether the job runs when it is due. A disabled one can still be run by hand, and a pipeline still runs it as its
    step."""
    when: When | None = None
    """When the job is due. Without it the job runs by hand or as a step of a pipeline."""
    timeout: Duration = timedelta(hours=1)
    """The longest that one attempt may take before it is stopped and counts as failed. It is looked at between batches:
    a single SQL statement is bounded by `MAINTD_STATEMENT_TIMEOUT`, and a mailing under way by its `expires`."""
    retry: Retry = Retry()
    """How a run that failed for a reason that may pass is tried again."""
    on_lost: Literal["retry", "park"] = "retry"
    """What happens to a run whose worker vanished, so that nobody knows how far it came: `"retry"` starts it again,
    `"park"` leaves it for a person to decide."""
    overlap: Literal["skip", "queue"] = "skip"
    """What happens when the job is due while its last run still goes on: `"skip"` leaves this time out, `"queue"` lets
    it wait for its turn. With `missed = "all"` only `"queue"` makes sense. A mailing that has tried every recipient
    once keeps no other away, although it goes on trying those whom the relay put off; a paused one does, and a pipeline
    goes on until its mailings are over."""

    @model_validator(mode="after")
    def _catches_up_in_turn(self) -> Self:
        if self.when is not None and self.when.missed == "all" and self.overlap == "skip":
            raise ValueError(
                'when.missed = "all" needs overlap = "queue": else only the first of them would run'
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as its file describes it.

    Attributes:
        name: The name of its table.
        header: The keys that every job has.
        spec: The keys of its kind.
        file: The name of the file it was read from, empty if it comes from the ledger; no part of what the job is.
    """

    name: str
    header: JobHeader
    spec: Spec
    file: str = field(default="", compare=False)
