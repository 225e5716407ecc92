from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from maintd.database import Database
from maintd.ledger import jobs
from tests.ledgers import MINUTE, NOW, add_job, race


def move(
    was: datetime | None, to: datetime, *, job: str = "tidy", next_at: datetime | None = None
) -> jobs.Advance:
    return jobs.Advance(job=job, was=was, cursor_at=to, next_at=next_at)


def test_a_cursor_moves_only_from_where_it_was_seen(ledger: Database) -> None:
    with ledger.write() as connection:
        add_job(connection, cursor_at=NOW)
        assert not jobs.advance(connection, [move(NOW - MINUTE, NOW + MINUTE)])
        assert not jobs.advance(connection, [move(None, NOW + MINUTE)])
        assert jobs.advance(connection, [move(NOW, NOW + MINUTE, next_at=NOW + 2 * MINUTE)])
        moved = jobs.get(connection, "tidy")
    assert moved is not None
    assert (moved.cursor_at, moved.next_at) == (NOW + MINUTE, NOW + 2 * MINUTE)


def test_a_cursor_that_was_never_set_is_seen_as_such(ledger: Database) -> None:
    with ledger.write() as connection:
        add_job(connection)
        assert not jobs.advance(connection, [move(NOW, NOW)])
        assert jobs.advance(connection, [move(None, NOW)])


def test_one_cursor_among_many_that_stands_elsewhere_is_noticed(ledger: Database) -> None:
    with ledger.write() as connection:
        for name in "abc":
            add_job(connection, name, cursor_at=NOW)
        later = NOW + MINUTE
        assert jobs.advance(connection, [move(NOW, later, job=name) for name in "abc"])
        assert not jobs.advance(
            connection, [move(later, NOW, job="a"), move(NOW, NOW, job="b"), move(later, NOW, job="c")]
        )
        assert not jobs.advance(connection, [move(NOW, later, job="a"), move(NOW, NOW, job="removed")])
        assert jobs.advance(connection, [])


def test_of_many_that_move_a_cursor_one_succeeds(ledger: Database) -> None:
    with ledger.write() as connection:
        add_job(connection, cursor_at=NOW)

    def advance(number: int) -> bool:
        with ledger.write() as connection:
            return jobs.advance(connection, [move(NOW, NOW + (number + 1) * MINUTE)])

    assert sum(race(5, advance)) == 1


@pytest.mark.parametrize("microsecond", [0, 1, 999_999])
def test_an_instant_comes_back_as_exactly_the_one_that_was_stored(ledger: Database, microsecond: int) -> None:
    at = NOW.replace(microsecond=microsecond)
    with ledger.write() as connection:
        add_job(connection, cursor_at=at)
        assert jobs.advance(connection, [move(at, at + timedelta.resolution)])


def test_due_are_the_enabled_whose_time_has_come_the_longest_overdue_first(ledger: Database) -> None:
    with ledger.write() as connection:
        add_job(connection, "just", next_at=NOW)
        add_job(connection, "long", next_at=NOW - MINUTE)
        add_job(connection, "soon", next_at=NOW + timedelta.resolution)
        add_job(connection, "never")
        add_job(connection, "disabled", next_at=NOW, enabled=False)
        add_job(connection, "paused", next_at=NOW, paused_at=NOW)
        assert jobs.due(connection, now=NOW, limit=10) == ["long", "just"]
        assert jobs.due(connection, now=NOW, limit=1) == ["long"]


def test_updating_replaces_the_columns_that_are_given_and_no_others(ledger: Database) -> None:
    with ledger.write() as connection:
        add_job(connection, cursor_at=NOW)
        jobs.update(connection, "tidy", {"revision": 2, "enabled": False})
        job = jobs.get(connection, "tidy")
    assert job is not None
    assert (job.revision, job.enabled, job.cursor_at, job.kind) == (2, False, NOW, "test")


def test_a_stored_spec_keeps_the_order_of_its_keys(ledger: Database) -> None:
    spec = {"zebra": 1, "ant": {"b": 2, "a": 1}}
    with ledger.write() as connection:
        add_job(connection, spec=spec)
        job = jobs.get(connection, "tidy")
    assert job is not None
    assert list(job.spec) == ["zebra", "ant"]
    assert list(job.spec["ant"]) == ["b", "a"]


def test_jobs_are_listed_by_name(ledger: Database) -> None:
    with ledger.write() as connection:
        for name in ("b", "c", "a"):
            add_job(connection, name)
        jobs.remove(connection, "b")
        assert [job.name for job in jobs.every(connection)] == ["a", "c"]
        assert [job.name for job in jobs.some(connection, ["c", "b", "missing"])] == ["c"]


def test_every_apply_moves_the_stamp(ledger: Database) -> None:
    def move(_number: int) -> None:
        with ledger.write() as connection:
            jobs.move_stamp(connection)

    move(0)
    with ledger.read() as connection:
        assert jobs.stamp(connection) == 1
    for number in range(3):
        move(number)
    with ledger.read() as connection:
        assert jobs.stamp(connection) == 4


def test_of_two_who_tell_the_mirrors_at_once_neither_is_lost(ledger: Database) -> None:
    def tell(_number: int) -> None:
        with ledger.write() as connection:
            jobs.move_stamp(connection)

    race(4, tell)
    with ledger.read() as connection:
        assert jobs.stamp(connection) == 4
