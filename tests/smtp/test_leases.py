"""The cap on connections to a relay, with a real Redis, a real relay and real processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
import redis

from maintd.clock import SystemClock, new_token
from maintd.errors import Unavailable
from maintd.keyspace import Keyspace
from maintd.smtp.connection import Connection
from maintd.smtp.faults import Action, Moment, Step, Then
from maintd.smtp.leases import Cap
from maintd.smtp.pool import SessionPool
from maintd.smtp.relays import parse_relays
from maintd.smtp.route import Manner
from maintd.smtp.session import Verdict
from tests.sinks import SinkThread
from tests.smtp.relaying import HELLO, PATIENT, Hanging, Recording, message
from tests.valkeys import Valkey

#: A process that a busy machine keeps waiting must still be able to renew its leases, and to close what has ended.
TTL, LONG_TTL = timedelta(seconds=2), timedelta(seconds=5)


@pytest.fixture
def server() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@contextlib.asynccontextmanager
async def pool_to(
    urls: str, redis_url: str, *, connections: int, ttl: timedelta = TTL, left_to_others: int = 0
) -> AsyncIterator[SessionPool]:
    with contextlib.closing(Keyspace(redis_url, patience=ttl / 8)) as book:
        manner = Manner(
            timeouts=PATIENT,
            hello=HELLO,
            clock=SystemClock(),
            draw=lambda: 0.0,
            cap=Cap(book=book, ttl=ttl, new_token=new_token, left_to_others=left_to_others),
        )
        pool = SessionPool(parse_relays(urls, where="test"), connections=connections, manner=manner)
        async with contextlib.aclosing(pool):
            yield pool


async def opened(pool: SessionPool, wanted: int) -> list[Connection]:
    """As many connections as there are, as soon as there is one."""
    while True:
        with contextlib.suppress(Unavailable):
            return await pool.ready(wanted)
        await pool.aclose()


async def send(connection: Connection) -> Verdict:
    recording = Recording()
    await connection.send_all([message()], watcher=recording)
    return recording.verdicts[0]


async def turns_until_unusable(connection: Connection) -> None:
    """Lets the loop turn until a lease has run out, which nothing announces."""
    while connection.usable:
        await asyncio.sleep(0)


def mail(urls: str, redis_url: str, rounds: int) -> None:
    """What each of several processes does: opens connections, sends a little, closes them."""

    async def main() -> None:
        async with pool_to(urls, redis_url, connections=3, ttl=LONG_TTL) as pool:
            for _ in range(rounds):
                connections = await opened(pool, 3)
                await asyncio.gather(*(send(connection) for connection in connections))
                await pool.aclose()

    asyncio.run(main())


def test_over_all_processes_no_more_connections_are_open_than_the_cap(server: Valkey) -> None:
    """One of them is killed meanwhile, and Redis loses all it has."""
    counts: list[int] = []

    def script(moment: Moment) -> Action | None:
        if moment.step is Step.CONNECT:
            counts.append(len(relay.sink._connections))
        return None

    spawning = multiprocessing.get_context("spawn")
    with SinkThread(None, script=script) as relay:
        arguments = (f"{relay.url}?connections=4", server.url, 25)
        workers = [spawning.Process(target=mail, args=arguments) for _ in range(3)]
        for worker in workers:
            worker.start()
        relay.wait_for(20)
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        relay.wait_for(50)
        os.kill(workers[0].pid or 0, signal.SIGKILL)
        for worker in workers:
            worker.join()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0, 0]
    assert 1 < max(counts) <= 4


def test_what_others_have_open_counts_and_is_free_when_they_close_it(server: Valkey) -> None:
    async def main() -> None:
        with SinkThread(None) as relay:
            url = f"{relay.url}?connections=3"
            async with pool_to(url, server.url, connections=8) as one:
                assert len(await opened(one, 8)) == 3
                async with pool_to(url, server.url, connections=8) as other:
                    with pytest.raises(Unavailable, match="all 3 connections that may be open to smtp://"):
                        await other.ready(8)
                    await other.aclose()
                    await one.aclose()
                    assert len(await other.ready(8)) == 3

    asyncio.run(main())


@pytest.mark.parametrize(("cap", "taken"), [(3, 2), (1, 1)])
def test_who_leaves_connections_to_others_never_takes_the_last(server: Valkey, cap: int, taken: int) -> None:
    async def main() -> None:
        with SinkThread(None) as relay:
            url = f"{relay.url}?connections={cap}"
            async with (
                pool_to(url, server.url, connections=8, left_to_others=1) as one,
                pool_to(url, server.url, connections=8) as other,
            ):
                assert len(await opened(one, 8)) == taken
                if cap > taken:
                    assert len(await other.ready(8)) == cap - taken

    asyncio.run(main())


def test_what_a_cap_withholds_goes_to_the_others(server: Valkey) -> None:
    async def main() -> None:
        with SinkThread(None) as narrow, SinkThread(None) as wide:
            async with pool_to(
                f"{narrow.url}?connections=2&weight=9 {wide.url}", server.url, connections=8
            ) as pool:
                while len(narrow.sink._connections) < 2:
                    await pool.aclose()
                    assert len(await pool.ready(8)) >= 6
                assert len(await pool.ready(8)) == 8

    asyncio.run(main())


def test_without_redis_a_connection_goes_on_as_long_as_its_lease_lasts_and_no_other_is_opened(
    server: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with SinkThread(None) as relay:
            async with pool_to(f"{relay.url}?connections=2", server.url, connections=2) as pool:
                first, second = await opened(pool, 2)
                server.kill()
                assert await send(first) is Verdict.ACCEPTED
                await turns_until_unusable(second)
                assert await send(second) is Verdict.UNSENT  # it is still open, and begins nothing
                with pytest.raises(Unavailable, match="Redis does not answer"):
                    await pool.ready(2)
                assert len(relay.sink._connections) == 0
                server.start()
                assert await send((await opened(pool, 2))[0]) is Verdict.ACCEPTED

    asyncio.run(main())
    told = [record for record in caplog.records if "cannot be counted" in record.message]
    assert (len(told), told[0].levelno) == (1, logging.WARNING)


def test_a_connection_is_closed_when_its_lease_ends_whatever_it_is_doing(server: Valkey) -> None:
    async def main() -> None:
        with SinkThread(None) as relay:
            async with pool_to(f"{relay.url}?connections=1", server.url, connections=1) as pool:
                (connection,) = await opened(pool, 1)
                relay.sink.script = Hanging(Step.DOT)
                server.kill()
                assert await send(connection) is Verdict.UNCERTAIN

    asyncio.run(main())


def test_a_lease_that_ends_while_its_connection_is_opened_ends_that(server: Valkey) -> None:
    reached = asyncio.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def script(moment: Moment) -> Action | None:
            loop.call_soon_threadsafe(reached.set)
            return Action(then=Then.HANG)

        with SinkThread(None) as relay:
            async with pool_to(f"{relay.url}?connections=1", server.url, connections=1) as pool:
                await opened(pool, 1)
                await pool.aclose()
                relay.sink.script = script
                opening = asyncio.create_task(pool.ready(1))
                await reached.wait()
                server.kill()
                with pytest.raises(Unavailable, match="the lease ran out"):
                    await opening

    asyncio.run(main())


def test_leases_are_renewed_as_long_as_they_are_held(server: Valkey) -> None:
    async def main() -> None:
        with SinkThread(None) as relay:
            url = f"{relay.url}?connections=1"
            async with (
                pool_to(url, server.url, connections=1) as one,
                pool_to(url, server.url, connections=1) as other,
            ):
                (connection,) = await opened(one, 1)
                ends = asyncio.get_running_loop().time() + 1.5 * TTL.total_seconds()
                while asyncio.get_running_loop().time() < ends:
                    with pytest.raises(Unavailable):
                        await other.ready(1)
                    await other.aclose()
                assert await send(connection) is Verdict.ACCEPTED

    asyncio.run(main())


def test_a_relay_without_a_cap_needs_no_redis(server: Valkey) -> None:
    async def main() -> None:
        with SinkThread(None) as free, SinkThread(None) as counted:
            urls = f"{free.url} {counted.url}?connections=5"
            async with pool_to(urls, server.url + ".not", connections=8) as pool:
                await pool.ready(8)
                assert len(await pool.ready(8)) == 8
                assert (len(free.sink._connections), len(counted.sink._connections)) == (8, 0)

    asyncio.run(main())


def test_a_cap_needs_somebody_who_counts() -> None:
    manner = Manner(timeouts=PATIENT, hello=HELLO, clock=SystemClock(), draw=lambda: 0.0)
    with pytest.raises(ValueError, match="nobody to count"):
        SessionPool(parse_relays("smtp://mx?connections=1", where="test"), connections=1, manner=manner)
