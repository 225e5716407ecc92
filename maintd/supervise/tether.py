"""Starts a program that shall not outlive its parent: `python -m maintd.supervise.tether PARENT PROGRAM [ARGUMENT …]`.

A supervisor that is killed with SIGKILL cannot stop its children. The kernel does it instead: it sends SIGTERM to a
process whose parent died, if the process asked for that (prctl(2), PR_SET_PDEATHSIG; kept across execve).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, arguments: list[str]) -> None:
    """Asks the kernel and becomes the program.

    Args:
        parent: The pid of the supervisor; told by itself, because it may be dead before we begin.
        arguments: The program and its arguments.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)  # it died before we asked
    os.execvp(arguments[0], arguments)  # noqa: S606 - that is what this is for


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
