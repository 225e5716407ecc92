"""What is said and done about a ledger that went back in time."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import sqlalchemy as sa

from maintd.execution.queues import Queue
from maintd.execution.worker import Worker, scene_of
from maintd.ledger import campaigns
from maintd.ledger.states import CampaignState
from maintd.ledger.tables import timeline
from tests.backups import Backups
from tests.cli.conftest import Project
from tests.ledgers import add_campaign
from tests.sinks import SinkThread


@pytest.fixture
def restored(small_project: Project, relay: SinkThread, tmp_path: Path) -> Project:
    """Three were mailed, and the ledger is from before."""
    backups = Backups(small_project.settings.database_url.get_secret_value(), tmp_path)
    with small_project.runtime() as runtime:
        add_campaign(runtime.ledger, recipients=3)
        backup = backups.take()
        worker = Worker(runtime, stopping=lambda: False)
        worker.work(Queue.MAIL_BULK)
        worker.close()
    assert relay.sink.accepted == 3
    backups.restore(backup)
    return small_project


def test_of_a_ledger_that_is_well_the_status_says_so(small_project: Project) -> None:
    shown = small_project.maintd("ledger", "status")
    assert shown.code == 0
    assert "no" in shown.out
    accepted = small_project.maintd("ledger", "accept", "--yes")
    assert accepted.code == 1
    assert "there is nothing to accept" in accepted.err


def test_a_ledger_that_went_back_is_seen_shown_and_accepted(restored: Project) -> None:
    seen = restored.maintd("ledger", "status", "--json")
    assert seen.code == 1
    assert "went back in time" in seen.json["held"]
    assert seen.json["seen"]["sequence"] > seen.json["point"]["sequence"]

    dry = restored.maintd("ledger", "accept", "--dry-run", "--json")
    assert (dry.code, dry.json["accepted"], dry.json["recordings"]) == (0, 3, 1)
    assert "nothing was changed" in dry.err

    refused = restored.maintd("ledger", "accept", typed="n\n")
    assert refused.code == 130
    assert restored.maintd("ledger", "status").code == 1

    replayed = restored.maintd("ledger", "replay", "--json")
    assert (replayed.code, replayed.json["accepted"]) == (0, 3)
    assert restored.maintd("ledger", "status").code == 1

    accepted = restored.maintd("ledger", "accept", typed="y\n")
    assert accepted.code == 0
    assert "of epoch 1" in accepted.out
    assert "`maintd ledger replay` on each of them first" in accepted.err
    assert restored.maintd("ledger", "status").code == 0


def test_while_the_ledger_is_held_whatever_would_start_something_says_so(small_project: Project) -> None:
    maintd = small_project.maintd
    maintd("apply")
    assert maintd("pause", "expired-sessions").code == 0
    with small_project.runtime() as runtime:
        campaign = add_campaign(runtime.ledger, recipients=1, state=CampaignState.PAUSED)
    assert maintd("ledger", "hold", "--reason", "a drill").code == 0

    refused = maintd("run", "expired-sessions")
    assert refused.code == 69
    warned = [
        maintd("resume", "expired-sessions"),
        maintd("campaigns", "resume", campaign.name),
        maintd("timers"),
    ]
    assert [one.code for one in warned] == [0, 0, 0]
    for one in (refused, *warned):
        assert "the ledger is held: a drill" in one.err
        assert "`maintd ledger accept`" in one.err
    checked = maintd("check")
    assert checked.code == 1
    assert "it is held: a drill" in checked.out + checked.err
    assert maintd("runs").code == 0


def test_whoever_starts_a_job_need_not_read_the_state_directory(small_project: Project) -> None:
    small_project.maintd("apply")
    with small_project.runtime() as runtime:
        runtime.timeline.look()
        runtime.witness.path.unlink()
        runtime.witness.path.mkdir()
    assert small_project.maintd("run", "expired-sessions").code == 0


def test_a_damaged_recording_is_listed(restored: Project) -> None:
    with restored.runtime() as runtime:
        [path] = scene_of(runtime).directory.glob("*.done")
        path.rename(path.with_suffix(".damaged"))
        with runtime.ledger.write() as connection:
            connection.execute(sa.update(timeline).values(epoch=1))
    assert path.with_suffix(".damaged").name in restored.maintd("ledger", "status").out


def test_what_was_done_after_the_backup_is_entered_again_before_the_ledger_goes_on(
    restored: Project, relay: SinkThread
) -> None:
    maintd, mailed = restored.maintd, relay.sink.accepted
    with restored.runtime() as runtime:
        for job in ("cancelled", "paused"):
            add_campaign(runtime.ledger, recipients=1, job=job)
    assert maintd("ledger", "replay").code == 0
    asked = maintd("ledger", "accept", typed="n\n")
    assert "enter them again before you accept" in asked.err
    assert all(name in asked.out for name in ("cancelled/one", "paused/one"))

    def going_on() -> dict[str, int]:
        dry = maintd("ledger", "accept", "--dry-run", "--json").json
        return {one["campaign"]: one["left"] for one in dry["goes_on"]}

    assert going_on() == {"hello/one": 0, "cancelled/one": 1, "paused/one": 1}
    again = [
        maintd("campaigns", "cancel", "cancelled/one"),
        maintd("campaigns", "pause", "paused/one"),
        maintd("suppressions", "add", "ada@example.org"),
    ]
    assert [one.code for one in again] == [0, 0, 0]
    assert going_on() == {"hello/one": 0}
    assert maintd("ledger", "accept", "--yes").code == 0
    assert maintd("suppressions", "find", "ada@example.org", "--json").json is not None
    with restored.runtime() as runtime, contextlib.closing(Worker(runtime, stopping=lambda: False)) as worker:
        worker.work(Queue.MAIL_BULK)
        assert relay.sink.accepted == mailed
        with runtime.ledger.read() as connection:
            states = {one.job: one.state for one in campaigns.latest(connection, job=None, limit=10)}
    assert states == {
        "hello": CampaignState.FINISHED,
        "cancelled": CampaignState.CANCELLED,
        "paused": CampaignState.PAUSED,
    }
