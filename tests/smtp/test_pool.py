from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from maintd.clock import SystemClock
from maintd.errors import Unavailable
from maintd.smtp.connection import MOST_REFUSALS
from maintd.smtp.faults import Action, Moment, Script, Step, Then
from maintd.smtp.pool import SessionPool
from maintd.smtp.relays import Relay
from maintd.smtp.route import Manner
from maintd.smtp.session import Verdict
from maintd.smtp.sink import Connection, Sink
from tests.ledgers import HandClock
from tests.smtp.relaying import HELLO, PATIENT, Always, Recording, local_relay, message

AWAY = Always({Step.CONNECT: Action(reply="421 4.3.2 Not now", then=Then.DROP)})
HOUR = timedelta(hours=1)


class Door(Sink):
    """A sink that counts who comes."""

    def __init__(self, *, script: Script | None = None, login: tuple[str, str] | None = None) -> None:
        super().__init__(None, clock=SystemClock(), script=script, login=login)
        self.came = 0
        self.port = 0

    @property
    def open(self) -> int:
        return len(self._connections)

    def joined(self, connection: Connection) -> None:
        self.came += 1
        super().joined(connection)

    def relay(self, **options: Any) -> Relay:
        return local_relay(self.port, **options)


@contextlib.asynccontextmanager
async def doors(*scripts: Script | None) -> AsyncIterator[list[Door]]:
    """A relay for each script."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for script in scripts:
            door = Door(script=script)
            stack.push_async_callback(door.close)
            door.port = await door.start()
            found.append(door)
        yield found


@contextlib.asynccontextmanager
async def pool_to(
    *relays: Relay, connections: int = 8, clock: HandClock | None = None, start: float = 0.0
) -> AsyncIterator[SessionPool]:
    manner = Manner(timeouts=PATIENT, hello=HELLO, clock=clock or HandClock(), draw=lambda: start)
    async with contextlib.aclosing(SessionPool(relays, connections=connections, manner=manner)) as pool:
        yield pool


async def send(pool: SessionPool, count: int) -> Counter[Verdict]:
    """Sends messages over as many connections as there are, as many over each."""
    verdicts: Counter[Verdict] = Counter()
    recordings = [Recording() for _ in range(count)]
    ready = await pool.ready(count)
    shares = [count // len(ready) + (number < count % len(ready)) for number in range(len(ready))]
    await asyncio.gather(
        *(
            each.send_all([message()] * share, watcher=recording)
            for each, share, recording in zip(ready, shares, recordings, strict=False)
        )
    )
    for recording in recordings:
        verdicts.update(recording.verdicts)
    return verdicts


async def turns_until(reached: Any) -> None:
    """Lets the loop turn until something is so; what is awaited is in another task or server of the same loop."""
    while not reached():
        await asyncio.sleep(0)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_connections_are_divided_by_weight() -> None:
    async def main() -> None:
        async with (
            doors(None, None) as (large, small),
            pool_to(large.relay(weight=3), small.relay()) as pool,
        ):
            assert await send(pool, 80) == {Verdict.ACCEPTED: 80}
            assert (large.open, small.open) == (6, 2)
            assert (large.accepted, small.accepted) == (60, 20)

    run(main())


@pytest.mark.parametrize(("start", "accepted"), [(0.0, (0, 1)), (0.24, (0, 1)), (0.26, (1, 0))])
def test_a_single_message_goes_by_the_draw(start: float, accepted: tuple[int, int]) -> None:
    async def main() -> None:
        async with (
            doors(None, None) as (large, small),
            pool_to(large.relay(weight=3), small.relay(), start=start) as pool,
        ):
            await send(pool, 1)
            assert (large.accepted, small.accepted) == accepted

    run(main())


def test_windows_too_small_for_all_connections_go_by_weight_too() -> None:
    async def main() -> None:
        async with doors(None, None) as (one, other):
            draws = itertools.cycle([0.1, 0.3, 0.6, 0.9])
            manner = Manner(timeouts=PATIENT, hello=HELLO, clock=HandClock(), draw=lambda: next(draws))
            relays = [one.relay(weight=3), other.relay(weight=1)]
            async with contextlib.aclosing(SessionPool(relays, connections=4, manner=manner)) as pool:
                await send(pool, 4)
                for _ in range(40):
                    await send(pool, 1)
            assert (one.accepted, other.accepted) == (3 + 30, 1 + 10)

    run(main())


def test_others_take_the_share_of_a_relay_that_does_not_open() -> None:
    async def main() -> None:
        async with doors(AWAY, None) as (away, well), pool_to(away.relay(), well.relay()) as pool:
            await send(pool, 80)
            assert await send(pool, 80) == {Verdict.ACCEPTED: 80}
            assert (away.open, well.open, away.came) == (0, 8, 4)

    run(main())


def test_a_relay_that_was_set_aside_proves_itself_on_one_connection_and_gets_its_share_back() -> None:
    async def main() -> None:
        clock = HandClock()
        async with (
            doors(AWAY, None) as (away, well),
            pool_to(away.relay(), well.relay(), clock=clock) as pool,
        ):
            await send(pool, 8)
            away.script = None
            await send(pool, 80)
            assert away.came == 4  # its wait is not over
            clock.turn(HOUR)
            await send(pool, 8)
            await turns_until(lambda: away.open == 1)
            while away.accepted == 0:
                await send(pool, 8)
            assert away.open == 1
            await send(pool, 8)
            await turns_until(lambda: (away.open, well.open) == (4, 4))

    run(main())


def test_each_wait_is_longer_until_something_comes_of_it() -> None:
    async def main() -> None:
        clock = HandClock()
        async with (
            doors(AWAY, None) as (away, well),
            pool_to(away.relay(), well.relay(), clock=clock) as pool,
        ):
            await pool.ready(8)
            tries = away.came
            for wait_s in (1, 2, 4, 8):
                clock.turn(timedelta(seconds=wait_s - 0.1))
                await pool.ready(8)
                await turns_until(lambda: len(asyncio.all_tasks()) == 1)
                assert away.came == tries
                clock.turn(timedelta(seconds=0.2))
                await pool.ready(8)
                await turns_until(lambda: len(asyncio.all_tasks()) == 1)
                tries += 1
                assert away.came == tries

    run(main())


def test_a_dead_relay_holds_nobody_up_once_it_is_known() -> None:
    def script(moment: Moment) -> Action | None:
        if moment.step is not Step.CONNECT:
            return None
        return AWAY(moment) if dead.came <= 4 else Action(then=Then.HANG)

    async def main() -> None:
        clock = HandClock()
        async with doors(script, None) as (found, well):
            dead.append(found)
            async with pool_to(found.relay(), well.relay(), clock=clock) as pool:
                await send(pool, 8)
                clock.turn(HOUR)
                assert await send(pool, 80) == {Verdict.ACCEPTED: 80}
                await turns_until(lambda: found.open == 1)

    dead: Any = _Late()
    run(main())


class _Late(list[Door]):
    """A relay that is made later than what is said about it."""

    @property
    def came(self) -> int:
        return self[0].came


def test_a_stand_by_takes_mail_only_while_no_other_does() -> None:
    async def main() -> None:
        clock = HandClock()
        async with (
            doors(None, None) as (usual, other),
            pool_to(usual.relay(), other.relay(weight=0), clock=clock) as pool,
        ):
            await send(pool, 80)
            assert (usual.open, other.came) == (8, 0)
            usual.script = AWAY
            await pool.aclose()
            assert await send(pool, 80) == {Verdict.ACCEPTED: 80}
            assert other.open == 8
            usual.script = None
            clock.turn(HOUR)
            while other.open:
                await send(pool, 16)
            assert usual.open == 8

    run(main())


def test_when_none_opens_each_is_named_with_what_it_said() -> None:
    refused = Always({Step.HELLO: Action(reply="554 5.7.1 Who are you?")})

    async def main() -> None:
        async with (
            doors(AWAY, refused, AWAY) as found,
            pool_to(
                *(door.relay(weight=weight) for door, weight in zip(found, (1, 5, 0), strict=True))
            ) as pool,
        ):
            for _ in range(2):
                with pytest.raises(Unavailable) as unavailable:
                    await pool.ready(8)
                text = str(unavailable.value)
                assert all(f"smtp://127.0.0.1:{door.port} " in text for door in found)
                assert text.count("421 4.3.2 Not now") == 2
                assert text.count("554 5.7.1 Who are you?") == 1

    run(main())


def test_a_refused_login_is_logged_once_in_a_spell_however_well_others_fare(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def logged() -> int:
        return sum("535 5.7.8" in record.message for record in caplog.records)

    async def main() -> None:
        clock = HandClock()
        strict = Door(login=("user", "hunter1"))
        strict.port = await strict.start()
        async with doors(None) as (well,), contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(strict.close)
            relay = strict.relay(username="user", password="hunter2")
            pool = await stack.enter_async_context(pool_to(relay, well.relay(), clock=clock))
            for _ in range(3):
                clock.turn(HOUR)
                came = strict.came
                assert await send(pool, 8) == {Verdict.ACCEPTED: 8}
                await turns_until(lambda: len(asyncio.all_tasks()) == 1)
                assert strict.came > came
            assert logged() == 1
            strict.login = ("user", "hunter2")
            while strict.accepted == 0:
                clock.turn(HOUR)
                await send(pool, 8)
            await pool.aclose()
            strict.login = ("user", "hunter3")
            await send(pool, 8)
            assert logged() == 2
            assert "hunter" not in caplog.text

    with caplog.at_level(logging.INFO):
        run(main())


def test_a_connection_is_replaced_after_so_many_messages() -> None:
    async def main() -> None:
        async with doors(None) as (door,), pool_to(door.relay(messages=10), connections=2) as pool:
            for _ in range(6):
                assert [each.room >= 5 for each in await pool.ready(10)] == [True, True]
                assert await send(pool, 10) == {Verdict.ACCEPTED: 10}
            assert (door.came, door.open) == (6, 2)

    run(main())


@pytest.mark.parametrize(
    ("step", "replaced"), [(Step.MAIL, True), (Step.DATA, True), (Step.DOT, True), (Step.RCPT, False)]
)
def test_a_connection_that_refuses_whoever_it_is_for_is_replaced(step: Step, replaced: bool) -> None:
    async def main() -> None:
        async with doors(None) as (door,), pool_to(door.relay(), connections=1) as pool:
            await send(pool, 1)
            door.script = Always({step: Action(reply="450 4.7.1 Enough for one connection")})
            await send(pool, MOST_REFUSALS)
            await pool.ready(1)
            assert door.came == 1 + replaced

    run(main())


def test_a_relay_that_takes_no_message_is_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        broken = Always({Step.MAIL: Action(then=Then.DROP)})
        async with doors(broken, None) as (bad, well), pool_to(bad.relay(), well.relay()) as pool:
            assert await send(pool, 80) == {Verdict.ACCEPTED: 40, Verdict.UNSENT: 40}
            assert await send(pool, 80) == {Verdict.ACCEPTED: 80}
            assert (bad.came, bad.open, well.open) == (4, 0, 8)

    run(main())
    assert "takes no message" in caplog.text


def test_what_we_take_back_ourselves_is_not_the_fault_of_a_relay() -> None:
    async def main() -> None:
        async with doors(None, None) as found, pool_to(*(door.relay() for door in found)) as pool:
            for connection in await pool.ready(8):
                await connection.send_all([message()], watcher=Recording(withheld=frozenset([0])))
            await pool.ready(8)
            assert [door.came for door in found] == [8, 8]

    run(main())


def test_a_relay_by_itself_is_never_given_up() -> None:
    async def main() -> None:
        broken = Always({Step.MAIL: Action(then=Then.DROP)})
        async with doors(broken) as (door,), pool_to(door.relay()) as pool:
            for _ in range(5):
                assert (await send(pool, 8)).keys() == {Verdict.UNSENT}
            door.script = None
            assert await send(pool, 8) == {Verdict.ACCEPTED: 8}

    run(main())


def test_what_a_relay_does_not_allow_goes_to_the_others() -> None:
    async def main() -> None:
        def script(moment: Moment) -> Action | None:
            full = moment.step is Step.CONNECT and narrow[0].open > 2
            return Action(reply="421 4.7.0 Too many connections", then=Then.DROP) if full else None

        narrow: list[Door] = []
        async with doors(script, None) as (door, wide), pool_to(door.relay(), wide.relay()) as pool:
            narrow.append(door)
            for _ in range(2):
                assert await send(pool, 80) == {Verdict.ACCEPTED: 80}
            assert (door.open, wide.open) == (2, 6)

    run(main())


def test_closing_says_goodbye_everywhere() -> None:
    async def main() -> None:
        goodbyes = []

        def script(moment: Moment) -> Action | None:
            goodbyes.extend([moment.line] if moment.step is Step.QUIT else [])
            return None

        async with doors(script, script) as found:
            async with pool_to(*(door.relay() for door in found)) as pool:
                await pool.ready(8)
            assert goodbyes == ["QUIT"] * 8
            await turns_until(lambda: not any(door.open for door in found))

    run(main())
