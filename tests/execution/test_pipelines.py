from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytest
from pydantic import ValidationError

from maintd.database import Database
from maintd.errors import ClaimLost, JobFailed, MaintdError, Unavailable
from maintd.execution import intervene, pipelines
from maintd.execution.kinds import Done, Work
from maintd.execution.pipelines import PipelineSpec
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime
from maintd.ledger import campaigns, jobs, runs
from maintd.ledger.runs import Claim, Run
from maintd.ledger.states import RunState
from tests.execution.surroundings import Act, drain
from tests.ledgers import MINUTE, NOW, HandClock, add_campaign, add_job, add_run, race, run_of

DIAMOND: Mapping[str, Sequence[str]] = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
MAINTENANCE = "maintenance"


def spec_of(steps: Mapping[str, Sequence[str]]) -> PipelineSpec:
    return PipelineSpec.model_validate({"steps": {name: {"after": after} for name, after in steps.items()}})


def expanded(ledger: Database, steps: Mapping[str, Sequence[str]]) -> int:
    """The id of a pipeline's run that is underway, its first steps ready."""
    with ledger.write() as connection:
        for name in steps:
            if jobs.get(connection, name) is None:
                add_job(connection, name)
        run_id = add_run(connection, "monday", kind="pipeline", state=RunState.UNDERWAY, queue="control")
        parent = runs.get(connection, run_id)
        assert parent is not None
        pipelines.expand(
            connection, parent, spec_of(steps), step_job=lambda _: ("test", Queue.MAINTENANCE), now=NOW
        )
        pipelines.advance(connection, run_id, now=NOW)
    return run_id


def advance(ledger: Database, run_id: int) -> set[Queue]:
    with ledger.write() as connection:
        return pipelines.advance(connection, run_id, now=NOW)


def steps_of(ledger: Database, run_id: int) -> dict[str, Run]:
    with ledger.read() as connection:
        return {step.job: step for step in runs.steps(connection, run_id)}


def states(ledger: Database, run_id: int) -> dict[str, str]:
    return {name: step.state.value for name, step in steps_of(ledger, run_id).items()}


def claimed(ledger: Database, names: Iterable[str]) -> dict[str, Claim]:
    claims = {}
    for _ in list(names):
        with ledger.write() as connection:
            run = runs.claim(connection, queue=MAINTENANCE, token="t", owner="host:1", now=NOW)
        assert run is not None
        claims[run.job] = Claim(run_id=run.id, token="t")
    assert set(claims) == set(names)
    return claims


def end(ledger: Database, run_id: int, claim: Claim, state: RunState = RunState.SUCCEEDED) -> set[Queue]:
    """Ends a step and does what follows, in one transaction, as a worker does."""
    with ledger.write() as connection:
        runs.finish(connection, claim, state=state, now=NOW, result=None, reason=None)
        return pipelines.advance(connection, run_id, now=NOW)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ({"load": [], "mail": ["laod"]}, 'did you mean "load"?'),
        ({"a": ["b"], "b": ["c"], "c": ["a"]}, "in a circle"),
        ({"a": ["a"]}, "in a circle"),
        ({}, "at least 1"),
    ],
)
def test_steps_that_are_no_graph_are_refused(steps: Mapping[str, Sequence[str]], says: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        spec_of(steps)
    assert says in str(refusal.value)


def test_a_step_is_ready_when_all_that_it_waits_for_have_succeeded(ledger: Database) -> None:
    run_id = expanded(ledger, DIAMOND)
    assert states(ledger, run_id) == {"a": "queued", "b": "waiting", "c": "waiting", "d": "waiting"}
    assert end(ledger, run_id, claimed(ledger, ["a"])["a"]) == {Queue.MAINTENANCE}
    assert states(ledger, run_id) == {"a": "succeeded", "b": "queued", "c": "queued", "d": "waiting"}
    claims = claimed(ledger, ["b", "c"])
    assert end(ledger, run_id, claims["b"]) == set()
    assert states(ledger, run_id)["d"] == "waiting"
    assert end(ledger, run_id, claims["c"]) == {Queue.MAINTENANCE}
    assert end(ledger, run_id, claimed(ledger, ["d"])["d"]) == set()
    parent = run_of(ledger, run_id)
    assert (parent.state, parent.finished_at) == (RunState.SUCCEEDED, NOW)
    assert parent.result == {"steps": dict.fromkeys("abcd", "succeeded")}


def test_two_steps_that_end_at_once_ready_what_waits_for_both_exactly_once(ledger: Database) -> None:
    for _ in range(5):
        run_id = expanded(ledger, DIAMOND)
        end(ledger, run_id, claimed(ledger, ["a"])["a"])
        claims = list(claimed(ledger, ["b", "c"]).values())
        ready = race(2, lambda number: end(ledger, run_id, claims[number]))  # noqa: B023 - within the loop
        assert sorted(map(len, ready)) == [0, 1]
        end(ledger, run_id, claimed(ledger, ["d"])["d"])
        assert run_of(ledger, run_id).state is RunState.SUCCEEDED


def test_two_last_steps_that_end_at_once_end_the_pipeline_exactly_once(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[bool] = []
    move = runs.move

    def counted(*args: object, to: RunState, **options: object) -> bool:
        moved = move(*args, to=to, **options)  # type: ignore[arg-type]
        ends.append(moved and to is RunState.SUCCEEDED)
        return moved

    monkeypatch.setattr(runs, "move", counted)
    for _ in range(5):
        run_id = expanded(ledger, {"a": [], "b": []})
        claims = list(claimed(ledger, ["a", "b"]).values())
        race(2, lambda number: end(ledger, run_id, claims[number]))  # noqa: B023 - within the loop
        assert run_of(ledger, run_id).state is RunState.SUCCEEDED
    assert sum(ends) == 5


def test_what_comes_after_a_failed_step_is_skipped_and_says_why(ledger: Database) -> None:
    run_id = expanded(ledger, {"a": [], "b": ["a"], "c": ["b"], "aside": []})
    claims = claimed(ledger, ["a", "aside"])
    end(ledger, run_id, claims["a"], RunState.FAILED)
    assert states(ledger, run_id) == {"a": "failed", "b": "skipped", "c": "skipped", "aside": "running"}
    steps = steps_of(ledger, run_id)
    assert (steps["b"].reason, steps["c"].reason) == ('step "a" failed', 'step "b" skipped')
    assert run_of(ledger, run_id).state is RunState.UNDERWAY  # the other branch goes on
    end(ledger, run_id, claims["aside"])
    parent = run_of(ledger, run_id)
    assert parent.state is RunState.FAILED
    assert parent.reason == 'steps: "a" failed, "b" skipped, "c" skipped'


@pytest.mark.parametrize("how", [RunState.DEAD, RunState.CANCELLED])
def test_a_step_that_died_or_was_taken_back_is_no_success(ledger: Database, how: RunState) -> None:
    run_id = expanded(ledger, {"a": [], "b": ["a"]})
    step = steps_of(ledger, run_id)["a"]
    if how is RunState.DEAD:
        claim = claimed(ledger, ["a"])["a"]
        assert claim.run_id == step.id
        (running,) = [steps_of(ledger, run_id)["a"]]
        with ledger.write() as connection:
            assert runs.take_from_the_dead(connection, running, to=how, now=NOW, reason="gone")
    else:
        with ledger.write() as connection:
            assert runs.move(connection, step.id, to=how, now=NOW)
    advance(ledger, run_id)
    assert states(ledger, run_id) == {"a": how.value, "b": "skipped"}
    assert run_of(ledger, run_id).state is RunState.FAILED


def test_a_parked_step_keeps_the_pipeline_waiting_for_a_person(ledger: Database) -> None:
    run_id = expanded(ledger, {"a": [], "b": ["a"]})
    claimed(ledger, ["a"])
    with ledger.write() as connection:
        (running,) = runs.running(connection)
        runs.take_from_the_dead(connection, running, to=RunState.PARKED, now=NOW, reason="gone")
    advance(ledger, run_id)
    assert states(ledger, run_id) == {"a": "parked", "b": "waiting"}
    assert run_of(ledger, run_id).state is RunState.UNDERWAY


def test_expanding_again_leaves_the_steps_alone(ledger: Database) -> None:
    run_id = expanded(ledger, DIAMOND)
    before = steps_of(ledger, run_id)
    with ledger.write() as connection:
        parent = run_of(ledger, run_id)
        pipelines.expand(connection, parent, spec_of(DIAMOND), step_job=lambda _: None, now=NOW)
    assert steps_of(ledger, run_id) == before


def test_a_pipeline_that_has_ended_is_never_advanced(ledger: Database) -> None:
    run_id = expanded(ledger, {"a": []})
    end(ledger, run_id, claimed(ledger, ["a"])["a"])
    before = run_of(ledger, run_id)
    assert advance(ledger, run_id) == set()
    assert run_of(ledger, run_id) == before


@pytest.fixture
def monday(ledger: Database, acts: dict[str, Act]) -> int:
    """The id of a queued run of a pipeline: first, then second."""
    with ledger.write() as connection:
        for name in ("first", "second"):
            add_job(connection, name, spec={"kind": "test", "retry": {"attempts": 2, "wait": "1 min"}})
        steps = {"first": {}, "second": {"after": ["first"]}}
        add_job(connection, "monday", kind="pipeline", spec={"kind": "pipeline", "steps": steps})
        return add_run(connection, "monday", kind="pipeline", queue="control")


def test_a_pipeline_runs_from_end_to_end_and_no_worker_waits(
    runtime: Runtime, ledger: Database, monday: int, acts: dict[str, Act]
) -> None:
    nominal = []

    def act(work: Work) -> Done:
        nominal.append((work.run.job, work.run.nominal_at, work.run.cause))
        return Done(result={})

    acts["first"] = acts["second"] = act
    assert drain(runtime, queue=Queue.CONTROL).wakes == {Queue.MAINTENANCE}
    assert run_of(ledger, monday).state is RunState.UNDERWAY
    assert drain(runtime).wakes == {Queue.MAINTENANCE}
    assert nominal == [("first", NOW, "step"), ("second", NOW, "step")]
    assert run_of(ledger, monday).state is RunState.SUCCEEDED


def test_a_step_that_is_tried_again_skips_nothing_and_its_last_failure_does(
    runtime: Runtime, ledger: Database, clock: HandClock, monday: int, acts: dict[str, Act]
) -> None:
    def away(_work: Work) -> Done:
        raise Unavailable("the source is away")

    acts["first"] = away
    drain(runtime, queue=Queue.CONTROL)
    drain(runtime)
    assert states(ledger, monday) == {"first": "queued", "second": "waiting"}
    clock.turn(MINUTE)
    drain(runtime)
    assert states(ledger, monday) == {"first": "failed", "second": "skipped"}
    assert run_of(ledger, monday).state is RunState.FAILED


def test_a_step_whose_job_was_removed_fails_the_pipeline_in_words(
    runtime: Runtime, ledger: Database, monday: int, acts: dict[str, Act]
) -> None:
    with ledger.write() as connection:
        jobs.remove(connection, "first")
    wakes = drain(runtime, queue=Queue.CONTROL)
    assert wakes.wakes <= {Queue.CONTROL}
    drain(runtime, queue=Queue.CONTROL)
    assert states(ledger, monday) == {"first": "failed", "second": "skipped"}
    assert "not applied" in str(steps_of(ledger, monday)["first"].reason)
    assert run_of(ledger, monday).state is RunState.FAILED


def test_a_pipeline_of_a_failed_expansion_has_no_steps(
    runtime: Runtime, ledger: Database, monday: int, acts: dict[str, Act], monkeypatch: pytest.MonkeyPatch
) -> None:
    expand = pipelines.expand

    def cut_off(*args: object, **options: object) -> None:
        expand(*args, **options)  # type: ignore[arg-type]
        raise JobFailed("cut off")

    monkeypatch.setattr(pipelines, "expand", cut_off)
    drain(runtime, queue=Queue.CONTROL)
    assert steps_of(ledger, monday) == {}
    assert run_of(ledger, monday).state is RunState.FAILED


def test_steps_and_the_hand_over_are_written_together_or_not_at_all(
    runtime: Runtime, ledger: Database, monday: int, acts: dict[str, Act], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise ClaimLost("killed in the middle")

    monkeypatch.setattr(pipelines, "advance", cut_off)
    drain(runtime, queue=Queue.CONTROL)
    assert steps_of(ledger, monday) == {}
    assert run_of(ledger, monday).state is RunState.RUNNING


def test_cancelling_a_pipeline_leaves_a_mailing_under_way_alone(
    runtime: Runtime, ledger: Database, clock: HandClock
) -> None:
    with ledger.write() as connection:
        parent = add_run(connection, "monday", state=RunState.UNDERWAY, kind="pipeline")
        mailing = add_run(
            connection, "hello", state=RunState.UNDERWAY, kind="campaign", parent_id=parent, after=[]
        )
        waiting = add_run(connection, "tidy", state=RunState.WAITING, parent_id=parent, after=["hello"])
    intervene.cancel(parent, runtime)
    assert run_of(ledger, mailing).state is RunState.UNDERWAY
    assert run_of(ledger, waiting).state is RunState.CANCELLED
    assert run_of(ledger, parent).state is RunState.UNDERWAY


def test_a_run_whose_campaign_sends_already_cannot_be_cancelled_behind_its_back(
    runtime: Runtime, ledger: Database
) -> None:
    campaign = add_campaign(ledger, recipients=1)
    with ledger.write() as connection:
        queued = add_run(connection, "hello", kind="campaign")
        runs.move(connection, campaign.run_id, to=RunState.CANCELLED, now=NOW)
        campaigns.adopt(connection, campaign.id, run_id=queued)
    with pytest.raises(MaintdError, match="campaigns cancel"):
        intervene.cancel(queued, runtime)
    assert run_of(ledger, queued).state is RunState.QUEUED
