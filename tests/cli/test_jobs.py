"""Bringing job files into the ledger, seeing when they run, and pausing them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import redis

from maintd.execution.kinds import queue_of
from maintd.execution.trigger import trigger
from maintd.keyspace import LOCK
from maintd.ledger import jobs, misses, runs
from maintd.ledger.jobs import StoredJob
from maintd.ledger.states import RunState
from maintd.scheduling.occurrences import fire
from tests.cli.conftest import Maintd, Project

NAMES = ["expired-sessions", "nightly", "title-ratings", "weekly-digest"]


def stored(project: Project) -> dict[str, StoredJob]:
    with project.runtime() as runtime, runtime.ledger.read() as connection:
        return {job.name: jobs.require(connection, job.name) for job in jobs.every(connection)}


def moves(project: Project, *arguments: str) -> dict[str, str]:
    return {one["job"]: one["move"] for one in project.maintd(*arguments, "--json").json}


def timers(project: Project) -> dict[str, dict[str, str]]:
    return {one["job"]: one for one in project.maintd("timers", "--json").json}


def nights(after: datetime, until: datetime) -> int:
    """How often the hour of `nightly` came between two instants of which the second is at most days later."""
    days = [after.date() + timedelta(days=number) for number in range(-1, 9)]
    hours = [datetime.combine(day, time(3, 10), ZoneInfo("Europe/Berlin")) for day in days]
    return sum(after < hour <= until for hour in hours)


def set_cursor(project: Project, name: str, *, cursor_at: datetime, next_at: datetime) -> None:
    with project.runtime() as runtime, runtime.ledger.write() as connection:
        was = jobs.require(connection, name).cursor_at
        move = jobs.Advance(job=name, was=was, cursor_at=cursor_at, next_at=next_at)
        assert jobs.advance(connection, [move])


def test_a_plan_tells_what_differs_and_changes_nothing(project: Project) -> None:
    assert project.maintd("plan").code == 2
    assert moves(project, "plan") == dict.fromkeys(NAMES, "add")
    assert stored(project) == {}


def test_after_apply_nothing_differs(project: Project) -> None:
    assert moves(project, "apply") == dict.fromkeys(NAMES, "added")
    assert list(stored(project)) == NAMES
    assert project.maintd("plan").code == 0
    assert moves(project, "apply") == dict.fromkeys(NAMES, "same")
    assert {job.revision for job in stored(project).values()} == {1}


def test_a_changed_job_is_named_with_its_keys_and_a_query_is_a_part_of_its_job(
    small_project: Project,
) -> None:
    small_project.maintd("apply")
    small_project.change('age = "1 day"', 'age = "2 days"')
    query = small_project.jobs.parent / "digest.sql"
    query.write_text(query.read_text() + "-- changed\n")
    planned = small_project.maintd("plan", "--json")
    assert planned.code == 2
    keys = {one["job"]: one["keys"] for one in planned.json if one["move"] == "change"}
    assert keys == {"expired-sessions": ["older_than.age"], "weekly-digest": ["sql/digest.sql"]}
    small_project.maintd("apply")
    found = stored(small_project)
    assert found["expired-sessions"].spec["older_than"]["age"] == "2 days"
    assert found["weekly-digest"].files["sql/digest.sql"].endswith("-- changed\n")
    assert [found[name].revision for name in NAMES] == [2, 1, 1, 2]


def test_a_job_that_is_in_no_file_differs_and_goes_only_when_pruned(project: Project) -> None:
    project.jobs.with_name("more.toml").write_text(
        '[tick]\nkind = "pipeline"\nsteps = { title-ratings = {} }\n'
    )
    project.maintd("apply")
    project.maintd("run", "tick")
    project.jobs.with_name("more.toml").unlink()
    planned = project.maintd("plan")
    assert planned.code == 2
    assert "--prune" in planned.out
    assert moves(project, "apply")["tick"] == "kept"
    assert "tick" in stored(project)
    assert moves(project, "apply", "--prune")["tick"] == "removed"
    assert "tick" not in stored(project)
    with project.runtime() as runtime, runtime.ledger.read() as connection:
        assert [run.state for run in runs.latest(connection, job="tick", limit=9)] == [RunState.CANCELLED]


def test_an_empty_directory_removes_nothing(small_project: Project) -> None:
    small_project.maintd("apply")
    small_project.jobs.unlink()
    for command in (["plan"], ["apply"], ["apply", "--prune"]):
        assert small_project.maintd(*command).code == 1
    assert list(stored(small_project)) == NAMES


def test_one_wrong_job_keeps_all_of_them_out(small_project: Project) -> None:
    small_project.change('kind    = "ratings"', 'kind    = "rating"')
    small_project.change('table      = "session"', 'tabel      = "session"')
    refused = small_project.maintd("apply")
    assert refused.code == 1
    assert '[title-ratings] kind: there is no kind "rating"; did you mean "ratings"?' in refused.err
    assert 'did you mean "table"?' in refused.err
    assert stored(small_project) == {}


def test_a_ledger_that_is_away_is_told_from_one_that_was_never_made(bare: Maintd, project: Project) -> None:
    project.maintd.environ["MAINTD_DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/none"
    away = project.maintd("plan")
    assert (away.code, "does not answer" in away.err) == (69, True)
    never = bare("runs")
    assert (never.code, "maintd migrate" in never.err) == (1, True)


def test_timers_are_in_the_order_in_which_they_are_due_and_speak_of_the_jobs_own_zone(
    project: Project,
) -> None:
    project.jobs.with_name("more.toml").write_text(
        '[soon]\nkind = "pipeline"\nwhen = { every = "1 min" }\nsteps = { title-ratings = {} }\n'
    )
    project.maintd("apply")
    shown = project.maintd("timers").out
    assert re.search(r"03:10:00 CES?T .* nightly", shown)
    found = timers(project)
    due = {name: one["next_at"] for name, one in found.items() if one["next_at"]}
    assert due.keys() == {"soon", "nightly"}
    assert list(found)[:2] == sorted(due, key=due.__getitem__)
    places = [shown.index(f" {name} ") for name in found]
    assert places == sorted(places)
    assert found["nightly"]["timezone"] == "Europe/Berlin"
    assert found["nightly"]["state"] == "waiting"
    assert found["weekly-digest"]["state"] == "by hand"
    assert found["title-ratings"]["note"] == "step of nightly, soon"


def test_a_job_whose_instant_nobody_saw_is_overdue_unless_it_is_running(project: Project) -> None:
    project.maintd("apply")
    now = datetime.now(UTC)
    set_cursor(
        project, "nightly", cursor_at=now - timedelta(days=2), next_at=now - timedelta(hours=1, minutes=1)
    )
    assert timers(project)["nightly"]["state"] == "overdue"
    with project.runtime() as runtime:
        run = trigger("nightly", runtime)
        assert timers(project)["nightly"]["state"] == "queued"
        with runtime.ledger.write() as connection:
            claimed = runs.claim(connection, queue=run.queue, token="t", owner="o", now=runtime.clock.now())
    assert claimed is not None
    assert claimed.started_at is not None
    assert timers(project)["nightly"]["state"] == "running"
    assert timers(project)["nightly"]["last_at"] == claimed.started_at.isoformat()


def test_paused_and_disabled_jobs_have_no_next_instant(small_project: Project) -> None:
    small_project.maintd("apply")
    small_project.maintd("pause", "nightly", "--reason", "moving [house]")
    assert (
        timers(small_project)["nightly"] | {"state": "paused", "note": "moving [house]", "next_at": None}
        == (timers(small_project)["nightly"])
    )
    assert "moving [house]" in small_project.maintd("timers").out
    small_project.maintd("resume", "nightly")
    small_project.change("[nightly]\n", "[nightly]\nenabled = false\n")
    small_project.maintd("apply")
    assert timers(small_project)["nightly"]["state"] == "disabled"
    assert timers(small_project)["nightly"]["next_at"] is None


def test_timers_say_when_no_beat_leads(small_project: Project, redis_url: str) -> None:
    small_project.maintd("apply")
    assert "no beat leads" in small_project.maintd("timers").err
    with redis.Redis.from_url(redis_url) as client:
        client.set(LOCK, "somebody", px=60_000)
    assert small_project.maintd("timers").err == ""
    small_project.maintd.environ["MAINTD_REDIS_URL"] = "redis://127.0.0.1:1/0"
    unknown = small_project.maintd("timers")
    assert (unknown.code, len(unknown.err.splitlines())) == (0, 1)


def fire_all(project: Project) -> int:
    with project.runtime() as runtime:
        now = runtime.clock.now()
        return fire(runtime.timeline, NAMES, now=now, queue_of=queue_of).created


def test_a_paused_job_is_never_due_and_what_it_missed_is_written_down_and_not_caught_up(
    project: Project,
) -> None:
    project.maintd("apply")
    now = datetime.now(UTC)
    assert project.maintd("pause", "nightly", "--reason", "first").code == 0
    since = stored(project)["nightly"].paused_at
    assert project.maintd("pause", "nightly", "--reason", "holidays").code == 0
    assert stored(project)["nightly"].paused_at == since
    three_days_ago = now - timedelta(days=3)
    set_cursor(project, "nightly", cursor_at=three_days_ago, next_at=three_days_ago + timedelta(hours=1))
    assert fire_all(project) == 0
    assert project.maintd("resume", "nightly").code == 0
    assert fire_all(project) == 0
    resumed = stored(project)["nightly"]
    assert (resumed.paused_at, resumed.pause_reason) == (None, None)
    assert resumed.cursor_at is not None
    assert resumed.cursor_at >= now
    assert resumed.next_at is not None
    assert resumed.next_at > resumed.cursor_at
    with project.runtime() as runtime, runtime.ledger.read() as connection:
        missed = misses.latest(connection, job="nightly", limit=9)
    assert [(miss.count, miss.exact, miss.reason) for miss in missed] == [
        (nights(three_days_ago, resumed.cursor_at), True, "paused: holidays")
    ]
    assert three_days_ago < missed[0].first_at < missed[0].last_at <= resumed.cursor_at
    listed = project.maintd("runs", "nightly")
    assert "paused: holidays" in listed.out


def test_pausing_and_resuming_tell_every_mirror_of_the_jobs(small_project: Project) -> None:
    def stamp() -> int:
        with small_project.runtime() as runtime, runtime.ledger.read() as connection:
            return jobs.stamp(connection)

    small_project.maintd("apply")
    seen = [stamp()]
    for command in (["pause", "nightly", "--reason", "x"], ["resume", "nightly"]):
        small_project.maintd(*command)
        seen.append(stamp())
    assert len(set(seen)) == 3


def test_what_was_not_paused_is_left_as_it_is(small_project: Project) -> None:
    small_project.maintd("apply")
    before = stored(small_project)
    assert small_project.maintd("resume", "nightly").code == 0
    assert stored(small_project) == before


def test_a_job_that_is_not_there_is_a_wrong_command_line_and_the_nearest_is_named(
    small_project: Project,
) -> None:
    small_project.maintd("apply")
    for command in (
        ["pause", "nightli", "--reason", "x"],
        ["resume", "nightli"],
        ["run", "nightli"],
        ["runs", "nightli"],
    ):
        refused = small_project.maintd(*command)
        assert (refused.code, 'did you mean "nightly"?' in refused.err) == (64, True)


def test_a_pause_needs_no_reason(small_project: Project) -> None:
    small_project.maintd("apply")
    assert small_project.maintd("pause", "nightly").code == 0
    assert stored(small_project)["nightly"].pause_reason == "by hand"
