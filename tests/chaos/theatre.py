"""Where a scenario is performed: real processes, a real Redis, a real database, and a relay that may misbehave."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from sqlalchemy.engine import Connection

from maintd.broker.app import make_app
from maintd.database import Database
from maintd.errors import Unavailable
from maintd.execution.runtime import limits_of
from maintd.execution.trigger import trigger
from maintd.ledger import batches, campaigns, deliveries, runs, timeline
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery
from maintd.ledger.engine import open_ledger
from maintd.ledger.runs import Run
from maintd.ledger.states import ENDED_CAMPAIGNS, RUN_MOVES, CampaignState, DeliveryState, RunState, is_final
from maintd.ledger.witness import Witness
from maintd.mail.recording.recorder import DAMAGED, DONE
from maintd.mail.sending.allowance import look
from maintd.supervise.up import apply_files
from tests.chaos.altered import World
from tests.chaos.backup import Backup
from tests.chaos.cast import Cast, Part
from tests.chaos.recordings import is_left
from tests.chaos.relays import Relays, relays
from tests.chaos.scenario import Dialect, Scenario, Troupe
from tests.chaos.servers import PostgreSQL, Valkey, new_database
from tests.chaos.weather import PATIENT_S, lax_sinks
from tests.wire.site import Site

T = TypeVar("T")

JOB = "newsletter"
LEASE_S = 2.0

_SETTINGS = {
    "MAINTD_LEASE": f"{LEASE_S:g} s",
    "MAINTD_HEARTBEAT": "400 ms",
    "MAINTD_BEAT_LOCK": "1500 ms",
    "MAINTD_SMTP_CONNECT_TIMEOUT": "1 s",
    "MAINTD_SMTP_COMMAND_TIMEOUT": "1 s",
    "MAINTD_SMTP_DOT_TIMEOUT": f"{PATIENT_S + 1:g} s",
    "MAINTD_RECORDER_KEEP": "1000 days",  # the clocks step far, and what is kept is evidence
}
_JOBS = """
[newsletter]
kind       = "campaign"
once_per   = "ever"
source     = "app"
audience   = {{ sql = "people.sql", address = "email", recipient = "id" }}
template   = "news"
from       = "Site <news@site.example>"
uncertain  = "{policy}"
max_copies = 3
"""
_LIMIT = 'limit = "{people}/s"'
#: With lanes the people are of these, by turns; else all of the first.
_DOMAINS = ("people.example", "slow.example", "quick.example", "quicker.example")


@dataclass(frozen=True, kw_only=True)
class Theatre:
    """A stage that is set.

    Attributes:
        ledger: As a spectator opens it: no timeout ends what a busy machine holds up.
        postgresql: The server, if this performance has one of its own.
    """

    scenario: Scenario
    site: Site
    ledger: Database
    backup: Backup
    world: World
    cast: Cast
    valkey: Valkey
    relays: Relays
    postgresql: PostgreSQL | None

    @property
    def recorders(self) -> list[Path]:
        """Every flight recorder of every host."""
        return sorted(self.site.directory.glob("state*/recorders/*/*.rec"))

    @property
    def recordings(self) -> list[Path]:
        """The same, and those that were put away."""
        suffixes = (".rec", DONE, DAMAGED)
        found = self.site.directory.glob("state*/recorders/*/*")
        return sorted(path for path in found if path.suffix in suffixes)

    def left_behind(self) -> list[Path]:
        """Recordings of the dead that nobody has taken over yet."""
        return [path for path in self.recorders if is_left(path)]

    def begin(self) -> None:
        """Applies the job, queues its run, and lets the processes start."""
        apply_files(self.site.settings, clock=self.site.runtime.clock)
        trigger(JOB, self.site.runtime)
        self.cast.play()

    def campaign(self) -> Campaign | None:
        """The mailing, once it exists and the ledger answers."""
        found = self._asked(lambda connection: campaigns.latest(connection, job=JOB, limit=1))
        return found[0] if found else None

    def deliveries(self) -> list[Delivery]:
        """Everybody who was enrolled."""
        campaign = self.campaign()
        if campaign is None:
            return []
        with self.ledger.read() as connection:
            return deliveries.of_campaign(connection, campaign.id, state=None, limit=10**9)

    def counts(self) -> dict[DeliveryState, int]:
        """How many deliveries are in each state; none while the ledger does not answer."""
        campaign = self.campaign()
        if campaign is None:
            return {}
        return self._asked(lambda connection: deliveries.counts(connection, campaign.id)) or {}

    def holders(self) -> list[int]:
        """Pids of the processes that hold a batch."""
        held = self._asked(batches.held) or []
        return [int(batch.owner.rpartition(":")[2]) for batch in held if batch.owner]

    @property
    def states(self) -> list[Path]:
        """The state directories of all hosts."""
        return sorted(self.site.directory.glob("state*"))

    def restore_ledger(self) -> None:
        """Puts the backup into the place of the ledger; nobody may work with it."""
        self.ledger.dispose()
        self.site.runtime.ledger.dispose()
        self.backup.restore()

    def went_back(self) -> bool:
        """Whether some host has seen the ledger further than it stands; not if nothing has gone out since the copy."""
        with self.ledger.read() as connection:
            point = timeline.standing(connection).point
        seen = [Witness(state / "witness").seen() for state in self.states]
        return any(one is not None and point.is_before(one) for one in seen)

    def is_held(self) -> bool:
        """Whether the ledger waits to be accepted."""
        with self.ledger.read() as connection:
            return timeline.standing(connection).held is not None

    def is_over(self) -> bool:
        """Whether the mailing has ended, and its run with it."""
        campaign, run = self.campaign(), self.run()
        return (
            campaign is not None
            and campaign.state in ENDED_CAMPAIGNS
            and run is not None
            and is_final(RUN_MOVES, run.state)
        )

    def run(self) -> Run | None:
        """The run of the mailing, when the ledger answers."""
        found = self._asked(lambda connection: runs.latest(connection, job=JOB, limit=1))
        return found[0] if found else None

    def _asked(self, query: Callable[[Connection], T]) -> T | None:
        """What the ledger answers; None while it does not."""
        try:
            with self.ledger.read() as connection:
                return query(connection)
        except Unavailable:
            return None

    def progress(self) -> object:
        """Something that is another thing when anything has gone on."""
        campaign, run = self.campaign(), self.run()
        point = self._asked(lambda connection: timeline.standing(connection).point)
        return (
            self.relays.accepted,
            point,
            campaign and (campaign.state, campaign.audience),
            run and (run.state, run.failures, run.losses),
            self.left_behind(),
        )

    def waits(self) -> timedelta | None:
        """How long it is until something goes on by itself; None if something may go on now."""
        campaign, run = self.campaign(), self.run()
        if run is not None and run.state is RunState.QUEUED:
            return run.due_at - self.now()
        if campaign is None or campaign.state is not CampaignState.SENDING:
            return None
        return self._asked(
            lambda connection: None if batches.held(connection) else self._opens_in(connection, campaign)
        )

    def _opens_in(self, connection: Connection, campaign: Campaign) -> timedelta | None:
        outlook = look(connection, limits_of(self.site.settings), urgent=False, now=self.now())
        if outlook.soon:
            return None
        deferred = deliveries.of_campaign(
            connection, campaign.id, state=DeliveryState.DEFERRED, limit=campaign.enrolled
        )
        waits = [one.due_at - self.now() for one in deferred if one.due_at is not None]
        return min(waits + [wait.opens_in for wait in outlook.waiting.values()], default=None)

    def hold_answers(self, *, at: int) -> None:
        """Lets the relays keep back their answers to dots, once they have accepted so many messages."""
        self.relays.script.held_from = at

    def calm(self) -> None:
        """Ends all faults: the relays behave, and whatever was taken away is there again."""
        self.relays.settle_down()
        self.world.fill_disk(full=False)
        self.world.step_clocks(max(self.world.offset, timedelta(0)))
        self.valkey.start()
        if self.postgresql is not None:
            self.postgresql.start()
        self.cast.play()

    def now(self) -> datetime:
        """What the wall clocks of its processes say."""
        return datetime.now(UTC) + self.world.offset

    def wake(self, *, queue: str, times: int) -> None:
        """Puts wake-up messages into a queue, whatever is in it."""
        with make_app(self.site.settings, redis_url=self.valkey.url) as app:
            for _ in range(times):
                app.send_task("maintd.wake", args=[queue], queue=queue)


@contextlib.contextmanager
def theatre(scenario: Scenario, directory: Path, *, server_url: str) -> Iterator[Theatre]:
    """Sets the stage for a scenario; afterwards nothing runs any more, and the directory is as it was left.

    Args:
        scenario: What is to be performed.
        directory: Where everything goes; empty, and its path short enough for a Unix socket.
        server_url: Of a PostgreSQL server, for whoever does not need one of its own.
    """
    with contextlib.ExitStack() as stack:
        postgresql = PostgreSQL() if scenario.own_server else None
        if postgresql is not None:
            stack.callback(postgresql.close)
        ledger_url = f"sqlite:///{directory / 'ledger.db'}"
        if scenario.dialect is Dialect.POSTGRESQL:
            ledger_url = stack.enter_context(new_database(postgresql.url if postgresql else server_url))
        world = World(directory=directory / "world")
        world.directory.mkdir()
        world.boot(1)
        valkey = Valkey(directory / "valkey")
        stack.callback(valkey.kill)
        valkey.start()
        if scenario.weather.lax:
            stack.enter_context(lax_sinks())
        mail = relays(
            directory, count=scenario.relays, weather=scenario.weather, draw=random.Random(scenario.seed)
        )
        found = stack.enter_context(mail)
        site = Site(
            directory,
            ledger_url=ledger_url,
            smtp_url=found.url,
            people=scenario.people,
            domains=_DOMAINS if scenario.lanes else _DOMAINS[:1],
            jobs=_jobs(scenario),
            given=_settings(scenario, redis_url=valkey.url),
        )
        stack.callback(site.runtime.close)
        ledger = open_ledger(ledger_url)
        stack.callback(ledger.dispose)
        environ = site.environ | world.environment(without=scenario.without)
        cast = Cast(_parts(scenario, directory), directory=directory, environ=environ)
        stack.callback(cast.leave)
        yield Theatre(
            scenario=scenario,
            site=site,
            ledger=ledger,
            backup=Backup(ledger_url, directory / "ledger.backup"),
            world=world,
            cast=cast,
            valkey=valkey,
            relays=found,
            postgresql=postgresql,
        )


def _jobs(scenario: Scenario) -> str:
    limit = _LIMIT.format(people=scenario.people) if scenario.lanes else ""
    return _JOBS.format(policy=scenario.policy) + limit


def _lanes(people: int) -> dict[str, str]:
    """Limits under which a mailing takes some seconds."""
    return {
        "MAINTD_SMTP_LIMIT": f"{people}/s",
        "MAINTD_LANE_SLOW": f"{people // 12}/s slow.example",
        "MAINTD_LANE_QUICK": f"{people // 3}/s quick.example quicker.example",
    }


def _settings(scenario: Scenario, *, redis_url: str) -> dict[str, str]:
    root = Path(__file__).parents[2]
    lanes = _lanes(scenario.people) if scenario.lanes else {}
    return (
        _SETTINGS
        | lanes
        | {
            "MAINTD_REDIS_URL": redis_url,
            "MAINTD_SMTP_CONNECTIONS": str(scenario.connections),
            "MAINTD_MAIL_BATCH": str(scenario.batch),
            "MAINTD_MAIL_PROCESSES": str(scenario.senders),
            "PYTHONPATH": str(root),
        }
    )


def _parts(scenario: Scenario, directory: Path) -> list[Part]:
    if scenario.troupe is Troupe.UP:
        return [Part(name="up", arguments=["up"], environ={}, sends=False)]
    beat = Part(name="beat", arguments=["beat"], environ={}, sends=False)
    return [beat, *(_worker(scenario, directory, number) for number in range(scenario.senders))]


def _worker(scenario: Scenario, directory: Path, number: int) -> Part:
    state = directory / f"state-{number}"
    environ = {"MAINTD_STATE_DIR": str(state)} if scenario.troupe is Troupe.HOSTS else {}
    return Part(name=f"worker-{number}", arguments=["worker"], environ=environ, sends=True)
