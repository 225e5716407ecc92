"""Runs that somebody asks for."""

from __future__ import annotations

from maintd.database import Database
from maintd.execution.runtime import Runtime
from maintd.execution.trigger import trigger
from maintd.ledger import runs
from tests.execution.surroundings import Act
from tests.ledgers import add_job, race


def test_a_message_that_comes_twice_makes_one_run(
    runtime: Runtime, ledger: Database, acts: dict[str, Act]
) -> None:
    with ledger.write() as connection:
        add_job(connection, spec={"kind": "test"})
    made = race(4, lambda _: trigger("tidy", runtime, key="3f1c").id)
    assert len(set(made)) == 1
    with ledger.read() as connection:
        assert len(runs.latest(connection, job="tidy", limit=10)) == 1


def test_two_people_who_ask_in_the_same_second_get_a_run_each(
    runtime: Runtime, ledger: Database, acts: dict[str, Act]
) -> None:
    with ledger.write() as connection:
        add_job(connection, spec={"kind": "test"})
    assert trigger("tidy", runtime).id != trigger("tidy", runtime).id
