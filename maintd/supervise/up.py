"""`maintd up`: everything in one supervised tree, on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from typing import IO

from maintd.clock import Clock
from maintd.config.load import bare_environment
from maintd.config.settings import Settings
from maintd.errors import MaintdError, Unavailable
from maintd.execution.project import read_project
from maintd.execution.queues import WORK_QUEUES, Queue
from maintd.execution.runtime import open_runtime
from maintd.execution.worker import check_state_dir
from maintd.keyspace import Keyspace, embedded_socket
from maintd.scheduling.apply import Change, apply
from maintd.supervise.embedded import server_command
from maintd.supervise.instance import only_instance
from maintd.supervise.supervisor import Child, Death, Supervisor

logger = logging.getLogger(__name__)

_SERVER_STARTS_WITHIN_S = 20.0


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    *,
    clock: Clock,
    on_death: Callable[[Death], None] = lambda _: None,
    log: IO[bytes] | None = None,
) -> AsyncIterator[Supervisor]:
    """Runs the whole tree while the block runs.

    The job files are applied first: one machine, one truth.

    Raises:
        MaintdError: Another instance holds the state directory, or there is no Redis and none to embed.
        Problems: The job files are wrong, or the state directory is not fit for mail.
        Unavailable: The ledger or Redis does not answer.
    """
    check_state_dir(settings)
    with only_instance(settings.state_dir):
        supervisor = Supervisor(clock=clock, stop_timeout=settings.stop_timeout, on_death=on_death, log=log)
        try:
            await asyncio.to_thread(apply_files, settings, clock=clock)
            settings = await _with_redis(settings, supervisor, clock=clock)
            for child in children(settings):
                await supervisor.start(child)
            yield supervisor
        finally:
            await supervisor.stop()


def apply_files(settings: Settings, *, clock: Clock) -> list[Change]:
    """Brings the job files into the ledger; removals are left to `maintd apply --prune`."""
    prepared = read_project(settings)
    with contextlib.closing(open_runtime(settings, clock=clock)) as runtime:
        return apply(runtime.ledger, prepared, prune=False, now=clock.now())


def children(settings: Settings) -> list[Child]:
    """The processes of the tree, in the order in which they start."""
    commands = {"beat": ["beat"]}
    for number in range(1, settings.worker_processes + 1):
        commands[f"worker {number}"] = ["worker", "--queues", ",".join(sorted(WORK_QUEUES))]
    for number in range(1, settings.mail_processes + 1):
        commands[f"mail {number}"] = ["worker", "--queues", Queue.MAIL_BULK]
    commands["urgent mail"] = ["worker", "--queues", Queue.MAIL_URGENT]
    environment = bare_environment() | settings.environment()
    return [
        Child(name=name, command=[sys.executable, "-m", "maintd", *arguments], environment=environment)
        for name, arguments in commands.items()
    ]


async def _with_redis(settings: Settings, supervisor: Supervisor, *, clock: Clock) -> Settings:
    """The settings with a Redis that answers: the configured one, else one of our own."""
    if settings.redis_url is not None:
        with contextlib.closing(Keyspace(settings.redis_url.get_secret_value())) as keyspace:
            await asyncio.to_thread(keyspace.ping)
        return settings
    command = server_command(settings)
    await supervisor.start(
        Child(name="valkey", command=command, environment=bare_environment(), outlives_others=True)
    )
    url = f"unix://{embedded_socket(settings)}"
    with contextlib.closing(Keyspace(url)) as keyspace:
        until_s = clock.monotonic_s() + _SERVER_STARTS_WITHIN_S
        while not await _answers(keyspace):
            if clock.monotonic_s() > until_s:
                raise MaintdError(f"the embedded server did not start; try it by hand: {' '.join(command)}")
            # Nothing announces that a server listens; asking again is the only way.
            await asyncio.sleep(0.05)
    return settings.with_redis(url)


async def _answers(keyspace: Keyspace) -> bool:
    try:
        await asyncio.to_thread(keyspace.ping)
    except Unavailable:
        return False
    return True
