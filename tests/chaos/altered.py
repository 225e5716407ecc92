"""The command line of maintd in a world that can be altered while it runs: `python -m tests.chaos.altered beat`.

Whatever it starts is altered as well. What the world is like stands in the files of the directory that `CHAOS_WORLD`
names, and which guards are missing in `CHAOS_WITHOUT`; no product code knows of either.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from maintd import cli
from maintd.clock import SystemClock
from maintd.config.settings import Settings
from maintd.mail.recording import recorder
from maintd.supervise import up
from maintd.supervise.supervisor import Child
from tests.chaos import without

WORLD = "CHAOS_WORLD"
WITHOUT = "CHAOS_WITHOUT"
MODULE = "tests.chaos.altered"
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class World:
    """What processes take for the machine's: written by the theatre, read by whoever acts in it."""

    directory: Path

    def environment(self, *, without: frozenset[str]) -> Mapping[str, str]:
        """With these variables a process lives in it."""
        return {WORLD: str(self.directory), WITHOUT: ",".join(sorted(without))}

    @property
    def boot_id(self) -> Path:
        """In place of the kernel's."""
        return self.directory / "boot_id"

    def boot(self, number: int) -> None:
        """Gives the machine another boot id."""
        self.boot_id.write_text(f"{number:08}-0000-4000-8000-000000000000\n")

    @property
    def offset(self) -> timedelta:
        """What every wall clock is wrong by."""
        try:
            return timedelta(seconds=float((self.directory / "offset").read_text()))
        except (FileNotFoundError, ValueError):  # not set, or just being set
            return timedelta(0)

    def step_clocks(self, offset: timedelta) -> None:
        """Sets every wall clock."""
        with self._steps.open("a") as steps:
            steps.write(f"{datetime.now(UTC).isoformat()} {offset.total_seconds()}\n")
        (self.directory / "offset").write_text(str(offset.total_seconds()))

    def in_truth(self, shown: datetime) -> datetime:
        """When it was that the wall clocks showed this."""
        began, offset = _LONG_AGO, timedelta(0)
        for line in self._steps.read_text().splitlines() if self._steps.exists() else ():
            at, seconds = line.split()
            if began <= shown - offset < datetime.fromisoformat(at):
                break
            began, offset = datetime.fromisoformat(at), timedelta(seconds=float(seconds))
        return shown - offset

    @property
    def _steps(self) -> Path:
        """When the clocks were set, and to what."""
        return self.directory / "steps"

    @property
    def disk_is_full(self) -> bool:
        """Whether there is no room for another entry."""
        return (self.directory / "full").exists()

    def fill_disk(self, *, full: bool) -> None:
        """Takes the room away, or gives it back."""
        if full:
            (self.directory / "full").touch()
        else:
            (self.directory / "full").unlink(missing_ok=True)


class _Disk:
    """`os` as the recorder has it: its disk may be full, with room for a part of the entry that fills it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._filled = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, fd: int, data: bytes) -> int:
        was_full, self._filled = self._filled, self._world.disk_is_full
        if not self._filled:
            return os.write(fd, data)
        if was_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data[: len(data) // 2])


def _enter(world: World) -> None:
    def now(_self: SystemClock) -> datetime:
        return datetime.now(UTC) + world.offset

    def children(settings: Settings) -> list[Child]:
        return [replace(child, command=_altered(child.command)) for child in ordinary(settings)]

    ordinary = up.children
    # Set under other names than those of the class and the modules, which a type checker holds to be fixed.
    for place, name, value in (
        (SystemClock, "now", now),
        (recorder, "_BOOT_ID", world.boot_id),
        (recorder, "os", _Disk(world)),
        (up, "children", children),
    ):
        setattr(place, name, value)


def _altered(command: Any) -> list[str]:
    return [MODULE if word == "maintd" else word for word in command]


def main() -> None:
    """Enters the world and runs the command line."""
    _enter(World(directory=Path(os.environ[WORLD])))
    without.take_out(filter(None, os.environ.get(WITHOUT, "").split(",")))
    cli.main()


if __name__ == "__main__":
    main()
