"""Where the runs of urgent campaigns wait: never behind the enrolment of a million."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from maintd.database import Database
from maintd.execution.kinds import queue_of
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime
from maintd.execution.trigger import trigger
from maintd.scheduling.occurrences import fire
from tests.execution.surroundings import drain
from tests.ledgers import MINUTE, NOW, add_job


def add_alarm(ledger: Database, *, urgent: bool, **columns: Any) -> None:
    spec = {"kind": "campaign", "urgent": urgent, "when": {"cron": "* * * * *"}}
    with ledger.write() as connection:
        add_job(connection, "alarm", kind="campaign", spec=spec, **columns)


@pytest.mark.parametrize(("urgent", "queue"), [(True, Queue.MAIL_URGENT), (False, Queue.MAINTENANCE)])
def test_an_urgent_campaign_is_enrolled_by_those_who_send_it(
    runtime: Runtime, ledger: Database, urgent: bool, queue: Queue
) -> None:
    add_alarm(ledger, urgent=urgent, cursor_at=NOW, next_at=NOW + MINUTE)
    assert fire(runtime.timeline, ["alarm"], now=NOW + MINUTE, queue_of=queue_of).queues == {queue}
    assert trigger("alarm", runtime).queue == queue


def test_an_urgent_step_of_a_pipeline_too(runtime: Runtime, ledger: Database) -> None:
    add_alarm(ledger, urgent=True)
    with ledger.write() as connection:
        add_job(connection, "night", kind="pipeline", spec={"kind": "pipeline", "steps": {"alarm": {}}})
    trigger("night", runtime)
    budget = timedelta(minutes=1)
    assert drain(runtime, queue=Queue.CONTROL, budget=budget).wakes == {Queue.MAIL_URGENT}
