"""The daemons: beat, worker, and all of it in one tree."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

import click

from maintd.broker.app import make_app
from maintd.broker.beat import run_beat
from maintd.broker.wake import CeleryWake
from maintd.broker.worker import run_worker
from maintd.cli.command import Command
from maintd.cli.context import Context, pass_context
from maintd.config.load import bare_environment
from maintd.errors import Unavailable, did_you_mean
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime
from maintd.keyspace import Keyspace, redis_url_of
from maintd.supervise.supervisor import Child, Supervisor
from maintd.supervise.up import running

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 2.0


@click.command(cls=Command, exits={0: "stopped with Ctrl-C or SIGTERM"})
@pass_context
def beat(context: Context) -> None:
    """Watch the calendar: queue what is due and make good what was lost.

    Any number may run, on any host: one leads, the others stand by and take over within MAINTD_BEAT_LOCK.

    \b
    Example: maintd --env-file /etc/maintd/maintd.env beat
    """
    with _patient_runtime(context) as runtime:
        url = redis_url_of(runtime.settings)
        with contextlib.closing(Keyspace(url)) as keyspace:
            app = make_app(runtime.settings, redis_url=url)
            wake = CeleryWake(app, keyspace, runtime.settings)
            run_beat(app, runtime=runtime, keyspace=keyspace, wake=wake)


class _Queues(click.ParamType[tuple[Queue, ...]]):
    name = "queue,…"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Queue, ...]:
        if isinstance(value, tuple):
            return value
        names = [name.strip() for name in str(value).split(",")]
        for name in names:
            if name not in frozenset(Queue):
                self.fail(f'there is no queue "{name}"; {did_you_mean(name, Queue)}', param, ctx)
        return tuple(Queue(name) for name in names)


@click.command(cls=Command, exits={0: "stopped with Ctrl-C or SIGTERM"})
@click.option(
    "--queues", type=_Queues(), default=tuple(Queue), help="Take work of these queues only; all without it."
)
@click.option(
    "--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="How many processes."
)
@pass_context
def worker(context: Context, *, queues: tuple[Queue, ...], processes: int) -> None:
    """Take work: clean up, recompute, send mail.

    Any number may run, on any host. Mail wants processes of its own, so that nothing else holds it up.

    \b
    Example: maintd worker --queues control,maintenance,ratings,programs
             maintd worker --queues mail.bulk --processes 2
             maintd worker --queues mail.urgent
    """
    if processes > 1:
        asyncio.run(_several_workers(context, queues, processes))
        return
    with _patient_runtime(context) as runtime:
        url = redis_url_of(runtime.settings)
        with contextlib.closing(Keyspace(url)) as keyspace:
            app = make_app(runtime.settings, redis_url=url)
            run_worker(app, runtime=runtime, wake=CeleryWake(app, keyspace, runtime.settings), queues=queues)


@click.command(
    cls=Command,
    exits={
        0: "stopped with Ctrl-C or SIGTERM",
        1: "the job files are wrong, or another one holds the state directory",
        69: "the ledger or Redis does not answer",
    },
)
@pass_context
def up(context: Context) -> None:
    """Run everything in one supervised tree: beat, workers, mail and, without MAINTD_REDIS_URL, a Redis.

    The job files are applied first. A process that dies is started again. One for each state directory.

    \b
    Example: maintd migrate && maintd up
    """
    context.make_state_dir()
    asyncio.run(_up(context))


async def _up(context: Context) -> None:
    stop = _stop_asked()
    async with running(context.settings, clock=context.clock):
        logger.info("maintd is up; stop it with Ctrl-C or SIGTERM")
        await stop.wait()
        logger.info("stopping in order")


async def _several_workers(context: Context, queues: Sequence[Queue], processes: int) -> None:
    settings = context.settings
    supervisor = Supervisor(clock=context.clock, stop_timeout=settings.stop_timeout)
    command = [sys.executable, "-m", "maintd", "worker", "--queues", ",".join(queues)]
    environment = bare_environment() | settings.environment()
    stop = _stop_asked()
    try:
        for number in range(1, processes + 1):
            await supervisor.start(Child(name=f"worker {number}", command=command, environment=environment))
        await stop.wait()
    finally:
        await supervisor.stop()


def _stop_asked() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


@contextlib.contextmanager
def _patient_runtime(context: Context) -> Iterator[Runtime]:
    """The runtime, waited for while the ledger is away: a daemon outlives the restart of its database."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                runtime = stack.enter_context(context.runtime())
                break
            except Unavailable as error:
                logger.warning("%s; asking again in %g s", error, _ASK_AGAIN_S)
                threading.Event().wait(_ASK_AGAIN_S)
        yield runtime
