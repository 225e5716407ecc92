from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.ledger import jobs, misses, runs
from maintd.ledger.jobs import StoredJob
from maintd.ledger.misses import Miss
from maintd.ledger.runs import Run
from maintd.ledger.states import RunState
from maintd.ledger.timeline import Timeline
from maintd.scheduling import occurrences
from maintd.scheduling.occurrences import Fired, fire
from tests.ledgers import MINUTE, NOW, add_job, add_run, race

EVERY_MINUTE = {"cron": "* * * * *"}


def add(ledger: Database, name: str = "tidy", *, cursor_at: datetime = NOW, **keys: Any) -> None:
    when = {**EVERY_MINUTE, **keys.pop("when", {})}
    with ledger.write() as connection:
        add_job(
            connection,
            name,
            spec={"kind": "test", "when": when, **keys},
            cursor_at=cursor_at,
            next_at=cursor_at + MINUTE,
        )


def fired(ledger: Database, *, now: datetime, names: Sequence[str] = ("tidy",)) -> Fired:
    return fire(Timeline(ledger), names, now=now, queue_of=lambda job: f"queue of {job.kind}"[:16])


def runs_of(ledger: Database, job: str = "tidy") -> list[Run]:
    with ledger.read() as connection:
        return runs.latest(connection, job=job, limit=1000)[::-1]


def misses_of(ledger: Database) -> list[Miss]:
    with ledger.read() as connection:
        return misses.latest(connection, job=None, limit=1000)[::-1]


def job_of(ledger: Database, name: str = "tidy") -> StoredJob:
    with ledger.read() as connection:
        job = jobs.get(connection, name)
    assert job is not None
    return job


def test_a_due_occurrence_becomes_a_queued_run_and_the_cursor_moves(ledger: Database) -> None:
    add(ledger)
    done = fired(ledger, now=NOW + MINUTE)
    assert done == Fired(created=1, next_at={"tidy": NOW + 2 * MINUTE}, queues={"queue of test"})
    (run,) = runs_of(ledger)
    assert (run.state, run.cause, run.nominal_at, run.due_at) == (
        RunState.QUEUED,
        "schedule",
        NOW + MINUTE,
        NOW + MINUTE,
    )
    assert (run.occurrence, run.options) == ("2026-11-20T08:01[UTC]", {"timezone": "UTC"})
    job = job_of(ledger)
    assert (job.cursor_at, job.next_at) == (NOW + MINUTE, NOW + 2 * MINUTE)


def test_nothing_at_or_before_the_cursor_is_ever_made(ledger: Database) -> None:
    add(ledger)
    assert fired(ledger, now=NOW).created == 0
    assert fired(ledger, now=NOW - timedelta(days=1)).created == 0
    assert (runs_of(ledger), misses_of(ledger)) == ([], [])
    assert job_of(ledger).cursor_at == NOW


def test_the_same_instant_is_fired_once_however_often_it_is_looked_at(ledger: Database) -> None:
    add(ledger)
    assert [fired(ledger, now=NOW + MINUTE).created for _ in range(3)] == [1, 0, 0]
    assert len(runs_of(ledger)) == 1


def test_beats_that_fire_at_once_make_every_run_once(ledger: Database) -> None:
    names = [f"job{number}" for number in range(20)]
    for name in names:
        add(ledger, name)

    assert sum(race(4, lambda _: fired(ledger, now=NOW + MINUTE, names=names).created)) == 20
    assert [len(runs_of(ledger, name)) for name in names] == [1] * 20
    assert {job_of(ledger, name).cursor_at for name in names} == {NOW + MINUTE}


def test_a_failure_between_run_and_cursor_leaves_neither(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(ledger, when={"missed": "skip"})

    def broken(*_: object, **__: object) -> bool:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(jobs, "advance", broken)
        with pytest.raises(ZeroDivisionError):
            fired(ledger, now=NOW + 5 * MINUTE)
    assert (runs_of(ledger), misses_of(ledger), job_of(ledger).cursor_at) == ([], [], NOW)
    fired(ledger, now=NOW + 5 * MINUTE)
    assert len(misses_of(ledger)) == 1


def test_a_cursor_that_moved_meanwhile_takes_the_runs_of_its_chunk_back_and_the_next_look_makes_them(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(ledger, "moved")
    add(ledger, "still")
    advance = jobs.advance

    def advance_still(connection: Connection, moves: Sequence[jobs.Advance]) -> bool:
        return moves[0].job == "still" and advance(connection, moves)

    with monkeypatch.context() as patched:
        patched.setattr(occurrences, "CHUNK", 1)
        patched.setattr(jobs, "advance", advance_still)
        done = fired(ledger, now=NOW + MINUTE, names=["moved", "still"])
    assert (done.created, done.next_at) == (1, {"still": NOW + 2 * MINUTE})
    assert runs_of(ledger, "moved") == []
    assert fired(ledger, now=NOW + MINUTE, names=["moved", "still"]).created == 1
    assert len(runs_of(ledger, "moved")) == 1


def test_an_occurrence_that_overlaps_is_written_down_as_skipped(ledger: Database) -> None:
    add(ledger)
    with ledger.write() as connection:
        going = add_run(connection, state=RunState.UNDERWAY)
    assert fired(ledger, now=NOW + MINUTE) == Fired(
        created=0, next_at={"tidy": NOW + 2 * MINUTE}, queues=set()
    )
    skipped = runs_of(ledger)[-1]
    assert (skipped.state, skipped.reason) == (RunState.SKIPPED, "the run before it was still going")
    assert skipped.finished_at == NOW + MINUTE
    with ledger.write() as connection:
        runs.move(connection, going, to=RunState.SUCCEEDED, now=NOW)
    assert fired(ledger, now=NOW + 2 * MINUTE).created == 1


def test_an_occurrence_that_overlaps_waits_for_its_turn_if_the_job_says_so(ledger: Database) -> None:
    add(ledger, overlap="queue")
    assert [fired(ledger, now=NOW + minute * MINUTE).created for minute in (1, 2, 3)] == [1, 1, 1]
    assert {run.state for run in runs_of(ledger)} == {RunState.QUEUED}


@pytest.mark.parametrize(
    ("missed", "late_runs", "reason"), [("once", 1, "superseded"), ("skip", 0, "skipped")]
)
def test_what_did_not_run_is_recorded_as_a_range_with_its_reason(
    ledger: Database, missed: str, late_runs: int, reason: str
) -> None:
    add(ledger, when={"missed": missed}, overlap="queue")
    done = fired(ledger, now=NOW + 60 * MINUTE)
    nominal = [run.nominal_at for run in runs_of(ledger)]
    on_time = [NOW + 59 * MINUTE, NOW + 60 * MINUTE]  # no later than a change of leader takes
    late = [NOW + 58 * MINUTE] * late_runs
    assert nominal == late + on_time
    assert done.created == len(nominal)
    (miss,) = misses_of(ledger)
    assert (miss.reason, miss.first_at, miss.exact) == (reason, NOW + MINUTE, True)
    assert miss.last_at == NOW + (58 - late_runs) * MINUTE
    assert miss.count == 58 - late_runs


def test_what_ran_late_because_the_job_wants_all_leaves_nothing_missed(ledger: Database) -> None:
    add(ledger, when={"missed": "all"}, overlap="queue")
    assert fired(ledger, now=NOW + 60 * MINUTE).created == 60
    assert misses_of(ledger) == []


def test_a_long_absence_is_caught_up_on_in_bounded_steps(ledger: Database) -> None:
    add(ledger, when={"missed": "all"}, overlap="queue")
    now = NOW + 250 * MINUTE
    assert [fired(ledger, now=now).created for _ in range(4)] == [100, 100, 50, 0]
    nominal = [run.nominal_at for run in runs_of(ledger)]
    assert nominal == [NOW + minute * MINUTE for minute in range(1, 251)]


@pytest.mark.parametrize(
    "columns",
    [{"enabled": False}, {"paused_at": NOW}, {"next_at": None}],
    ids=["disabled", "paused", "never due"],
)
def test_a_job_that_is_not_scheduled_is_left_alone(ledger: Database, columns: dict[str, Any]) -> None:
    add(ledger)
    with ledger.write() as connection:
        jobs.update(connection, "tidy", columns)
    assert fired(ledger, now=NOW + 5 * MINUTE) == Fired(created=0, next_at={"tidy": None}, queues=set())
    assert job_of(ledger).cursor_at == NOW


def test_a_job_that_was_removed_is_known_never_to_be_due(ledger: Database) -> None:
    assert fired(ledger, now=NOW, names=["gone"]) == Fired(created=0, next_at={"gone": None}, queues=set())


def test_many_jobs_are_fired_in_several_transactions(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(occurrences, "CHUNK", 3)
    names = [f"job{number}" for number in range(8)]
    for name in names:
        add(ledger, name)
    done = fired(ledger, now=NOW + MINUTE, names=names)
    assert (done.created, done.next_at) == (8, dict.fromkeys(names, NOW + 2 * MINUTE))


def test_a_job_runs_once_in_the_night_that_has_an_hour_twice_and_once_in_the_one_that_lacks_it(
    ledger: Database,
) -> None:
    rule = {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}
    for name, day in (
        ("spring", datetime(2026, 3, 28, 12, tzinfo=UTC)),
        ("autumn", datetime(2026, 10, 24, 12, tzinfo=UTC)),
    ):
        add(ledger, name, cursor_at=day, when=rule, overlap="queue")
        now = day
        while now < day + timedelta(days=2):  # a beat that looks every half hour for two days
            now += 30 * MINUTE
            fired(ledger, now=now, names=[name])
    assert [(run.occurrence, run.nominal_at) for run in runs_of(ledger, "spring")] == [
        ("2026-03-29T02:30[Europe/Berlin]", datetime(2026, 3, 29, 1, 0, tzinfo=UTC)),
        ("2026-03-30T02:30[Europe/Berlin]", datetime(2026, 3, 30, 0, 30, tzinfo=UTC)),
    ]
    assert [(run.occurrence, run.nominal_at) for run in runs_of(ledger, "autumn")] == [
        ("2026-10-25T02:30[Europe/Berlin]", datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        ("2026-10-26T02:30[Europe/Berlin]", datetime(2026, 10, 26, 1, 30, tzinfo=UTC)),
    ]
    assert misses_of(ledger) == []


def test_a_job_that_cannot_be_read_is_paused_with_the_reason_and_keeps_no_other_from_firing(
    ledger: Database,
) -> None:
    add(ledger, "broken", overlap="sometimes")
    add(ledger, "sound")
    assert fired(ledger, now=NOW + MINUTE, names=["broken", "sound"]).created == 1
    broken = job_of(ledger, "broken")
    assert (broken.paused_at, broken.cursor_at) == (NOW + MINUTE, NOW)
    assert "overlap" in (broken.pause_reason or "")
    assert len(runs_of(ledger, "sound")) == 1


def test_a_job_of_an_unknown_kind_is_paused_with_the_reason_and_keeps_no_other_from_firing(
    ledger: Database,
) -> None:
    add(ledger, "newer")
    add(ledger, "sound")
    with ledger.write() as connection:
        jobs.update(connection, "newer", {"kind": "cleanup.moon"})
    queues = {"test": "maintenance"}
    done = fire(
        Timeline(ledger), ["newer", "sound"], now=NOW + MINUTE, queue_of=lambda job: queues.get(job.kind)
    )
    assert (done.created, done.queues) == (1, {"maintenance"})
    newer = job_of(ledger, "newer")
    assert (newer.paused_at, newer.cursor_at) == (NOW + MINUTE, NOW)
    assert 'no kind "cleanup.moon"' in (newer.pause_reason or "")
    assert len(runs_of(ledger, "sound")) == 1
