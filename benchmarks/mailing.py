"""A mailing sent by a real `maintd worker` process, from the wake-up to the end of the campaign."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from maintd.broker.wake import open_wake
from maintd.clock import SystemClock
from maintd.config.load import bare_environment, load_settings
from maintd.config.settings import Settings
from maintd.database import Database
from maintd.execution.queues import Queue
from maintd.keyspace import redis_url_of
from maintd.ledger import campaigns, deliveries, runs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.engine import migrate, open_ledger
from maintd.ledger.runs import NewRun
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from maintd.ledger.timeline import Timeline
from maintd.mail.campaign import CampaignSpec
from maintd.mail.enrolling.enrol import Edition, enrol

CONNECTIONS = 10
SLOWEST_PER_S = 50  # of a mailing that still moves
SENDER = "Acme <news@acme.example>"
PEOPLE = (
    "WITH RECURSIVE k(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM k WHERE n < {count}) "
    "SELECT n AS id, 'person' || n || '@example' || (n % 1000) || '.com' AS email, 'Person ' || n AS name FROM k"
)


def people(count: int) -> Iterator[tuple[str, str]]:
    """Addresses and names, those of `PEOPLE`."""
    return ((f"person{n}@example{n % 1000}.com", f"Person {n}") for n in range(1, count + 1))


_STYLE = """
body { font-family: sans-serif; color: #222; margin: 0 } h1 { font-size: 22px; color: #0a5 }
table { border-collapse: collapse; width: 100% } td { padding: 6px 8px; border-bottom: 1px solid #ddd }
.score { text-align: right; font-weight: bold } .foot { color: #888; font-size: 12px }
"""
_ROWS = "".join(f'<tr><td>Film {n}</td><td class="score">{9 - n / 30:.1f}</td></tr>\n' for n in range(60))
TEMPLATES: Mapping[str, Mapping[str, str]] = {
    "small": {
        "subject.txt": "News for {{ name }}",
        "body.txt": "Dear {{ name }},\n\nthis is what is new in {{ edition }}.\n\nYours, Acme\n",
        "body.html": "<h1>{{ edition }}</h1>\n<p>Dear {{ name }},</p>\n<p>this is what is new.</p>\n",
    },
    "rich": {
        "subject.txt": "News for {{ name }}",
        "body.txt": "Dear {{ name }},\n\nthis is what is new in {{ edition }}.\n\nYours, Acme\n",
        "body.html": f"<html><head><style>{_STYLE}</style></head><body><h1>News</h1><p>Dear {{{{ name }}}},</p>"
        f'<table>{_ROWS}</table><p class="foot">{{{{ edition }}}}</p></body></html>\n',
    },
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one run: messages a second, CPU of the sender a message, and the most memory that it held."""

    per_s: float
    cpu_us: float
    rss_mb: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Mailing:
    """What the worker is given to do."""

    ledger: str
    template: str
    recipients: int
    rtt_ms: float = 0.0


class Bench:
    """A Redis, a relay at several distances and both ledgers, with workers that come and go."""

    def __init__(self, directory: Path, *, postgresql_url: str, ports: Mapping[float, int]) -> None:
        self.directory = directory
        self.ports = ports
        self._postgresql_url = postgresql_url
        self.settings = self._settings(directory, f"sqlite:///{directory / 'ledger.db'}", port=ports[0.0])

    def _settings(self, state: Path, ledger_url: str, *, port: int, redis_url: str | None = None) -> Settings:
        environ = {
            "MAINTD_ENV_FILE": "",
            "MAINTD_STATE_DIR": str(state),
            "MAINTD_DATABASE_URL": ledger_url,
            "MAINTD_SMTP_URL": f"smtp://127.0.0.1:{port}",
            "MAINTD_SMTP_CONNECTIONS": str(CONNECTIONS),
            "MAINTD_LOG_LEVEL": "warning",
        }
        return load_settings(
            environ=environ | ({"MAINTD_REDIS_URL": redis_url} if redis_url else {}), env_file=None
        )

    def send(self, mailing: Mailing) -> Figures:
        """Enrols a mailing into an empty ledger and lets a fresh worker send it, when that is warm."""
        with self.run(mailing.ledger, rtt_ms=mailing.rtt_ms) as run, run.worker() as pid:
            run.send(mailing.template, 500)
            return run.measure(mailing.template, mailing.recipients, pid=pid)

    @contextlib.contextmanager
    def run(self, ledger: str, *, rtt_ms: float = 0.0) -> Iterator[Run]:
        """An empty ledger of that kind, with a relay at that distance."""
        with (
            tempfile.TemporaryDirectory(dir=self.directory) as directory,
            self._ledger_url(ledger, directory) as url,
        ):
            settings = self._settings(
                Path(directory), url, port=self.ports[rtt_ms], redis_url=redis_url_of(self.settings)
            )
            with contextlib.closing(Run(settings)) as run:
                yield run

    @contextlib.contextmanager
    def _ledger_url(self, kind: str, directory: str) -> Iterator[str]:
        if kind == "sqlite":
            yield f"sqlite:///{directory}/ledger.db"
            return
        admin = sa.make_url(self._postgresql_url).set(drivername="postgresql+psycopg")
        engine = sa.create_engine(admin, isolation_level="AUTOCOMMIT")
        name = f"bench{uuid.uuid4().hex[:12]}"
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
            yield admin.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        engine.dispose()


class Run:
    """One ledger and its worker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = settings.database_url.get_secret_value()
        migrate(url)
        self.ledger = open_ledger(url)
        self.source = Database(f"sqlite:///{settings.state_dir / 'app.db'}", name="source app")

    def close(self) -> None:
        self.ledger.dispose()
        self.source.dispose()

    @contextlib.contextmanager
    def worker(self, *queues: Queue) -> Iterator[int]:
        """The pid of a process for these queues; for both of mail unless any are named."""
        named = ",".join(queues or (Queue.MAIL_URGENT, Queue.MAIL_BULK))
        command = [sys.executable, "-m", "maintd", "worker", "--queues", named]
        environment = bare_environment() | self._settings.environment()
        with subprocess.Popen(command, env=environment) as process:
            try:
                yield process.pid
            finally:
                process.terminate()

    def measure(self, template: str, count: int, *, pid: int) -> Figures:
        """Sends a mailing and looks what the worker used for it."""
        before_s = cpu_s(pid)
        took_s = self.send(template, count)
        return Figures(
            per_s=count / took_s, cpu_us=(cpu_s(pid) - before_s) / count * 1e6, rss_mb=_peak_mb(pid)
        )

    def urgent_waits_s(self, count: int, *, beside: int) -> list[float]:
        """Sends so many urgent mails, one after the other, while a mailing to many is sent by another process.

        Returns:
            The seconds from the wake-up for each mail to the commit that says that the relay has taken it.
        """
        bulk_id = self._enrol("small", beside)
        self.wake(Queue.MAIL_BULK)
        until_s = time.monotonic() + 60
        while not self._sent(bulk_id):
            assert time.monotonic() < until_s, "the mailing beside does not begin"
            time.sleep(0.05)
        waits = [self.send("small", 1, urgent=True) for _ in range(count)]
        assert self._finished_at(bulk_id) is None, "the mailing beside was over too early"
        return waits

    def send(self, template: str, count: int, *, urgent: bool = False) -> float:
        """Enrols so many and wakes the worker; returns the seconds from then to the end of the campaign."""
        campaign_id = self._enrol(template, count, urgent=urgent)
        woken_at = datetime.now(UTC)
        self.wake(Queue.MAIL_URGENT if urgent else Queue.MAIL_BULK)
        until_s = time.monotonic() + 60 + count / SLOWEST_PER_S
        while (finished_at := self._finished_at(campaign_id)) is None:
            assert time.monotonic() < until_s, "the mailing does not come to its end"
            time.sleep(0.05)
        assert self._sent(campaign_id) == count
        return (finished_at - woken_at).total_seconds()

    def wake(self, queue: Queue) -> None:
        """Wakes the worker."""
        with open_wake(self._settings) as wake:
            wake({queue})

    def _sent(self, campaign_id: int) -> int:
        with self.ledger.read() as connection:
            return deliveries.counts(connection, campaign_id)[DeliveryState.SENT]

    def _finished_at(self, campaign_id: int) -> datetime | None:
        with self.ledger.read() as connection:
            campaign = campaigns.get(connection, campaign_id)
        assert campaign.state in (CampaignState.SENDING, CampaignState.FINISHED), campaign.reason
        return campaign.finished_at

    def _enrol(self, template: str, count: int, *, urgent: bool = False) -> int:
        return enrol_people(self.ledger, self.source, template, count, urgent=urgent).id


def enrol_people(
    ledger: Database,
    source: Database,
    template: str,
    count: int,
    *,
    edition: str | None = None,
    urgent: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Campaign:
    """Enrols so many of `PEOPLE` as an edition of their own."""
    clock = SystemClock()
    enrolled = enrol(
        _edition(ledger, template, count, name=edition or uuid.uuid4().hex, urgent=urgent, now=clock.now()),
        ledger=ledger,
        source=source,
        clock=clock,
        hold=lambda _: None,
        progress=progress,
        pause=time.sleep,
        timeline=Timeline(ledger),
    )
    return enrolled.campaign


def _edition(
    ledger: Database, template: str, count: int, *, name: str, urgent: bool, now: datetime
) -> Edition:
    queued = NewRun(
        job="news", kind="campaign", occurrence=uuid.uuid4().hex, cause="manual", nominal_at=now, options={},
        state=RunState.UNDERWAY, queue=Queue.MAINTENANCE, due_at=now,
    )  # fmt: skip
    with ledger.write() as connection:
        run_id = runs.create(connection, queued, now=now)
    assert run_id is not None
    return Edition(
        job="news",
        name=name,
        run_id=run_id,
        spec=_spec(template, urgent=urgent),
        files={"sql/people.sql": PEOPLE.format(count=count)}
        | {f"template/{template}/{name}": text for name, text in TEMPLATES[template].items()},
        uid=uuid.uuid4().hex,
    )


def _spec(template: str, *, urgent: bool) -> CampaignSpec:
    return CampaignSpec.model_validate({
        "source": "app", "audience": {"sql": "people.sql", "recipient": "id"}, "template": template, "from": SENDER,
        "urgent": urgent,
    })  # fmt: skip


def cpu_s(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
