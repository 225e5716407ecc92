from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta

import pytest
import redis

from maintd.errors import Unavailable
from maintd.keyspace import REDBEAT_PREFIX, RELAY_PREFIX, Keyspace
from tests.cli.conftest import redis_url as redis_url
from tests.cli.conftest import valkey_server as valkey_server
from tests.ledgers import NOW, race
from tests.valkeys import Valkey

TTL = timedelta(seconds=15)


@pytest.fixture
def admin(redis_url: str) -> Iterator[redis.Redis]:
    with closing(redis.Redis.from_url(redis_url)) as client:
        yield client


@pytest.fixture
def keyspace(redis_url: str) -> Iterator[Keyspace]:
    with closing(Keyspace(redis_url)) as keyspace:
        yield keyspace


@pytest.mark.parametrize(
    ("refuse", "relent"),
    [
        ("REPLICAOF 127.0.0.1 9", "REPLICAOF NO ONE"),
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    ],
    ids=["read-only", "out of memory"],
)
def test_a_redis_that_refuses_to_write_is_unavailable_until_it_relents(
    keyspace: Keyspace, admin: redis.Redis, refuse: str, relent: str
) -> None:
    assert keyspace.acquire_lock("mine", ttl=TTL)
    admin.execute_command(*refuse.split())
    try:
        with pytest.raises(Unavailable, match=r"^Redis refuses: "):
            keyspace.acquire_lock("other", ttl=TTL)
        with pytest.raises(Unavailable, match=r"^Redis refuses: "):
            keyspace.reschedule("mine", {"tidy": NOW})
    finally:
        admin.execute_command(*relent.split())
    keyspace.reschedule("mine", {"tidy": NOW})
    assert keyspace.next_due() == NOW.timestamp()


def mirror(keyspace: Keyspace, **next_at: datetime | None) -> None:
    definitions = {name: f'{{"name": "{name}"}}' for name in next_at}
    keyspace.rebuild_mirror("mine", definitions=definitions, next_at=next_at, built_from="x")


def test_of_a_job_that_was_removed_the_mirror_keeps_nothing_whether_it_was_ever_due_or_not(
    keyspace: Keyspace, admin: redis.Redis
) -> None:
    assert keyspace.acquire_lock("mine", ttl=TTL)
    mirror(keyspace, due=NOW, by_hand=None, paused=NOW, stays=None)
    mirror(keyspace, due=NOW, by_hand=None, paused=None, stays=None)
    assert len(list(admin.scan_iter(f"{REDBEAT_PREFIX}[^:]*"))) == 4
    mirror(keyspace, stays=None)
    assert list(admin.scan_iter(f"{REDBEAT_PREFIX}[^:]*")) == [f"{REDBEAT_PREFIX}stays".encode()]
    assert keyspace.next_due() is None


def test_a_redis_that_wants_another_password_refuses(redis_url: str) -> None:
    url = redis_url.replace("unix://", "unix://nobody@") + "?password=wrong"
    with closing(Keyspace(url)) as stranger, pytest.raises(Unavailable, match=r"^Redis refuses: "):
        stranger.ping()


def test_a_redis_that_is_not_there_does_not_answer(redis_url: str) -> None:
    url = redis_url + ".not"
    with closing(Keyspace(url)) as nowhere, pytest.raises(Unavailable, match=r"^Redis does not answer: "):
        nowhere.ping()


def test_a_redis_that_may_not_tell_its_memory_policy_tells_none(redis_url: str, admin: redis.Redis) -> None:
    admin.execute_command("ACL", "SETUSER", "shy", "on", ">secret", "~*", "+@all", "-info")
    with closing(Keyspace(redis_url.replace("unix://", "unix://shy@") + "?password=secret")) as shy:
        assert shy.maxmemory_policy() == ""
    admin.execute_command("ACL", "DELUSER", "shy")


# Leases on connections

SHORT = timedelta(milliseconds=50)
LONG = timedelta(hours=1)


def take(keyspace: Keyspace, *tokens: str, ttl: timedelta = LONG) -> set[str]:
    return keyspace.take_leases("relay", tokens, cap=3, ttl=ttl)


def renew(keyspace: Keyspace, *tokens: str, ttl: timedelta = LONG) -> set[str]:
    return keyspace.renew_leases("relay", tokens, cap=3, ttl=ttl)


def open_for_leases(keyspace: Keyspace) -> None:
    """Makes the server look as if it had seen every lease for a while."""
    take(keyspace, ttl=timedelta(milliseconds=1))
    while not take(keyspace, "first"):
        time.sleep(0)
    keyspace.drop_leases("relay", ["first"])


def test_no_more_leases_are_granted_than_the_cap(keyspace: Keyspace) -> None:
    open_for_leases(keyspace)
    assert len(take(keyspace, "a", "b")) == 2
    assert len(take(keyspace, "c", "d")) == 1
    assert take(keyspace, "e") == set()


def test_racing_processes_are_granted_the_cap_and_not_one_more(redis_url: str, keyspace: Keyspace) -> None:
    open_for_leases(keyspace)

    def work(number: int) -> set[str]:
        with closing(Keyspace(redis_url)) as own:
            return set().union(*(take(own, f"{number}-{turn}") for turn in range(10)))

    assert len(set().union(*race(4, work))) == 3


def test_a_lease_that_is_given_back_is_free_at_once(keyspace: Keyspace) -> None:
    open_for_leases(keyspace)
    take(keyspace, "a", "b", "c")
    keyspace.drop_leases("relay", ["b", "never granted"])
    assert take(keyspace, "d", "e") < {"d", "e"}


def test_a_lease_that_is_not_renewed_runs_out_and_another_one_does_not(keyspace: Keyspace) -> None:
    open_for_leases(keyspace)
    assert take(keyspace, "gone", ttl=SHORT)
    assert take(keyspace, "a", "b") == {"a", "b"}
    while not take(keyspace, "c"):
        assert renew(keyspace, "a", "b") == {"a", "b"}
    assert renew(keyspace, "a", "b", "gone") == {"a", "b"}


def test_an_empty_server_grants_nothing_until_every_lease_before_has_run_out(
    keyspace: Keyspace, admin: redis.Redis
) -> None:
    open_for_leases(keyspace)
    take(keyspace, "a", "b", "c", ttl=SHORT)
    admin.flushall()
    emptied = time.monotonic()
    assert take(keyspace, "d", ttl=SHORT) == set()
    assert renew(keyspace, "a", "b") == {"a", "b"}  # these two still hold theirs
    while not (granted := take(keyspace, "d", "e", ttl=SHORT)):
        time.sleep(0)
    assert time.monotonic() - emptied >= SHORT.total_seconds() - 0.002  # two clocks, and whole milliseconds
    assert len(granted) == 1


def test_what_was_lost_is_renewed_only_if_there_is_room(keyspace: Keyspace) -> None:
    open_for_leases(keyspace)
    take(keyspace, "a", "b", "c")
    assert renew(keyspace, "a", "lost") == {"a"}
    keyspace.drop_leases("relay", ["b"])
    assert renew(keyspace, "a", "lost") == {"a", "lost"}


def test_a_server_that_was_started_again_does_not_trust_what_it_has_stored() -> None:
    with Valkey("--appendonly", "yes") as server, closing(Keyspace(server.url)) as keyspace:
        open_for_leases(keyspace)
        assert take(keyspace, "a") == {"a"}
        server.kill()
        server.start()
        assert take(keyspace, "b", ttl=SHORT) == set()
        assert renew(keyspace, "a") == {"a"}
        while not take(keyspace, "b"):
            time.sleep(0)


def test_leases_need_no_right_to_look_at_the_server(redis_url: str, admin: redis.Redis) -> None:
    admin.execute_command("ACL", "SETUSER", "shy", "on", ">secret", "~*", "+@all", "-info")
    with closing(Keyspace(redis_url.replace("unix://", "unix://shy@") + "?password=secret")) as shy:
        open_for_leases(shy)
        assert len(take(shy, "a", "b", "c", "d")) == 3
    admin.execute_command("ACL", "DELUSER", "shy")


def test_each_relay_has_leases_of_its_own(keyspace: Keyspace, admin: redis.Redis) -> None:
    open_for_leases(keyspace)
    assert len(take(keyspace, "a", "b", "c")) == 3
    assert keyspace.take_leases("other", ["d"], cap=3, ttl=SHORT) == set()  # nobody has asked for it before
    assert {key.decode() for key in admin.scan_iter()} == {f"{RELAY_PREFIX}relay", f"{RELAY_PREFIX}other"}
