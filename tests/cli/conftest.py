"""A command line beside real services: a ledger, an application's database, a Valkey server, a relay."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from maintd.cli import main
from maintd.clock import SystemClock
from maintd.config.load import load_settings
from maintd.config.settings import Settings
from maintd.database import Database
from maintd.demo.application import create
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime, open_runtime
from maintd.execution.worker import Worker
from maintd.ledger.engine import migrate
from maintd.samples import sample_directory
from tests.sinks import SinkThread
from tests.valkeys import Valkey

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, read as JSON."""
        return json.loads(self.out)


class Maintd:
    """`maintd("plan", "--json")` runs a command in this process, with these variables and no others of maintd's."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ

    def __call__(self, *arguments: str, typed: str = "") -> Outcome:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        code: object = 0
        try:
            with CliRunner().isolation(input=typed, env=self.environ) as (out, err, _):
                try:
                    main(arguments)
                except SystemExit as end:
                    code = end.code
                return Outcome(
                    code=int(str(code or 0)), out=out.getvalue().decode(), err=err.getvalue().decode()
                )
        finally:
            root.handlers[:], root.level = handlers, level


@dataclass(frozen=True, kw_only=True)
class Project:
    """A migrated ledger, the sample jobs and templates, and an application they fit.

    Attributes:
        maintd: Runs commands on all of it.
        jobs: The job file.
        settings: Those that the commands see.
        source: The application's SQLite file.
    """

    maintd: Maintd
    jobs: Path
    settings: Settings
    source: Path

    @contextmanager
    def runtime(self) -> Iterator[Runtime]:
        """What a daemon on these settings works with."""
        with closing(open_runtime(self.settings, clock=SystemClock())) as runtime:
            yield runtime

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside of this a worker takes all there is to do, until it ends."""
        stopping = threading.Event()

        def work() -> None:
            with self.runtime() as runtime, closing(Worker(runtime, stopping=stopping.is_set)) as worker:
                while not stopping.wait(0.02):
                    for queue in Queue:
                        worker.work(queue)

        thread = threading.Thread(target=work, name="worker")
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()

    def change(self, old: str, new: str) -> None:
        """Changes the job file."""
        text = self.jobs.read_text()
        assert old in text
        self.jobs.write_text(text.replace(old, new))


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    """The URL of a Valkey server of this test process."""
    with Valkey() as server:
        yield server.url


@pytest.fixture
def redis_url(valkey_server: str) -> Iterator[str]:
    """The URL of an empty Valkey server with the memory policy that maintd needs."""
    with closing(redis.Redis.from_url(valkey_server)) as client:
        client.flushall()
        client.config_set("maxmemory-policy", "noeviction")
    yield valkey_server


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with an application's data, to be copied."""
    path = tmp_path_factory.mktemp("application") / "app.db"
    database = Database(f"sqlite:///{path}", name="source app")
    create(database, seed=1, users=100, now=NOW)
    database.dispose()
    return path


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[SinkThread]:
    """A relay that takes every message."""
    with SinkThread(tmp_path / "mail") as sink:
        yield sink


@pytest.fixture
def bare(tmp_path: Path, redis_url: str) -> Maintd:
    """Commands in a place where nothing has been set up yet."""
    return Maintd(
        {
            "MAINTD_ENV_FILE": "",
            "MAINTD_STATE_DIR": str(tmp_path / "state"),
            "MAINTD_STATE_DIR_VOLATILE": "allow",  # pytest's directories may be in memory
            "MAINTD_SCHEDULES_DIR": str(tmp_path / "schedules"),
            "MAINTD_TEMPLATES_DIR": str(tmp_path / "templates"),
            "MAINTD_REDIS_URL": redis_url,
            "MAINTD_SMTP_HELLO": "maintd.test",
            "MAINTD_SMTP_CONNECT_TIMEOUT": "2 min",
            "MAINTD_LOG_FORMAT": "plain",
            "MAINTD_LOG_LEVEL": "warning",
        }
    )


def _project(bare: Maintd, tmp_path: Path, application: Path, *, relay_url: str, ledger_url: str) -> Project:
    for name in ("schedules", "templates"):
        shutil.copytree(sample_directory(name), tmp_path / name)
    source = tmp_path / "app.db"
    shutil.copy(application, source)
    environ = bare.environ | {
        "MAINTD_DATABASE_URL": ledger_url,
        "MAINTD_SOURCE_APP_URL": f"sqlite:///{source}",
        "MAINTD_SMTP_URL": relay_url,
    }
    migrate(ledger_url)
    project = Project(
        maintd=Maintd(environ),
        jobs=tmp_path / "schedules" / "nightly.toml",
        settings=load_settings(environ=environ, env_file=None),
        source=source,
    )
    project.change('once_per  = "week"', 'once_per  = "ever"')  # no week ends in the middle of a test
    return project


@pytest.fixture
def project(bare: Maintd, tmp_path: Path, application: Path, relay: SinkThread, database_url: str) -> Project:
    """All there is, with a ledger of each kind."""
    return _project(bare, tmp_path, application, relay_url=relay.url, ledger_url=database_url)


@pytest.fixture
def small_project(
    bare: Maintd, tmp_path: Path, application: Path, relay: SinkThread, sqlite_url: str
) -> Project:
    """All there is, with a ledger in a SQLite file: for what does not depend on the kind."""
    return _project(bare, tmp_path, application, relay_url=relay.url, ledger_url=sqlite_url)
