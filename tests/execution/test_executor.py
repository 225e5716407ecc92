from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from maintd.database import Database
from maintd.errors import Interrupted, JobFailed, Unavailable
from maintd.execution.kinds import Done, Work
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime
from maintd.ledger import jobs, runs
from maintd.ledger.runs import Run
from maintd.ledger.states import RunState
from tests.execution.surroundings import Act, drain
from tests.ledgers import MINUTE, NOW, HandClock, add_job, add_run, run_of


@pytest.fixture
def queued(ledger: Database) -> int:
    """The id of a queued run of a job that is tried four times."""
    with ledger.write() as connection:
        add_job(connection, spec={"kind": "test", "retry": {"attempts": 4, "wait": "30 s"}})
        return add_run(connection)


def raising(error: BaseException) -> Act:
    def act(_work: Work) -> Done:
        raise error

    return act


def took_over(ledger: Database, run_id: int) -> Run:
    """Takes a run from its worker, as a judge does."""
    taken = False
    while not taken:  # its heart beats, so its counter may move between the two statements
        with ledger.write() as connection:
            (found,) = [run for run in runs.running(connection) if run.id == run_id]
            taken = runs.take_from_the_dead(
                connection, found, to=RunState.PARKED, now=NOW, reason="taken over"
            )
    return run_of(ledger, run_id)


def test_a_run_that_went_well_keeps_what_was_counted(
    runtime: Runtime, queued: int, acts: dict[str, Act]
) -> None:
    acts["tidy"] = lambda work: Done(result={"removed": 3, "job": work.job.name})
    drained = drain(runtime)
    run = run_of(runtime.ledger, queued)
    assert (drained.ran, drained.wakes) == (1, set())
    assert (run.state, run.result, run.reason) == (RunState.SUCCEEDED, {"removed": 3, "job": "tidy"}, None)
    assert (run.token, run.started_at, run.finished_at, run.revision) == (None, NOW, NOW, 1)


def test_a_queue_is_worked_until_nothing_is_due(
    runtime: Runtime, ledger: Database, acts: dict[str, Act]
) -> None:
    ran: list[str] = []

    def act(work: Work) -> Done:
        ran.append(work.run.job)
        return Done(result={})

    with ledger.write() as connection:
        for number, name in enumerate("cab"):
            add_job(connection, name)
            add_run(connection, name, due_at=NOW - number * MINUTE)
            acts[name] = act
        add_job(connection, "later")
        add_run(connection, "later", due_at=NOW + MINUTE)
        add_job(connection, "elsewhere")
        add_run(connection, "elsewhere", queue="ratings")
    assert drain(runtime).ran == 3
    assert ran == ["b", "a", "c"]  # the longest due first


def test_what_is_begun_is_brought_to_its_end_though_the_budget_is_spent(
    runtime: Runtime, ledger: Database, clock: HandClock, queued: int, acts: dict[str, Act]
) -> None:
    with ledger.write() as connection:
        add_run(connection)

    def act(_work: Work) -> Done:
        clock.turn(MINUTE)
        return Done(result={})

    acts["tidy"] = act
    drained = drain(runtime, budget=MINUTE)
    assert (drained.ran, drained.wakes) == (1, {Queue.MAINTENANCE})
    assert run_of(ledger, queued).state is RunState.SUCCEEDED


def test_nothing_is_begun_when_the_worker_is_to_stop(
    runtime: Runtime, queued: int, acts: dict[str, Act]
) -> None:
    drained = drain(runtime, stopping=lambda: True)
    assert (drained.ran, drained.wakes) == (0, {Queue.MAINTENANCE})
    assert run_of(runtime.ledger, queued).state is RunState.QUEUED


def test_a_job_that_cannot_succeed_is_not_tried_again(
    runtime: Runtime, queued: int, acts: dict[str, Act]
) -> None:
    acts["tidy"] = raising(JobFailed("there is no table"))
    drain(runtime)
    run = run_of(runtime.ledger, queued)
    assert (run.state, run.reason, run.finished_at) == (RunState.FAILED, "there is no table", NOW)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Unavailable("the source is away"), "the source is away"), (KeyError("x"), "KeyError: 'x'")],
)
def test_what_may_pass_is_tried_again_with_growing_waits_until_the_attempts_end(
    runtime: Runtime,
    clock: HandClock,
    queued: int,
    acts: dict[str, Act],
    error: Exception,
    reason: str,
) -> None:
    acts["tidy"] = raising(error)
    waits = []
    for failures in (1, 2, 3):
        assert drain(runtime).ran == 1
        run = run_of(runtime.ledger, queued)
        assert (run.state, run.reason, run.failures) == (RunState.QUEUED, reason, failures)
        assert drain(runtime).ran == 0
        waits.append(run.due_at - clock.now())
        clock.turn(waits[-1])
    assert waits == [timedelta(seconds=30), timedelta(seconds=60), timedelta(seconds=120)]
    drain(runtime)
    run = run_of(runtime.ledger, queued)
    assert (run.state, run.reason) == (RunState.FAILED, reason)


def test_an_orderly_stop_costs_no_attempt(runtime: Runtime, queued: int, acts: dict[str, Act]) -> None:
    stop = threading.Event()

    def act(work: Work) -> Done:
        stop.set()
        assert work.stopping()
        raise Interrupted("stopped")

    acts["tidy"] = act
    drained = drain(runtime, stopping=stop.is_set)
    run = run_of(runtime.ledger, queued)
    assert drained.wakes == {Queue.MAINTENANCE}
    assert (run.state, run.failures, run.losses, run.token, run.due_at) == (RunState.QUEUED, 0, 0, None, NOW)


@pytest.mark.parametrize(
    "then",
    [
        lambda _: Done(result={"mine": 1}),
        lambda _: Done(result={"mine": 1}, state=RunState.UNDERWAY),
        raising(JobFailed("mine")),
        raising(KeyError("mine")),
        raising(Interrupted("mine")),
    ],
    ids=["succeeds", "goes on", "fails", "breaks", "stops"],
)
def test_whoever_lost_the_claim_meanwhile_overwrites_nothing(
    runtime: Runtime, queued: int, acts: dict[str, Act], then: Act
) -> None:
    taken: list[Run] = []

    def act(work: Work) -> Done:
        taken.append(took_over(runtime.ledger, queued))
        return then(work)

    acts["tidy"] = act
    assert drain(runtime).ran == 1
    assert run_of(runtime.ledger, queued) == taken[0]


def test_a_worker_that_lost_its_claim_is_told_at_the_next_border(
    runtime: Runtime, queued: int, acts: dict[str, Act]
) -> None:
    borders = []

    def act(work: Work) -> Done:
        took_over(runtime.ledger, queued)
        while True:  # until the heartbeat finds out
            borders.append(work.stopping())

    acts["tidy"] = act
    assert drain(runtime).ran == 1
    assert not any(borders)
    assert run_of(runtime.ledger, queued).state is RunState.PARKED


def test_the_counter_moves_and_progress_is_seen_while_a_run_goes_on(
    runtime: Runtime, queued: int, acts: dict[str, Act]
) -> None:
    seen: list[dict[str, Any] | None] = []

    def act(work: Work) -> Done:
        work.progress({"removed": 7})
        told_at = run_of(runtime.ledger, queued).counter
        while run_of(runtime.ledger, queued).counter < told_at + 2:  # the next beat may have begun before
            pass
        seen.append(run_of(runtime.ledger, queued).result)
        return Done(result={"removed": 9})

    acts["tidy"] = act
    drain(runtime)
    assert seen == [{"removed": 7}]
    assert run_of(runtime.ledger, queued).result == {"removed": 9}


def test_a_run_whose_job_was_removed_fails_and_says_so(
    runtime: Runtime, ledger: Database, queued: int, acts: dict[str, Act]
) -> None:
    with ledger.write() as connection:
        jobs.remove(connection, "tidy")
    drain(runtime)
    run = run_of(ledger, queued)
    assert run.state is RunState.FAILED
    assert "not applied" in str(run.reason)


def test_a_run_whose_job_was_stored_by_another_version_fails_and_names_the_key(
    runtime: Runtime, ledger: Database, acts: dict[str, Act]
) -> None:
    with ledger.write() as connection:
        add_job(connection, spec={"kind": "test", "of_tomorrow": 1})
        run_id = add_run(connection)
    drain(runtime)
    run = run_of(ledger, run_id)
    assert run.state is RunState.FAILED
    assert "of_tomorrow" in str(run.reason)


def test_a_run_that_takes_too_long_fails_at_the_next_border(
    runtime: Runtime, clock: HandClock, queued: int, acts: dict[str, Act]
) -> None:
    def act(work: Work) -> Done:
        assert not work.stopping()
        clock.turn(timedelta(hours=1, seconds=1))
        work.stopping()
        raise AssertionError("it went on")

    acts["tidy"] = act
    drain(runtime)
    run = run_of(runtime.ledger, queued)
    assert run.state is RunState.FAILED
    assert str(run.reason).startswith("timeout")


def test_a_run_whose_work_lives_in_rows_of_its_own_is_left_underway(
    runtime: Runtime, queued: int, acts: dict[str, Act]
) -> None:
    acts["tidy"] = lambda _: Done(
        result={"rows": 1}, state=RunState.UNDERWAY, wakes=frozenset({Queue.MAIL_BULK})
    )
    assert drain(runtime).wakes == {Queue.MAIL_BULK}
    run = run_of(runtime.ledger, queued)
    assert (run.state, run.token, run.finished_at, run.result) == (RunState.UNDERWAY, None, None, {"rows": 1})


def test_a_transaction_of_a_run_is_refused_once_its_claim_is_lost(
    runtime: Runtime, ledger: Database, queued: int, acts: dict[str, Act]
) -> None:
    def act(work: Work) -> Done:
        took_over(ledger, queued)
        with ledger.write() as connection:
            add_job(connection, "written-without-a-claim")
            work.hold(connection)
        return Done(result={})

    acts["tidy"] = act
    drain(runtime)
    with ledger.read() as connection:
        assert jobs.get(connection, "written-without-a-claim") is None


def test_what_is_done_stays_done_when_the_ledger_blinks_while_it_is_written_down(
    runtime: Runtime,
    ledger: Database,
    queued: int,
    acts: dict[str, Act],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blinks = iter([Unavailable("blink"), Unavailable("blink")])
    finish = runs.finish

    def blinking(*args: Any, **options: Any) -> None:
        if error := next(blinks, None):
            raise error
        finish(*args, **options)

    monkeypatch.setattr(runs, "finish", blinking)
    done = []
    acts["tidy"] = lambda _work: (done.append(1), Done(result={}))[1]
    drain(runtime)
    assert (run_of(ledger, queued).state, len(done)) == (RunState.SUCCEEDED, 1)


def test_what_a_database_says_of_its_values_is_not_kept_as_a_reason(
    runtime: Runtime, ledger: Database, queued: int, acts: dict[str, Act]
) -> None:
    def act(_work: Work) -> Done:
        with ledger.write() as connection:
            connection.exec_driver_sql("SELECT 'secret.person@example.org' AS address FROM nowhere")
        return Done(result={})

    acts["tidy"] = act
    drain(runtime)
    assert "secret.person" not in (run_of(ledger, queued).reason or "")
