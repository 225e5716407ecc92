"""A mailing that only comes back to whom it put off makes way for the next edition, and is ended beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from maintd.database import Database
from maintd.execution.queues import Queue
from maintd.execution.reconcile import Reconciler
from maintd.execution.runtime import Runtime
from maintd.execution.worker import Worker
from maintd.ledger import runs
from maintd.ledger.runs import Claim, Run
from maintd.ledger.states import DeliveryState, RunState
from maintd.mail import control
from maintd.scheduling.occurrences import fire
from maintd.smtp.faults import Action, Moment, Script, Step
from maintd.smtp.mailbox import read_index
from tests.ledgers import MINUTE, NOW, HandClock, add_campaign, add_job, run_of, tallied
from tests.sinks import SinkThread

FULL = Action(reply="452 4.2.2 Mailbox full")


def full_mailbox(times: int) -> Script:
    """The mailbox of one recipient is full, so many times."""
    left = iter(range(times))

    def script(moment: Moment) -> Action | None:
        full = moment.step is Step.RCPT and moment.recipient == "p1@example.org"
        return FULL if full and next(left, None) is not None else None

    return script


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[SinkThread]:
    with SinkThread(tmp_path / "mailbox", script=full_mailbox(times=2)) as relay:
        yield relay


def add_minutely(ledger: Database, *, overlap: str) -> None:
    spec = {"kind": "campaign", "when": {"cron": "* * * * *"}, "overlap": overlap}
    with ledger.write() as connection:
        add_job(connection, "hello", kind="campaign", spec=spec, cursor_at=NOW, next_at=NOW + MINUTE)


def next_run(runtime: Runtime) -> Run:
    """What is made of the job's next occurrence; it is taken by a worker and ended if that is allowed."""
    now = NOW + MINUTE
    fire(runtime.timeline, ["hello"], now=now, queue_of=lambda _: "maintenance")
    with runtime.ledger.write() as connection:
        run = runs.claim(connection, queue="maintenance", token="t", owner="host:1", now=now)
        if run is not None:
            claim = Claim(run_id=run.id, token="t")
            runs.finish(connection, claim, state=RunState.SUCCEEDED, now=now, result=None, reason=None)
        return runs.latest(connection, job="hello", limit=1)[0]


@pytest.mark.parametrize(("overlap", "kept"), [("skip", RunState.SKIPPED), ("queue", RunState.QUEUED)])
@pytest.mark.parametrize("how", ["untried", "paused", "stragglers"])
def test_an_edition_is_kept_away_until_the_one_before_has_tried_everybody(
    runtime: Runtime, worker: Worker, ledger: Database, how: str, overlap: str, kept: RunState
) -> None:
    add_minutely(ledger, overlap=overlap)
    before = add_campaign(ledger, recipients=3)
    if how != "untried":
        worker.work(Queue.MAIL_BULK)
        assert tallied(ledger, before.id) == {DeliveryState.SENT: 2, DeliveryState.DEFERRED: 1}
    if how == "paused":
        control.pause(ledger, before.name, reason="wrong link", now=NOW)
    assert next_run(runtime).state is (RunState.SUCCEEDED if how == "stragglers" else kept)
    assert run_of(ledger, before.run_id).state is RunState.UNDERWAY


def test_two_editions_side_by_side_are_both_brought_to_their_end(
    runtime: Runtime, worker: Worker, ledger: Database, clock: HandClock, tmp_path: Path
) -> None:
    editions = []
    for name in ("one", "two"):
        editions.append(add_campaign(ledger, recipients=3, edition=name))
        worker.work(Queue.MAIL_BULK)
    for edition in editions:
        assert tallied(ledger, edition.id) == {DeliveryState.SENT: 2, DeliveryState.DEFERRED: 1}
        assert run_of(ledger, edition.run_id).state is RunState.UNDERWAY
    clock.turn(timedelta(hours=2))
    assert Reconciler(runtime).run_once().back_in_line == 2
    worker.work(Queue.MAIL_BULK)
    assert {run_of(ledger, edition.run_id).state for edition in editions} == {RunState.SUCCEEDED}
    arrived = Counter((one.campaign, *one.recipients) for one in read_index(tmp_path / "mailbox"))
    assert arrived == {
        (edition.name, f"p{number}@example.org"): 1 for edition in editions for number in range(3)
    }
