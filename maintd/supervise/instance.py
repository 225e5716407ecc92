"""One `maintd up` for each state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from maintd.errors import MaintdError


@contextlib.contextmanager
def only_instance(state_dir: Path) -> Iterator[None]:
    """Holds the state directory's lock while the block runs; the kernel frees it however the process ends.

    Raises:
        MaintdError: Another instance holds it; its pid is named.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Not inherited by children (PEP 446): a child that lives on must not keep the lock.
    with (state_dir / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise MaintdError(
                f"maintd up is already running on {state_dir}, with pid {file.read().strip() or 'unknown'}; "
                "stop it first, or give this one another MAINTD_STATE_DIR"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
