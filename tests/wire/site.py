"""A small application with a `maintd up` of its own, driven from outside as a person would."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from maintd.clock import SystemClock
from maintd.config.load import load_settings
from maintd.config.settings import Settings
from maintd.database import Database
from maintd.execution.runtime import Runtime, open_runtime
from maintd.ledger import campaigns, deliveries, runs
from maintd.ledger.engine import migrate
from maintd.ledger.runs import Run
from maintd.ledger.states import RUN_MOVES, DeliveryState, is_final

T = TypeVar("T")

QUICK = {
    # No machine is so busy that one who lives stands still for so long.
    "MAINTD_LEASE": "1 min",
    "MAINTD_HEARTBEAT": "300 ms",
    "MAINTD_TICK": "100 ms",
    "MAINTD_RECONCILE": "200 ms",
    "MAINTD_BEAT_LOCK": "2 s",
    "MAINTD_STOP_TIMEOUT": "10 s",
    "MAINTD_MAIL_BATCH": "50",
    "MAINTD_SMTP_CONNECTIONS": "4",
    "MAINTD_LOG_FORMAT": "plain",
}

JOBS = """
[newsletter]
kind     = "campaign"
once_per = "ever"
source   = "app"
audience = { sql = "people.sql", address = "email", recipient = "id" }
template = "news"
from     = "Site <news@site.example>"

[old-sessions]
kind       = "cleanup.rows"
source     = "app"
table      = "session"
older_than = { column = "expires_at", age = "1 day" }
stop_at    = { fraction = 1.0 }

[night]
kind = "pipeline"
[night.steps]
old-sessions = {}
newsletter   = { after = ["old-sessions"] }
"""


def until(found: Callable[[], T | None], *, what: str, within_s: float = 200.0) -> T:
    """Asks again until there is an answer: nothing announces what happens in other processes.

    A machine that is busy with other tests may need long to start a handful of them.
    """
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"waited {within_s:.0f} s in vain for: {what}")


class Site:
    """An application with people and sessions, and everything that maintd needs beside it."""

    def __init__(
        self,
        directory: Path,
        *,
        ledger_url: str,
        smtp_url: str,
        people: int,
        domains: Sequence[str] = ("people.example",),
        jobs: str = JOBS,
        given: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.people = [f"person{number}@{domains[number % len(domains)]}" for number in range(people)]
        source_url = f"sqlite:///{directory / 'app.db'}"
        (directory / "schedules").mkdir()
        (directory / "templates" / "news").mkdir(parents=True)
        (directory / "schedules" / "jobs.toml").write_text(jobs)
        (directory / "schedules" / "people.sql").write_text("SELECT id, email, name FROM person")
        (directory / "templates" / "news" / "subject.txt").write_text("News for {{ name }}")
        (directory / "templates" / "news" / "body.txt").write_text("Dear {{ name }}, that is all.")
        self._fill(source_url)
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("MAINTD_")}
        self.environ |= QUICK | {
            "MAINTD_ENV_FILE": "",
            "MAINTD_STATE_DIR": str(directory / "state"),
            "MAINTD_STATE_DIR_VOLATILE": "allow",  # pytest's directories may be in memory
            "MAINTD_DATABASE_URL": ledger_url,
            "MAINTD_SOURCE_APP_URL": source_url,
            "MAINTD_SCHEDULES_DIR": str(directory / "schedules"),
            "MAINTD_TEMPLATES_DIR": str(directory / "templates"),
            "MAINTD_SMTP_URL": smtp_url,
        }
        self.environ |= given or {}
        migrate(ledger_url)
        self.settings: Settings = load_settings(environ=self.environ, env_file=None)
        self.runtime: Runtime = open_runtime(self.settings, clock=SystemClock())

    def _fill(self, url: str) -> None:
        database = Database(url, name="source app")
        with database.write() as connection:
            connection.exec_driver_sql("CREATE TABLE person (id INTEGER PRIMARY KEY, email TEXT, name TEXT)")
            connection.exec_driver_sql("CREATE TABLE session (id INTEGER PRIMARY KEY, expires_at DATETIME)")
            connection.execute(
                sa.text("INSERT INTO person (email, name) VALUES (:email, :name)"),
                [{"email": email, "name": email.split("@")[0]} for email in self.people],
            )
            connection.execute(
                sa.text("INSERT INTO session (expires_at) VALUES (:at)"),
                [{"at": f"20{year}-01-01 00:00:00"} for year in (20, 21, 22, 90)],
            )
        database.dispose()

    def sessions_left(self) -> int:
        database = Database(f"sqlite:///{self.directory / 'app.db'}", name="source app")
        with database.read() as connection:
            count = connection.exec_driver_sql("SELECT count(*) FROM session").scalar_one()
        database.dispose()
        return int(count)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "maintd", *arguments]

    def maintd(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environ | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            cwd=self.directory,
        )

    @contextlib.contextmanager
    def process(
        self, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Runs a daemon while the block runs; it is stopped in order if it still lives then."""
        log = (self.directory / f"{arguments[0]}.log").open("ab")
        with (
            log,
            subprocess.Popen(
                self.command(*arguments), env=self.environ | (environ or {}), stderr=log, cwd=self.directory
            ) as daemon,
        ):
            try:
                yield daemon
            finally:
                if daemon.poll() is None:
                    daemon.terminate()
                    daemon.wait(100)

    @contextlib.contextmanager
    def up(self) -> Iterator[subprocess.Popen[bytes]]:
        """The whole tree, running."""
        said = len(self.log("up"))
        with self.process("up") as tree:
            until(lambda: "is up" in self.log("up")[said:] or tree.poll() is not None, what="the tree")
            assert tree.poll() is None, self.log("up")
            yield tree

    def log(self, daemon: str) -> str:
        """What a daemon has said so far, in all its lives."""
        path = self.directory / f"{daemon}.log"
        return path.read_text() if path.exists() else ""

    def pid_of(self, child: str) -> int:
        """The pid of a child of the tree that was started last under that name."""
        return int(re.findall(rf"\b{child} started with pid (\d+)", self.log("up"))[-1])

    def run(self, run_id: int) -> Run:
        with self.runtime.ledger.read() as connection:
            run = runs.get(connection, run_id)
        assert run is not None
        return run

    def ended(self, run_id: int) -> Run:
        """Waits for the end of a run."""
        return until(
            lambda: run if is_final(RUN_MOVES, (run := self.run(run_id)).state) else None,
            what=f"the end of run {run_id}",
        )

    def runs_of(self, job: str) -> list[Run]:
        with self.runtime.ledger.read() as connection:
            return runs.latest(connection, job=job, limit=1000)

    def counts(self) -> dict[DeliveryState, int]:
        """Deliveries of the newest campaign by state."""
        with self.runtime.ledger.read() as connection:
            found = campaigns.latest(connection, job=None, limit=1)
            return deliveries.counts(connection, found[0].id) if found else {}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    """Pids of the direct children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
