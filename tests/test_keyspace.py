from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import pytest
import redis

from maintd.errors import Unavailable
from maintd.keyspace import Keyspace
from tests.cli.conftest import redis_url as redis_url
from tests.cli.conftest import valkey_server as valkey_server
from tests.ledgers import NOW

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
