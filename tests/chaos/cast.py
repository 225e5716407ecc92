"""The processes of maintd on the stage: started, killed, frozen, counted; none outlives the performance."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.altered import MODULE, WORLD
from tests.wire.site import children_of, lives, until

_ENDS_WITHIN_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process to be kept running.

    Attributes:
        arguments: Of the command line of maintd.
        environ: What it has besides the environment that all have.
        sends: It takes mail.
    """

    name: str
    arguments: Sequence[str]
    environ: Mapping[str, str]
    sends: bool


class Cast:
    """Every process of maintd, each in a session of its own."""

    def __init__(self, parts: Sequence[Part], *, directory: Path, environ: Mapping[str, str]) -> None:
        self._parts = parts
        self._directory = directory
        self._environ = environ
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def main(self) -> int:
        """The pid of the first part: the root of the tree, or the beat."""
        return self._processes[self._parts[0].name].pid

    def play(self) -> None:
        """Starts whatever does not run."""
        for part in self._parts:
            process = self._processes.get(part.name)
            if process is None or process.poll() is not None:
                self._processes[part.name] = self._start(part)

    def _start(self, part: Part) -> subprocess.Popen[bytes]:
        with (self._directory / f"{part.name}.log").open("ab") as log:
            return subprocess.Popen(
                tethered(sys.executable, "-m", MODULE, *part.arguments),
                env={**self._environ, **part.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,
            )

    def command(self, *arguments: str, **environ: str) -> None:
        """Has an operator carry out a command, in the same world as all others.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        with (self._directory / "commands.log").open("ab") as log:
            subprocess.run(
                tethered(sys.executable, "-m", MODULE, *arguments),
                env={**self._environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                check=True,
            )

    def senders(self) -> list[int]:
        """Pids of the processes that take mail: parts, or children of parts."""
        parts = [self._processes[part.name].pid for part in self._parts if part.sends]
        children = [child for pid in self.mains() for child in _children(pid)]
        return [pid for pid in parts if lives(pid)] + [pid for pid in children if _takes_mail(pid)]

    def mains(self) -> list[int]:
        """Pids of the living parts."""
        return [process.pid for process in self._processes.values() if process.poll() is None]

    def everybody(self) -> list[int]:
        """Pids of all that live in this world, the parts first."""
        mains = self.mains()
        return mains + [pid for pid in self._inhabitants() if pid not in mains]

    def kill_everybody(self) -> None:
        """Kills all at once: the parts are frozen first, so that none starts a child again."""
        for pid in self.mains():
            send(pid, signal.SIGSTOP)
        for pid in reversed(self.everybody()):
            send(pid, signal.SIGKILL)
        for process in self._processes.values():
            process.wait(_ENDS_WITHIN_S)

    def terminate(self, pids: Sequence[int]) -> bool:
        """Asks parts to stop in order, and waits for it; returns whether all did.

        One that has hardly begun ends by the signal itself.
        """
        for pid in pids:
            send(pid, signal.SIGTERM)
        asked = [process for process in self._processes.values() if process.pid in pids]
        try:
            return all(process.wait(_ENDS_WITHIN_S) in (0, -signal.SIGTERM) for process in asked)
        except subprocess.TimeoutExpired:
            return False

    def leave(self) -> None:
        """Whatever still lives is killed."""
        while remaining := [pid for pid in self.everybody() if lives(pid)]:
            for pid in remaining:
                send(pid, signal.SIGKILL)
            until(lambda: not any(map(lives, remaining)) or self._reap(), what="the end of the killed")

    def _reap(self) -> bool:
        return all(process.poll() is not None for process in self._processes.values())

    def _inhabitants(self) -> Iterator[int]:
        mark = f"{WORLD}={self._environ[WORLD]}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                # Some have ended meanwhile, others are none of ours.
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        yield int(entry.name)


def tethered(*command: str) -> list[str]:
    """A command that ends when this process does, however that ends."""
    return [sys.executable, "-m", "maintd.supervise.tether", str(os.getpid()), *command]


def send(pid: int, number: signal.Signals) -> None:
    """Signals a process, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _children(pid: int) -> list[int]:
    try:
        return children_of(pid)
    except FileNotFoundError:
        return []


def _takes_mail(pid: int) -> bool:
    try:
        return b"mail.bulk" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
