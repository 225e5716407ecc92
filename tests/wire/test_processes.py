"""The tree of processes: beats that take turns, workers that die, an orderly stop, and one that is none."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from maintd import api
from maintd.clock import new_token
from maintd.errors import Unavailable
from maintd.keyspace import SCHEDULE, redis_url_of
from maintd.ledger import runs
from maintd.ledger.engine import open_ledger
from maintd.ledger.runs import Run
from maintd.ledger.states import RunState
from maintd.ledger.tables import jobs
from maintd.supervise.embedded import server_command
from maintd.supervise.supervisor import how_it_ended
from tests.wire.site import JOBS, Site, children_of, kill, lives, until

EVERY_SECOND = JOBS.replace(
    "[old-sessions]\n", '[old-sessions]\nwhen = { every = "1 s", missed = "all" }\noverlap = "queue"\n'
)


@pytest.fixture
def site(tmp_path: Path, database_url: str) -> Iterator[Site]:
    site = Site(
        tmp_path, ledger_url=database_url, smtp_url="smtp://127.0.0.1:9", people=10, jobs=EVERY_SECOND
    )
    yield site
    site.runtime.close()


@pytest.fixture
def quiet_site(tmp_path: Path, sqlite_url: str) -> Iterator[Site]:
    site = Site(tmp_path, ledger_url=sqlite_url, smtp_url="smtp://127.0.0.1:9", people=10)
    yield site
    site.runtime.close()


@contextmanager
def redis_of(site: Site) -> Iterator[None]:
    """The embedded server alone."""
    with subprocess.Popen(server_command(site.settings)) as server:
        try:
            yield
        finally:
            server.terminate()


def succeeded(found: list[Run]) -> list[Run]:
    return [run for run in found if run.state is RunState.SUCCEEDED]


def test_a_beat_that_is_killed_is_followed_by_another_and_no_instant_is_lost_or_doubled(site: Site) -> None:
    with site.up():
        until(lambda: len(succeeded(site.runs_of("old-sessions"))) >= 2, what="two runs")
        kill(site.pid_of("beat"))
        newest = site.runs_of("old-sessions")[0].id
        until(lambda: len([r for r in site.runs_of("old-sessions") if r.id > newest]) >= 3, what="three more")

    instants = sorted(run.nominal_at for run in site.runs_of("old-sessions"))
    assert {(later - earlier).total_seconds() for earlier, later in pairwise(instants)} == {1.0}


def test_of_two_beats_one_leads_and_the_other_takes_over(site: Site) -> None:
    site.environ["MAINTD_BEAT_LOCK"] = (
        "15 s"  # so that a leader whom a busy machine keeps waiting still leads
    )
    with site.up() as tree:
        until(lambda: "this beat leads" in site.log("up"), what="a leader")
        with site.process("beat") as standby:
            until(lambda: "this one stands by" in site.log("beat"), what="a standby")
            seen = len(succeeded(site.runs_of("old-sessions")))
            until(lambda: len(succeeded(site.runs_of("old-sessions"))) > seen, what="another run")
            assert "this beat leads" not in site.log("beat")
            tree.terminate()
            # Its Redis went with the tree: the standby waits for it, then leads.
            tree.wait(100)
            assert standby.poll() is None
    with site.up(), site.process("beat"):
        until(lambda: len(succeeded(site.runs_of("old-sessions"))) >= 3, what="runs of the next tree")

    labels = [run.occurrence for run in site.runs_of("old-sessions")]
    assert len(labels) == len(set(labels))


def test_jobs_stand_in_the_mirror_and_come_back_into_an_emptied_redis(site: Site) -> None:
    with site.up():
        client = redis.Redis.from_url(redis_url_of(site.settings), decode_responses=True)
        until(lambda: client.zscore(SCHEDULE, "maintd:redbeat:old-sessions"), what="the mirror")
        client.flushall()
        until(lambda: client.zscore(SCHEDULE, "maintd:redbeat:old-sessions"), what="the mirror again")
        assert '"__type__": "maintd"' in str(client.hget("maintd:redbeat:old-sessions", "definition"))
        client.close()


def test_a_change_that_is_applied_reaches_the_beat_without_a_restart(quiet_site: Site) -> None:
    with quiet_site.up():
        (quiet_site.directory / "schedules" / "jobs.toml").write_text(EVERY_SECOND)
        assert quiet_site.maintd("apply").returncode == 0
        until(lambda: succeeded(quiet_site.runs_of("old-sessions")), what="a run by the new rule")


def test_a_second_tree_on_the_same_state_directory_is_refused_and_names_the_first(quiet_site: Site) -> None:
    with quiet_site.up() as tree:
        second = quiet_site.maintd("up")

        assert second.returncode == 1
        assert f"pid {tree.pid}" in second.stderr
        assert "Traceback" not in second.stderr


def test_an_orderly_stop_leaves_no_process_behind(quiet_site: Site) -> None:
    with quiet_site.up() as tree:
        children = children_of(tree.pid)
        tree.terminate()
        assert tree.wait(100) == 0

    assert children
    assert not [pid for pid in children if lives(pid)]


def test_a_tree_whose_root_is_killed_takes_its_children_along(quiet_site: Site) -> None:
    with quiet_site.up() as tree:
        children = children_of(tree.pid)
        kill(tree.pid)
        tree.wait(100)
        until(lambda: not [pid for pid in children if lives(pid)], what="the end of the children")
    with quiet_site.up():
        run_id = api.trigger("old-sessions", settings=quiet_site.settings)
        assert quiet_site.ended(run_id).state is RunState.SUCCEEDED


def test_a_run_whose_worker_was_killed_is_taken_over(quiet_site: Site) -> None:
    """The claim is made in the name of a process that is no more, as a kill right after the claim leaves it."""
    quiet_site.environ["MAINTD_LEASE"] = "1500 ms"
    quiet_site.maintd("apply")
    run_id = api.trigger("old-sessions", settings=quiet_site.settings)
    with quiet_site.runtime.ledger.write() as connection:
        now = quiet_site.runtime.clock.now()
        runs.claim(connection, queue="maintenance", token=new_token(), owner="nobody:1", now=now)
    with quiet_site.up():
        run = quiet_site.ended(run_id)

    assert (run.state, run.failures) == (RunState.SUCCEEDED, 0)
    assert run.losses >= 1, "and one more for each worker that a busy machine kept waiting for a lease"
    assert quiet_site.sessions_left() == 1


def test_daemons_wait_for_a_redis_that_is_away_and_begin_when_it_comes(quiet_site: Site) -> None:
    quiet_site.maintd("apply")
    with quiet_site.process("beat") as beat, quiet_site.process("worker") as worker:
        until(lambda: "Redis does not answer" in quiet_site.log("beat"), what="a clear line")
        run_id = api.trigger("old-sessions", settings=quiet_site.settings)
        assert (beat.poll(), worker.poll()) == (None, None)
        with redis_of(quiet_site):
            assert quiet_site.ended(run_id).state is RunState.SUCCEEDED


def test_a_beat_outlives_a_redis_that_refuses_to_write(quiet_site: Site) -> None:
    (quiet_site.directory / "schedules" / "jobs.toml").write_text(EVERY_SECOND)
    quiet_site.maintd("apply")
    with redis_of(quiet_site), quiet_site.process("beat") as beat:
        until(lambda: quiet_site.runs_of("old-sessions"), what="a run")
        with closing(redis.Redis.from_url(redis_url_of(quiet_site.settings))) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "9")
            until(lambda: "Redis refuses" in quiet_site.log("beat"), what="a clear line")
            newest = quiet_site.runs_of("old-sessions")[0].id
            client.execute_command("REPLICAOF", "NO", "ONE")
        until(lambda: quiet_site.runs_of("old-sessions")[0].id > newest, what="the next run")
        assert beat.poll() is None


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_who_was_stopped_inside_a_transaction_delays_the_others_for_a_while_and_ends_nobody(
    site: Site, database_url: str
) -> None:
    ledger = open_ledger(database_url, idle_timeout=timedelta(hours=1))
    site.environ["MAINTD_STATEMENT_TIMEOUT"] = "300 ms"
    site.maintd("apply")
    with redis_of(site), site.process("beat") as beat:
        until(lambda: site.runs_of("old-sessions"), what="a run")
        with pytest.raises(Unavailable), ledger.write() as stopped:
            stopped.execute(sa.select(jobs).with_for_update())
            newest = site.runs_of("old-sessions")[0].id
            until(lambda: "does not answer in time" in site.log("beat"), what="a clear line")
            # Now its time is over, as it would be by itself after a lease.
            stopped.exec_driver_sql("SET idle_in_transaction_session_timeout = 1")
            until(lambda: site.runs_of("old-sessions")[0].id > newest, what="the next run")
        assert beat.poll() is None
    ledger.dispose()


def test_what_ended_a_child_is_said_in_words() -> None:
    assert how_it_ended(3) == "exited with 3"
    assert how_it_ended(-9) == "was killed by SIGKILL"
