from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from maintd.database import Database
from maintd.ledger import jobs, runs
from maintd.ledger.jobs import StoredJob
from maintd.ledger.states import RunState
from maintd.scheduling.apply import Change, Move, Prepared, apply, plan
from maintd.scheduling.files import load
from maintd.spec import Spec
from tests.ledgers import NOW, add_run, run_of

HOUR = timedelta(hours=1)
FILES = {"sql/digest.sql": "SELECT 1", "template/digest/body.txt": "Hello"}


class Limit(Spec):
    """A part of the test's kind."""

    rows: int = 10


class Tidy(Spec):
    """The test's kind of job."""

    table: str = "session"
    stop_at: Limit = Limit()


def prepared(name: str = "tidy", *, files: dict[str, str] | None = None, **keys: Any) -> Prepared:
    table = {"kind": "tidy", "when": {"cron": "0 * * * *"}, **keys}
    return Prepared(job=load(name, table, kinds={"tidy": Tidy}), files=FILES if files is None else files)


def applied(
    ledger: Database, *jobs: Prepared, after: timedelta = HOUR / 2, prune: bool = False
) -> list[Change]:
    return apply(ledger, jobs, prune=prune, now=NOW + after)


def planned(ledger: Database, *jobs: Prepared) -> list[Change]:
    with ledger.read() as connection:
        return plan(connection, jobs)


def stored(ledger: Database, name: str = "tidy") -> StoredJob:
    with ledger.read() as connection:
        job = jobs.get(connection, name)
    assert job is not None
    return job


def stamp(ledger: Database) -> int:
    with ledger.read() as connection:
        return jobs.stamp(connection)


def test_a_plan_says_of_every_job_in_order_what_would_be_done(ledger: Database) -> None:
    applied(ledger, prepared("changes"), prepared("goes"), prepared("stays"))
    before = [stored(ledger, name) for name in ("changes", "goes", "stays")]
    assert planned(ledger, prepared("stays"), prepared("new"), prepared("changes", table="other")) == [
        Change(job="changes", move=Move.CHANGE, keys=("table",)),
        Change(job="goes", move=Move.REMOVE),
        Change(job="new", move=Move.ADD),
        Change(job="stays", move=Move.SAME),
    ]
    assert [stored(ledger, name) for name in ("changes", "goes", "stays")] == before


def test_a_plan_of_what_was_applied_finds_nothing_to_do(ledger: Database) -> None:
    job = prepared(when={"every": "15 min"}, timeout="10 min", retry={"attempts": 5})
    applied(ledger, job)
    assert [change.move for change in planned(ledger, job)] == [Move.SAME]


def test_a_new_job_counts_from_now(ledger: Database) -> None:
    applied(ledger, prepared(), prepared("by-hand", when=None))
    job = stored(ledger)
    assert (job.revision, job.kind, job.enabled) == (1, "tidy", True)
    assert (job.applied_at, job.cursor_at, job.next_at) == (NOW + HOUR / 2, NOW + HOUR / 2, NOW + HOUR)
    assert stored(ledger, "by-hand").next_at is None


def test_what_did_not_differ_is_not_touched(ledger: Database) -> None:
    applied(ledger, prepared())
    before, stamped = stored(ledger), stamp(ledger)
    assert [change.move for change in applied(ledger, prepared(), after=5 * HOUR)] == [Move.SAME]
    assert (stored(ledger), stamp(ledger)) == (before, stamped)


def test_every_change_is_a_new_revision_and_moves_the_stamp(ledger: Database) -> None:
    for number, table in enumerate(("one", "two", "three"), start=1):
        applied(ledger, prepared(table=table))
        assert stored(ledger).revision == number
        assert stamp(ledger) == number


@pytest.mark.parametrize(
    ("files", "key"),
    [
        ({**FILES, "sql/digest.sql": "SELECT 2"}, "sql/digest.sql"),
        ({**FILES, "template/digest/body.txt": "Hi"}, "template/digest/body.txt"),
        ({**FILES, "template/digest/body.html": "<p>"}, "template/digest/body.html"),
        ({"sql/digest.sql": "SELECT 1"}, "template/digest/body.txt"),
    ],
    ids=["sql", "template", "one more", "one less"],
)
def test_a_text_that_a_job_depends_on_is_part_of_the_job(
    ledger: Database, files: dict[str, str], key: str
) -> None:
    applied(ledger, prepared())
    changes = applied(ledger, prepared(files=files), after=5 * HOUR)
    assert changes == [Change(job="tidy", move=Move.CHANGE, keys=(key,))]
    job = stored(ledger)
    assert (job.files, job.revision, job.cursor_at) == (files, 2, NOW + HOUR / 2)


def test_a_change_names_every_key_that_differs(ledger: Database) -> None:
    applied(ledger, prepared())
    (change,) = planned(ledger, prepared(table="other", stop_at={"rows": 5}, timeout="2 h"))
    assert change.keys == ("stop_at.rows", "table", "timeout")


def test_a_change_beside_the_rule_keeps_the_cursor(ledger: Database) -> None:
    applied(ledger, prepared())
    applied(ledger, prepared(table="other", timeout="2 h"), after=5 * HOUR)
    job = stored(ledger)
    assert (job.cursor_at, job.next_at, job.applied_at) == (NOW + HOUR / 2, NOW + HOUR, NOW + 5 * HOUR)


def test_a_new_rule_counts_from_now(ledger: Database) -> None:
    applied(ledger, prepared())
    applied(ledger, prepared(when={"cron": "30 * * * *"}), after=5 * HOUR)
    job = stored(ledger)
    assert (job.cursor_at, job.next_at) == (NOW + 5 * HOUR, NOW + 5.5 * HOUR)


def test_a_job_that_is_enabled_again_does_not_catch_up(ledger: Database) -> None:
    applied(ledger, prepared())
    applied(ledger, prepared(enabled=False), after=HOUR)
    assert not stored(ledger).enabled
    applied(ledger, prepared(), after=5 * HOUR)
    job = stored(ledger)
    assert (job.enabled, job.cursor_at, job.next_at) == (True, NOW + 5 * HOUR, NOW + 6 * HOUR)


def test_applying_again_does_not_end_a_pause(ledger: Database) -> None:
    applied(ledger, prepared())
    with ledger.write() as connection:
        jobs.update(connection, "tidy", {"paused_at": NOW, "pause_reason": "deploy"})
    applied(ledger, prepared(table="other"))
    job = stored(ledger)
    assert (job.paused_at, job.pause_reason) == (NOW, "deploy")


def test_a_job_in_no_file_is_removed_only_when_pruning(ledger: Database) -> None:
    applied(ledger, prepared("stays"), prepared("goes"))
    with ledger.write() as connection:
        queued = add_run(connection, "goes")
        running = add_run(connection, "goes", state=RunState.RUNNING)
    gone = Change(job="goes", move=Move.REMOVE)
    assert gone in applied(ledger, prepared("stays"))
    assert stored(ledger, "goes").enabled
    assert run_of(ledger, queued).state is RunState.QUEUED
    assert gone in applied(ledger, prepared("stays"), prune=True)
    with ledger.read() as connection:
        assert [job.name for job in jobs.every(connection)] == ["stays"]
        assert len(runs.latest(connection, job="goes", limit=10)) == 2
    cancelled = run_of(ledger, queued)
    assert (cancelled.state, cancelled.reason) == (RunState.CANCELLED, "the job was removed")
    assert run_of(ledger, running).state is RunState.RUNNING


def test_all_is_applied_or_nothing(ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    applied(ledger, prepared("a"))

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(jobs, "move_stamp", broken)
    with pytest.raises(ZeroDivisionError):
        applied(ledger, prepared("a", table="other"), prepared("b"))
    assert stored(ledger, "a").revision == 1
    with ledger.read() as connection:
        assert jobs.get(connection, "b") is None
