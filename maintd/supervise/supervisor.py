"""A tree of child processes: started, started again when they die, stopped in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import IO

from maintd.clock import Clock
from maintd.retry import Backoff

logger = logging.getLogger(__name__)

#: Quick after a single death, slow for a child that cannot live.
_RESTART = Backoff(first=timedelta(milliseconds=200), factor=2.0, longest=timedelta(seconds=30))
#: A child that lived this long was well: its next death counts as the first.
_WELL_AFTER_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process to keep running.

    Attributes:
        name: What to call it in the log.
        command: Program and arguments.
        environment: Its whole environment.
        outlives_others: It is stopped only when all the others have ended, because they need it.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    outlives_others: bool = False


@dataclass(frozen=True, kw_only=True)
class Death:
    """A child that ended.

    Attributes:
        status: As `waitpid` gave it: the exit code, or minus the number of the signal that killed it.
    """

    name: str
    pid: int
    status: int


class Supervisor:
    """Keeps children running. All of it belongs to one event loop, in the main thread."""

    def __init__(
        self,
        *,
        clock: Clock,
        stop_timeout: timedelta,
        on_death: Callable[[Death], None] = lambda _: None,
        log: IO[bytes] | None = None,
    ) -> None:
        """Prepares a tree without children.

        Args:
            clock: Tells how long a child lived.
            stop_timeout: How long a child may take to stop before it is killed.
            on_death: Told of every child that ended without being asked to.
            log: Where the children's standard error goes; to our own without it.
        """
        self._clock = clock
        self._stop_timeout_s = stop_timeout.total_seconds()
        self._on_death = on_death
        self._log = log
        self._children: dict[str, Child] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    def pid(self, name: str) -> int | None:
        """The pid of a child that is running now."""
        process = self._processes.get(name)
        return process.pid if process else None

    async def start(self, child: Child) -> None:
        """Starts a child and keeps it running from now on."""
        self._children[child.name] = child
        process = await self._spawn(child)
        self._keepers[child.name] = asyncio.create_task(self._keep(child, process))

    async def stop(self) -> None:
        """Stops all children at once, and then those that outlive the others; what does not end in time is killed."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        for last in (False, True):
            await asyncio.gather(
                *(
                    self._end(name, process)
                    for name, process in self._processes.items()
                    if self._children[name].outlives_others is last
                )
            )
        self._processes.clear()
        self._keepers.clear()

    async def _spawn(self, child: Child) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "maintd.supervise.tether",
            str(os.getpid()),
            *child.command,
            env=child.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=self._log,
            # A Ctrl-C at the terminal is for the supervisor; it stops the children in order.
            start_new_session=True,
        )
        logger.info("%s started with pid %d", child.name, process.pid)
        self._processes[child.name] = process
        return process

    async def _keep(self, child: Child, process: asyncio.subprocess.Process) -> None:
        deaths = 0
        while True:
            born_s = self._clock.monotonic_s()
            status = await process.wait()
            self._processes.pop(child.name, None)
            self._on_death(Death(name=child.name, pid=process.pid, status=status))
            deaths = 1 if self._clock.monotonic_s() - born_s > _WELL_AFTER_S else deaths + 1
            what = f"{child.name} (pid {process.pid}) {how_it_ended(status)}"
            process, deaths = await self._start_again(child, what, deaths=deaths)

    async def _start_again(
        self, child: Child, what: str, *, deaths: int
    ) -> tuple[asyncio.subprocess.Process, int]:
        """Starts a child that died, once a while has passed; a start that fails counts as one more death."""
        while True:
            wait_s = _RESTART.wait(failures=deaths).total_seconds()
            logger.warning("%s; started again in %.1f s", what, wait_s)
            await asyncio.sleep(wait_s)
            try:
                return await self._spawn(child), deaths
            except OSError as error:  # too many processes, no memory, or its program is being replaced
                what, deaths = f"{child.name} cannot be started: {error}", deaths + 1

    async def _end(self, name: str, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._stop_timeout_s)
        except TimeoutError:
            logger.warning("%s (pid %d) did not stop in time and is killed", name, process.pid)
            process.kill()
            await process.wait()


def how_it_ended(status: int) -> str:
    """ "exited with 1", "was killed by SIGKILL"."""
    return f"exited with {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
