"""Starting runs, following them, looking at them and deciding about them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa

from maintd.database import Database
from maintd.execution.follow import follow
from maintd.execution.queues import Queue
from maintd.execution.trigger import trigger
from maintd.execution.worker import Worker
from maintd.keyspace import Keyspace
from maintd.ledger import campaigns, deliveries, runs
from maintd.ledger.runs import Run
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from maintd.ledger.tables import campaigns as campaign_rows
from maintd.ledger.tables import deliveries as delivery_rows
from maintd.ledger.tables import runs as run_rows
from maintd.mail import control
from maintd.mail.enrolling import audience
from tests.cli.conftest import Project
from tests.ledgers import NOW, add_campaign, stretch_of
from tests.sinks import SinkThread


def all_runs(project: Project) -> list[Run]:
    with project.runtime() as runtime, runtime.ledger.read() as connection:
        return runs.latest(connection, job=None, limit=99)


def states(project: Project) -> dict[str, RunState]:
    return {run.job: run.state for run in reversed(all_runs(project))}


def rows(project: Project, table: str) -> int:
    database = Database(f"sqlite:///{project.source}", name="source app")
    with database.read() as connection:
        return int(connection.exec_driver_sql(f"SELECT COUNT(*) FROM {table}").scalar_one())


def work_off(project: Project, *queues: Queue) -> None:
    with project.runtime() as runtime:
        worker = Worker(runtime, stopping=lambda: False)
        for queue in queues:
            worker.work(queue)
        worker.close()


def park(project: Project, run_id: int) -> None:
    """As the reconciler does with a run of `on_lost = "park"` whose worker vanished."""
    with project.runtime() as runtime, runtime.ledger.write() as connection:
        now = runtime.clock.now()
        queue = next(run.queue for run in runs.latest(connection, job=None, limit=99) if run.id == run_id)
        claimed = runs.claim(connection, queue=queue, token="t", owner="o", now=now)
        assert claimed is not None
        assert runs.take_from_the_dead(connection, claimed, to=RunState.PARKED, now=now, reason="vanished")


@pytest.fixture
def applied(project: Project) -> Project:
    assert project.maintd("apply").code == 0
    return project


@pytest.fixture
def small(small_project: Project) -> Project:
    assert small_project.maintd("apply").code == 0
    return small_project


def test_a_run_started_by_hand_is_queued_and_a_worker_is_woken(applied: Project, redis_url: str) -> None:
    started = applied.maintd("run", "expired-sessions", "--json")
    assert started.code == 0
    (run,) = all_runs(applied)
    assert (run.id, run.job, run.cause, run.state) == (
        started.json["run"],
        "expired-sessions",
        "manual",
        RunState.QUEUED,
    )
    keyspace = Keyspace(redis_url)
    assert keyspace.queue_length(Queue.MAINTENANCE) == 1
    keyspace.close()


def test_without_redis_a_run_is_queued_all_the_same(small: Project) -> None:
    small.maintd.environ["MAINTD_REDIS_URL"] = "redis://127.0.0.1:1/0"
    assert small.maintd("run", "title-ratings").code == 0
    assert states(small) == {"title-ratings": RunState.QUEUED}


def test_a_dry_run_counts_what_a_run_then_does_and_leaves_no_trace(applied: Project) -> None:
    before, bytes_before = rows(applied, "session"), applied.source.read_bytes()
    counted = {
        job: applied.maintd("run", job, "--dry-run", "--json").json
        for job in ("expired-sessions", "title-ratings", "weekly-digest")
    }
    assert all_runs(applied) == []
    assert applied.source.read_bytes() == bytes_before
    with applied.working():
        assert applied.maintd("run", "nightly", "--wait").code == 0
    done = {run.job: run.result or {} for run in all_runs(applied)}
    would_remove = counted["expired-sessions"]["counts"]["would_remove"]
    assert would_remove > 0
    assert would_remove == done["expired-sessions"]["removed"] == before - rows(applied, "session")
    assert counted["title-ratings"]["counts"]["changed"] == done["title-ratings"]["changed"] > 0
    digest = counted["weekly-digest"]["counts"]
    assert digest["audience"] == done["weekly-digest"]["audience"] > 0
    assert digest["invalid"] == done["weekly-digest"]["rejected"] > 0
    assert digest["mailed_in_this_period"] == digest["still_to_come"] == 0


def test_a_dry_run_that_a_cap_would_stop_fails(small: Project) -> None:
    small.change("rows = 500_000", "rows = 1")
    small.change("recipients = 20_000", "recipients = 1")
    small.maintd("apply")
    for job in ("expired-sessions", "weekly-digest"):
        stopped = small.maintd("run", job, "--dry-run")
        assert (stopped.code, "stop_at" in stopped.err) == (1, True)


AUDIENCE = """
SELECT 'Ann' AS name, 1 AS rated_count, 'Up' AS favourite, column1 AS email, column2 AS user_id
FROM (VALUES ('ann@a.example', 1), ('bob@a.example', 2), ('ann@A.example', 3), ('no', 4), ('no', 4), ('no', 5))
"""


@pytest.mark.parametrize(("identifier", "recipients"), [(', recipient = "user_id"', 4), ("", 5)])
def test_a_dry_run_counts_the_recipients_that_an_enrolment_counts(
    small: Project, monkeypatch: pytest.MonkeyPatch, identifier: str, recipients: int
) -> None:
    monkeypatch.setattr(audience, "CHUNK", 1)
    (small.jobs.parent / "digest.sql").write_text(AUDIENCE)
    small.change(', recipient = "user_id"', identifier)
    small.change("recipients = 20_000", f"recipients = {recipients - 1}")
    small.maintd("apply")
    stopped = small.maintd("run", "weekly-digest", "--dry-run")
    assert (stopped.code, f"more than {recipients - 1} recipients" in stopped.err) == (1, True)
    small.change(f"recipients = {recipients - 1}", f"recipients = {recipients}")
    small.maintd("apply")
    counted = small.maintd("run", "weekly-digest", "--dry-run", "--json")
    assert (counted.code, counted.json["counts"]["audience"]) == (0, 6)
    small.maintd("run", "weekly-digest")
    work_off(small, Queue.MAINTENANCE)
    with small.runtime() as runtime, runtime.ledger.read() as connection:
        (campaign,) = campaigns.latest(connection, job="weekly-digest", limit=9)
    assert counted.json["counts"]["recipients"] == campaign.enrolled == recipients


def test_a_dry_run_of_what_cannot_be_counted_is_refused(small: Project) -> None:
    refused = small.maintd("run", "nightly", "--dry-run")
    assert (refused.code, "expired-sessions" in refused.err) == (64, True)
    assert small.maintd("run", "weekly-digest", "--dry-run", "--new-edition").code == 64
    assert all_runs(small) == []


def test_waiting_follows_a_pipeline_and_its_mailing_to_their_end(applied: Project, relay: SinkThread) -> None:
    with applied.working():
        ended = applied.maintd("run", "nightly", "--wait", "--json")
    assert ended.code == 0, ended.err
    assert set(states(applied).values()) == {RunState.SUCCEEDED}
    steps = {step["job"]: step for step in ended.json["steps"]}
    assert ended.json["run"]["state"] == "succeeded"
    assert steps["weekly-digest"]["result"]["sent"] == relay.sink.accepted > 0
    lines = ended.err.splitlines()
    assert lines[-1].startswith("weekly-digest: succeeded") or lines[-1].startswith("nightly: succeeded")
    assert len(lines) == len(set(lines))


def test_waiting_for_a_run_that_fails_fails_with_its_reason(small: Project) -> None:
    small.change("rows = 500_000", "rows = 1")
    small.maintd("apply")
    with small.working():
        ended = small.maintd("run", "nightly", "--wait")
    assert ended.code == 1
    assert "stop_at" in ended.out
    assert states(small) == {
        "nightly": RunState.FAILED,
        "expired-sessions": RunState.FAILED,
        "title-ratings": RunState.SKIPPED,
        "weekly-digest": RunState.SKIPPED,
    }


def test_ctrl_c_ends_the_waiting_and_not_the_run(small: Project) -> None:
    command = [sys.executable, "-m", "maintd", "run", "nightly", "--wait"]
    environ = {name: text for name, text in os.environ.items() if not name.startswith("MAINTD_")}
    waiting = subprocess.Popen(
        command, env=environ | small.maintd.environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert waiting.stderr is not None
    assert any("nightly: queued" in line for line in waiting.stderr)
    waiting.send_signal(signal.SIGINT)
    _, rest = waiting.communicate()
    assert waiting.returncode == 130
    assert "goes on" in rest
    assert "Traceback" not in rest
    assert states(small) == {"nightly": RunState.QUEUED}


def test_another_edition_is_mailed_only_after_the_overlap_was_shown_and_accepted(
    applied: Project, relay: SinkThread
) -> None:
    first = applied.maintd("run", "weekly-digest", "--new-edition")
    assert first.code == 0, "a period without an edition needs no word"
    work_off(applied, Queue.MAINTENANCE, Queue.MAIL_BULK)
    mailed = relay.sink.accepted
    assert mailed > 0
    declined = applied.maintd("run", "weekly-digest", "--new-edition", typed="n\n")
    assert declined.code == 130
    unanswered = applied.maintd("run", "weekly-digest", "--new-edition")
    assert (unanswered.code, "not confirmed; use --yes" in unanswered.err) == (130, True)
    assert len(all_runs(applied)) == 1
    assert f"Mail {mailed} people once more?" in declined.err
    assert applied.maintd("run", "weekly-digest", "--new-edition", typed="y\n").code == 0
    work_off(applied, Queue.MAINTENANCE, Queue.MAIL_BULK)
    assert relay.sink.accepted == 2 * mailed
    assert applied.maintd("run", "weekly-digest", "--new-edition", "--yes").code == 0
    with applied.runtime() as runtime, runtime.ledger.read() as connection:
        editions = [one.edition for one in campaigns.latest(connection, job="weekly-digest", limit=9)]
    assert len(editions) == 2
    assert editions[0] == f"{editions[1]}+2"


def test_the_overlap_tells_those_mailed_from_those_still_to_come_and_those_never_to_be(
    applied: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied.maintd("run", "weekly-digest")
    work_off(applied, Queue.MAINTENANCE)  # enrolled, nothing sent
    with applied.runtime() as runtime, runtime.ledger.write() as connection:
        (campaign,) = campaigns.latest(connection, job="weekly-digest", limit=9)
        pending = deliveries.pending(connection, stretch_of(campaign))
        for state, some in (
            (DeliveryState.SENT, pending[:7]),
            (DeliveryState.UNCERTAIN, pending[7:10]),
            (DeliveryState.DEFERRED, pending[10:15]),
            (DeliveryState.CANCELLED, pending[-2:]),
        ):
            keys = [delivery.recipient_key for delivery in some]
            connection.execute(
                sa.update(delivery_rows).where(delivery_rows.c.recipient_key.in_(keys)).values(state=state)
            )
    # An address that the audience has twice is one recipient, wherever its rows are.
    assert campaign.duplicates > 0
    monkeypatch.setattr(audience, "CHUNK", 1)
    counts = applied.maintd("run", "weekly-digest", "--dry-run", "--json").json["counts"]
    assert counts["mailed_in_this_period"] == 10
    assert counts["still_to_come"] == len(pending) - 12
    assert "go on with this edition" in counts["it_would"]


def test_a_dry_run_of_a_mailing_shows_the_first_few_whom_it_would_mail(
    small: Project, relay: SinkThread
) -> None:
    def shown() -> list[str]:
        found = small.maintd("run", "weekly-digest", "--dry-run", "--json").json
        return [sample["address"] for sample in found["samples"] if not sample["problem"]]

    first, *others = shown()
    assert len(others) == 4
    small.maintd("suppressions", "add", first)
    assert shown()[:4] == others
    assert f" {others[0]} " in small.maintd("run", "weekly-digest", "--dry-run").out
    small.maintd("run", "weekly-digest")
    work_off(small, Queue.MAINTENANCE)
    assert shown()[:4] == others
    work_off(small, Queue.MAIL_BULK)
    assert relay.sink.accepted > 5
    assert shown() == []


def dry_run_of(project: Project) -> tuple[dict[str, Any], list[str]]:
    """What a dry run of the mailing counts, and whom it says it would mail."""
    found = project.maintd("run", "weekly-digest", "--dry-run", "--json").json
    return found["counts"], [one["address"] for one in found["samples"] if not one["problem"]]


def alter_campaign(project: Project, **values: object) -> None:
    with project.runtime() as runtime, runtime.ledger.write() as connection:
        connection.execute(sa.update(campaign_rows).values(values))


def mail_by_hand(project: Project) -> None:
    """Sends an edition such as `--new-edition` makes."""
    project.maintd("run", "weekly-digest")
    work_off(project, Queue.MAINTENANCE, Queue.MAIL_BULK)
    alter_campaign(project, edition="ever+2")


def test_a_dry_run_of_a_mailing_whose_enrolment_a_cap_cut_off_speaks_of_its_whole_audience(
    small: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, at_first = dry_run_of(small)
    monkeypatch.setattr(audience, "CHUNK", 1)
    small.change("recipients = 20_000", "recipients = 3")
    small.maintd("apply")
    small.maintd("run", "weekly-digest")
    work_off(small, Queue.MAINTENANCE)
    stopped = small.maintd("run", "weekly-digest", "--dry-run")
    assert (stopped.code, "stop_at.recipients" in stopped.err) == (1, True)
    asked = small.maintd("run", "weekly-digest", "--new-edition", typed="n\n").err
    assert "one that is enrolling may yet have all of them" in asked
    small.change("recipients = 3", "recipients = 20_000")
    small.maintd("apply")
    counts, shown = dry_run_of(small)
    assert "begun and not completed" in counts["it_would"]
    assert (counts["mailed_in_this_period"], counts["still_to_come"]) == (0, 0)
    assert shown == at_first


def test_a_dry_run_of_a_mailing_that_only_has_editions_made_by_hand_speaks_of_a_new_one(
    small: Project, relay: SinkThread
) -> None:
    _, at_first = dry_run_of(small)
    mail_by_hand(small)
    counts, shown = dry_run_of(small)
    assert counts["it_would"] == "enrol this edition and send it"
    assert counts["mailed_in_this_period"] == relay.sink.accepted > 0
    assert shown == at_first


def test_a_dry_run_shows_those_whom_its_own_edition_would_mail_whatever_another_has_sent(
    small: Project, relay: SinkThread
) -> None:
    _, at_first = dry_run_of(small)
    mail_by_hand(small)
    small.maintd("run", "weekly-digest")
    work_off(small, Queue.MAINTENANCE)
    counts, shown = dry_run_of(small)
    assert counts["it_would"] == "go on with this edition, which is sending"
    assert (counts["mailed_in_this_period"], counts["still_to_come"]) == (relay.sink.accepted, 0)
    assert shown == at_first


def test_nobody_of_a_cancelled_mailing_is_to_come(small: Project) -> None:
    small.maintd("run", "weekly-digest")
    work_off(small, Queue.MAINTENANCE)
    alter_campaign(small, state=CampaignState.CANCELLED)  # and nobody has settled its deliveries yet
    counts, shown = dry_run_of(small)
    assert (counts["still_to_come"], shown) == (0, [])


def test_new_editions_are_for_campaigns(small: Project) -> None:
    assert small.maintd("run", "title-ratings", "--new-edition", "--yes").code == 64
    assert all_runs(small) == []


def test_runs_are_listed_newest_first_up_to_a_limit_and_by_job(applied: Project) -> None:
    for job in ("title-ratings", "nightly", "title-ratings"):
        applied.maintd("run", job)
    ids = [run.id for run in all_runs(applied)]

    def listed(*arguments: str) -> list[int]:
        return [one["id"] for one in applied.maintd("runs", *arguments, "--json").json["runs"]]

    assert listed() == ids == sorted(ids, reverse=True)
    assert listed("--limit", "2") == ids[:2]
    assert listed("title-ratings") == listed("list", "title-ratings") == [ids[0], ids[2]]
    table = applied.maintd("runs").out
    assert all(run.name in table for run in all_runs(applied))


def test_a_job_that_was_removed_keeps_its_history_in_sight(small: Project) -> None:
    small.maintd("run", "nightly")
    text = small.jobs.read_text()
    small.jobs.write_text(text[: text.index("# When all of it happens")])
    small.maintd("apply", "--prune")
    assert [one["job"] for one in small.maintd("runs", "nightly", "--json").json["runs"]] == ["nightly"]


def test_a_run_is_shown_with_its_steps_its_campaign_and_no_token(applied: Project) -> None:
    with applied.working():
        applied.maintd("run", "nightly", "--wait")
    found = {run.job: run for run in all_runs(applied)}
    parent = applied.maintd("runs", "show", str(found["nightly"].id), "--json").json
    assert [step["id"] for step in parent["steps"]] == sorted(
        run.id for run in found.values() if run.parent_id is not None
    )
    mailing = applied.maintd("runs", "show", str(found["weekly-digest"].id), "--json").json
    assert mailing["campaign"]["job"] == "weekly-digest"
    assert mailing["run"]["result"] == found["weekly-digest"].result
    assert "token" not in mailing["run"]
    shown = applied.maintd("runs", "show", str(found["weekly-digest"].id)).out
    assert found["weekly-digest"].name in shown
    assert applied.maintd("runs", "show", "999999").code == 64


def test_only_what_has_not_begun_is_cancelled(applied: Project) -> None:
    applied.maintd("run", "title-ratings")
    (run,) = all_runs(applied)
    assert applied.maintd("runs", "cancel", str(run.id)).code == 0
    assert states(applied) == {"title-ratings": RunState.CANCELLED}
    assert applied.maintd("runs", "cancel", str(run.id)).code == 1
    with applied.runtime() as runtime:
        running = trigger("title-ratings", runtime)
        with runtime.ledger.write() as connection:
            runs.claim(connection, queue=running.queue, token="t", owner="o", now=runtime.clock.now())
    refused = applied.maintd("runs", "cancel", str(running.id))
    assert (refused.code, "worker" in refused.err) == (1, True)
    assert states(applied) == {"title-ratings": RunState.RUNNING}
    assert applied.maintd("runs", "cancel", "999999").code == 64


def test_cancelling_a_pipeline_cancels_the_steps_that_have_not_begun(applied: Project) -> None:
    applied.maintd("run", "nightly")
    work_off(applied, Queue.CONTROL)
    parent = next(run for run in all_runs(applied) if run.job == "nightly")
    assert parent.state is RunState.UNDERWAY
    assert applied.maintd("runs", "cancel", str(parent.id)).code == 0
    assert Counter(states(applied).values()) == {RunState.CANCELLED: 3, RunState.FAILED: 1}


def test_cancelling_a_step_skips_what_waits_for_it(small: Project) -> None:
    small.maintd("run", "nightly")
    work_off(small, Queue.CONTROL)
    step = next(run for run in all_runs(small) if run.job == "expired-sessions")
    assert small.maintd("runs", "cancel", str(step.id)).code == 0
    assert states(small) == {
        "nightly": RunState.FAILED,
        "expired-sessions": RunState.CANCELLED,
        "title-ratings": RunState.SKIPPED,
        "weekly-digest": RunState.SKIPPED,
    }


def test_a_mailing_is_not_cancelled_as_a_run(small: Project) -> None:
    small.maintd("run", "weekly-digest")
    work_off(small, Queue.MAINTENANCE)
    (run,) = all_runs(small)
    refused = small.maintd("runs", "cancel", str(run.id))
    assert (refused.code, "weekly-digest/" in refused.err) == (1, True)
    assert states(small) == {"weekly-digest": RunState.UNDERWAY}


def test_a_parked_run_goes_on_when_a_person_says_so_and_no_other_run_does(applied: Project) -> None:
    applied.maintd("run", "title-ratings")
    (run,) = all_runs(applied)
    assert applied.maintd("runs", "retry", str(run.id)).code == 1
    park(applied, run.id)
    assert applied.maintd("runs", "retry", str(run.id)).code == 0
    assert states(applied) == {"title-ratings": RunState.QUEUED}
    work_off(applied, Queue.RATINGS)
    assert states(applied) == {"title-ratings": RunState.SUCCEEDED}
    assert applied.maintd("runs", "retry", str(run.id)).code == 1


def test_a_step_that_waits_for_others_is_not_forced(small: Project) -> None:
    small.maintd("run", "nightly")
    work_off(small, Queue.CONTROL)
    step = next(run for run in all_runs(small) if run.job == "weekly-digest")
    assert small.maintd("runs", "retry", str(step.id)).code == 1
    assert states(small)["weekly-digest"] is RunState.WAITING


def test_waiting_ends_when_only_a_person_can_go_on(small: Project) -> None:
    small.maintd("run", "title-ratings")
    (run,) = all_runs(small)
    park(small, run.id)
    with small.runtime() as runtime:
        looks = list(follow(run.id, runtime.ledger, pause=pytest.fail))
    assert [look.run.state for look in looks] == [RunState.PARKED]


def test_waiting_for_a_mailing_tells_why_it_is_paused_and_ends(small: Project) -> None:
    with small.runtime() as runtime:
        campaign = add_campaign(runtime.ledger, recipients=3)
        control.pause(runtime.ledger, campaign.name, reason="wrong link", now=NOW)
        assert len(list(follow(campaign.run_id, runtime.ledger, pause=pytest.fail))) == 1
    assert "hello/one paused (wrong link)" in small.maintd("runs", "show", str(campaign.run_id)).out


def test_a_dry_run_of_a_job_that_only_the_files_have_names_the_cure(small_project: Project) -> None:
    refused = small_project.maintd("run", "title-ratings", "--dry-run")
    assert refused.code == 64
    assert '"title-ratings" is in nightly.toml, not applied yet: run `maintd apply`' in refused.err
    unknown = small_project.maintd("run", "no-such-job", "--dry-run")
    assert (unknown.code, "not applied yet" in unknown.err) == (64, False)


def test_a_run_that_finds_its_edition_finished_does_not_boast_of_another_runs_mails(
    small: Project, relay: SinkThread
) -> None:
    for _ in range(2):
        small.maintd("run", "weekly-digest")
        work_off(small, Queue.MAINTENANCE, Queue.MAIL_BULK)
    second, first = all_runs(small)
    assert second.state is first.state is RunState.SUCCEEDED
    lines = {line.split()[0]: line for line in small.maintd("runs").out.splitlines() if line.strip()}
    assert f"sent {relay.sink.accepted:,}" in lines[str(first.id)]
    assert "edition finished before: nothing to send" in lines[str(second.id)]
    assert "sent" not in lines[str(second.id)].replace("nothing to send", "")
    shown = small.maintd("runs", "show", str(second.id)).out
    assert "nothing to send" in shown
    assert f"{relay.sink.accepted:,}" not in shown


def test_a_mailing_that_goes_on_shows_what_is_settled_and_not_what_is_begun(small: Project) -> None:
    small.maintd("run", "weekly-digest")
    work_off(small, Queue.MAINTENANCE)
    with small.runtime() as runtime, runtime.ledger.write() as connection:
        (campaign,) = campaigns.latest(connection, job="weekly-digest", limit=9)
        pending = deliveries.pending(connection, stretch_of(campaign))
        keys = [delivery.recipient_key for delivery in pending[:7]]
        connection.execute(
            sa.update(delivery_rows)
            .where(delivery_rows.c.recipient_key.in_(keys))
            .values(state=DeliveryState.SENT)
        )
    (run,) = all_runs(small)
    assert "sent 7" in small.maintd("runs", "show", str(run.id)).out
    with small.runtime() as runtime:
        first = next(follow(run.id, runtime.ledger, pause=pytest.fail))
    assert first.settled[run.id][DeliveryState.SENT] == 7
    assert DeliveryState.PENDING not in first.settled[run.id]


def test_a_run_that_ran_once_was_tried_once_and_one_that_did_not_begin_never(small: Project) -> None:
    small.maintd("run", "title-ratings")

    def tried() -> str:
        header, row = (line for line in small.maintd("runs").out.splitlines() if re.match(r" (ID|\d)", line))
        place = header.index("TRIED")
        return row[place : place + 5].strip()

    assert tried() == "–"
    work_off(small, Queue.RATINGS)
    assert tried() == "1"
    with small.runtime() as runtime, runtime.ledger.write() as connection:
        connection.execute(sa.update(run_rows).values(failures=1))
    assert "2 (1 failed)" in small.maintd("runs").out
