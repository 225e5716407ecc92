"""The main job for real: a night's work with a worker killed in its middle, and a count of what arrived."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from maintd.broker.wake import open_wake
from maintd.clock import Clock
from maintd.config.load import load_settings
from maintd.config.settings import Settings
from maintd.database import Database
from maintd.demo.application import Population, create
from maintd.demo.films import Films
from maintd.demo.tally import Tally, tally
from maintd.errors import MaintdError
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime, open_runtime
from maintd.execution.trigger import trigger
from maintd.ledger import batches, campaigns, deliveries, runs
from maintd.ledger.engine import migrate
from maintd.ledger.runs import Run
from maintd.ledger.states import RUN_MOVES, DeliveryState, RunState, is_final
from maintd.mail.address import parse_address
from maintd.mail.suppress import suppress
from maintd.samples import SCHEDULES, TEMPLATES, sample_directory
from maintd.smtp.faults import Action, Moment, Script, Step
from maintd.smtp.sink import Sink
from maintd.supervise.supervisor import Death
from maintd.supervise.up import running

PIPELINE = "nightly"
CAMPAIGN_JOB = "weekly-digest"
CONNECTIONS = 8

#: Quick enough to be watched. The lease is not what a takeover waits for, on one host: it bears with a busy machine.
_QUICK = {
    "MAINTD_LEASE": "10 s",
    "MAINTD_HEARTBEAT": "500 ms",
    "MAINTD_TICK": "200 ms",
    "MAINTD_RECONCILE": "300 ms",
    "MAINTD_BEAT_LOCK": "5 s",
    "MAINTD_SMTP_CONNECTIONS": str(CONNECTIONS),
    "MAINTD_MAIL_BATCH": "200",
    "MAINTD_STOP_TIMEOUT": "10 s",
    "MAINTD_LOG_FORMAT": "plain",
    "MAINTD_LOG_LEVEL": "warning",
}
_GIVE_UP_AFTER_S = 300.0
_LOOK_EVERY_S = 0.1


class Show(Protocol):
    """Where the demo tells what is going on."""

    def say(self, line: str) -> None:
        """Something happened."""
        ...

    def progress(self, step: str, *, done: int, total: int) -> None:
        """How far a step is; `total` 0 while that is not known."""
        ...


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person may choose.

    Attributes:
        directory: Where everything goes; it must be new or empty.
        seed: Equal seeds give equal data and an equal moment for the kill.
        users: How many people the film site has.
        source_url: Its database; None for a SQLite file in the directory.
        database_url: Of the ledger, which must be new; None for a SQLite file in the directory.
        smtp_url: Another relay than the demo's own sink; then nothing can be counted here.
        films: Real films and ratings; None to invent them.
        kill_between: How much of the mailing has arrived when the worker is killed; the seed decides within.
    """

    directory: Path
    seed: int
    users: int
    source_url: str | None = None
    database_url: str | None = None
    smtp_url: str | None = None
    films: Films | None = None
    kill_between: tuple[float, float] = (0.32, 0.45)


@dataclass(frozen=True, kw_only=True)
class Report:
    """How it ended. All counts of messages are of the mailbox, not of the ledger.

    Attributes:
        recipients: People who had to get the mail.
        sent: Deliveries that the ledger calls sent.
        uncertain: Deliveries of which nobody can know.
        uncertain_addresses: Whose they are.
        mailbox_messages: Messages in the mailbox; None with another relay.
        duplicates: Messages beyond the first to the same person.
        missing: People who got nothing and are not named as uncertain.
        unexpected: Recipients who should have got nothing.
        rows_removed: Expired sessions removed.
        titles_rated: Titles whose score was computed.
        worker_killed: Pid of the process that was killed.
        killed_at_fraction: How much of the mailing was in the mailbox then.
        problems: Everything that is not as it must be; empty when all is well.
    """

    recipients: int
    sent: int
    uncertain: int
    uncertain_addresses: tuple[str, ...]
    mailbox_messages: int | None
    duplicates: int | None
    missing: int | None
    unexpected: int | None
    rows_removed: int
    titles_rated: int
    worker_killed: int | None
    killed_at_fraction: float | None
    seconds: float
    problems: tuple[str, ...]


@dataclass(kw_only=True)
class _Kill:
    """The kill: when, of whom, and that it was the cause of death.

    Attributes:
        at: So many messages in the mailbox.
        done: From `at` on until this is set the sink keeps its answers to itself: so the process dies with an open
            dot on every connection, the worst moment there is.
    """

    at: int = sys.maxsize
    done: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int | None = None
    fraction: float | None = None
    deaths: list[Death] = field(default_factory=list)

    def hold_answers(self, sink: Sink) -> Script:
        """What the sink does meanwhile."""

        def script(moment: Moment) -> Action | None:
            if moment.step is not Step.DOT or sink.accepted < self.at or self.done.is_set():
                return None
            return Action(reply="250 2.0.0 Kept", accept=True, after=self.done)

        return script

    @property
    def confirmed(self) -> bool:
        """Whether the process ended by the signal, as its parent was told by the kernel."""
        return any(death.pid == self.pid and death.status == -signal.SIGKILL for death in self.deaths)


async def run(options: Options, *, clock: Clock, environ: Mapping[str, str], show: Show) -> Report:
    """Runs the demo.

    Args:
        options: What was chosen.
        clock: Passed on to everything.
        environ: The process environment, for the home directory.
        show: Where to tell what is going on.

    Raises:
        MaintdError: Something could not even begin.
    """
    started_s = clock.monotonic_s()
    sink = Sink(options.directory / "mailbox", clock=clock)
    async with contextlib.AsyncExitStack() as stack:
        relay_url = options.smtp_url
        if relay_url is None:
            relay_url = f"smtp://127.0.0.1:{await sink.start()}"
            stack.push_async_callback(sink.close)
        settings = _settings(options, relay_url=relay_url, environ=environ)
        population = await asyncio.to_thread(_prepare, options, settings, clock=clock)
        show.say(_described(population))
        kill = _Kill()
        sink.script = kill.hold_answers(sink)
        log = stack.enter_context((options.directory / "maintd.log").open("ab"))
        await stack.enter_async_context(running(settings, clock=clock, on_death=kill.deaths.append, log=log))
        runtime = stack.enter_context(contextlib.closing(open_runtime(settings, clock=clock)))
        night = _Night(options, runtime, sink, population, kill, show)
        finished = await night.run()
        return await asyncio.to_thread(
            night.report, finished, seconds=lambda: clock.monotonic_s() - started_s
        )


def _settings(options: Options, *, relay_url: str, environ: Mapping[str, str]) -> Settings:
    state = options.directory / "state"
    source_url = options.source_url or f"sqlite:///{options.directory / 'films.db'}"
    ledger = {"MAINTD_DATABASE_URL": options.database_url} if options.database_url else {}
    # Whatever else is set on this machine is none of the demo's business.
    bare = {name: value for name, value in environ.items() if not name.startswith("MAINTD_")}
    given = {
        "MAINTD_ENV_FILE": "",
        "MAINTD_STATE_DIR": str(state),
        "MAINTD_STATE_DIR_VOLATILE": "allow",  # most temporary directories are in memory
        "MAINTD_SCHEDULES_DIR": str(options.directory / SCHEDULES),
        "MAINTD_TEMPLATES_DIR": str(options.directory / TEMPLATES),
        "MAINTD_SOURCE_APP_URL": source_url,
        "MAINTD_SMTP_URL": relay_url,
    }
    return load_settings(environ=bare | _QUICK | given | ledger, env_file=None)


def _prepare(options: Options, settings: Settings, *, clock: Clock) -> Population:
    """Copies the sample set, makes the ledger and the film site's database, and suppresses whom it must."""
    for name in (SCHEDULES, TEMPLATES):
        shutil.copytree(sample_directory(name), options.directory / name)
    settings.state_dir.mkdir(mode=0o700)
    before, _ = migrate(settings.database_url.get_secret_value())
    if before is not None:
        raise MaintdError("there is a ledger in that database already; the demo wants one of its own")
    with _source(settings) as source:
        population = create(
            source, seed=options.seed, users=options.users, now=clock.now(), films=options.films
        )
    with contextlib.closing(open_runtime(settings, clock=clock)) as runtime:
        suppress(runtime.ledger, population.suppressed, reason="demo", now=clock.now())
    return population


@contextlib.contextmanager
def _source(settings: Settings) -> Iterator[Database]:
    source = Database(settings.source_urls["app"].get_secret_value(), name="source app")
    try:
        yield source
    finally:
        source.dispose()


def _described(population: Population) -> str:
    return (
        f"a film site with {population.users:,} users, {population.titles:,} titles, {population.ratings:,} ratings "
        f"and {population.sessions:,} sessions; {len(population.expected):,} people are to get the digest "
        f"({population.duplicates} of the audience are there twice, {population.invalid} have no usable address, "
        f"{len(population.suppressed)} are suppressed)"
    )


class _Night:
    """One night's pipeline, watched from outside."""

    def __init__(
        self,
        options: Options,
        runtime: Runtime,
        sink: Sink,
        population: Population,
        kill: _Kill,
        show: Show,
    ) -> None:
        self._options = options
        self._runtime = runtime
        self._sink = sink
        self._population = population
        self._kill = kill
        self._show = show

    async def run(self) -> list[Run]:
        """Runs the pipeline through the real queue; returns its run and those of its steps when all have ended.

        Raises:
            MaintdError: It does not come to an end.
        """
        night = await asyncio.to_thread(self._trigger)
        self._show.say(f"{night.name} is queued")
        killer = asyncio.create_task(self._strike())
        try:
            async with asyncio.timeout(_GIVE_UP_AFTER_S):
                return await self._watch(night.id)
        except TimeoutError:
            raise MaintdError(
                f"the night did not end within {_GIVE_UP_AFTER_S:.0f} s; look into {self._options.directory}"
            ) from None
        finally:
            killer.cancel()

    def _trigger(self) -> Run:
        night = trigger(PIPELINE, self._runtime)
        with open_wake(self._runtime.settings) as wake:
            wake({Queue(night.queue)})
        return night

    async def _strike(self) -> None:
        """Kills the process that holds the claims once a good third of the mail has arrived."""
        draw = random.Random(self._options.seed)  # noqa: S311 - reproducible on purpose
        expected = len(self._population.expected)
        self._kill.at = int(expected * draw.uniform(*self._options.kill_between))
        await self._until_arrived(self._kill.at)
        pid = None
        while pid is None:
            pid = await asyncio.to_thread(self._holder)
        os.kill(pid, signal.SIGKILL)
        self._kill.done.set()
        self._kill.pid = pid
        self._kill.fraction = round(await self._arrived() / expected, 3)
        self._show.say(
            f"killed process {pid}, which held the claims, with SIGKILL at {self._kill.fraction:.0%}"
        )

    async def _until_arrived(self, count: int) -> None:
        if self._options.smtp_url is None:
            await self._sink.wait_for(count)
            return
        while await self._arrived() < count:
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _arrived(self) -> int:
        """Messages in the mailbox; with another relay, what the ledger calls sent."""
        if self._options.smtp_url is None:
            return self._sink.accepted
        return (await asyncio.to_thread(self._counts)).get(DeliveryState.SENT, 0)

    def _holder(self) -> int | None:
        with self._runtime.ledger.read() as connection:
            owners = [batch.owner for batch in batches.held(connection) if batch.owner]
        return int(owners[0].rpartition(":")[2]) if owners else None

    def _counts(self) -> dict[DeliveryState, int]:
        with self._runtime.ledger.read() as connection:
            found = campaigns.latest(connection, job=CAMPAIGN_JOB, limit=1)
            return deliveries.counts(connection, found[0].id) if found else {}

    async def _watch(self, run_id: int) -> list[Run]:
        seen: dict[str, RunState] = {}
        doubts = 0
        while True:
            family = await asyncio.to_thread(self._family, run_id)
            for one in family:
                if seen.get(one.job) is not one.state:
                    seen[one.job] = one.state
                    self._tell(one)
            if seen.get(CAMPAIGN_JOB) is RunState.UNDERWAY:
                doubts = await self._tell_progress(doubts)
            if is_final(RUN_MOVES, family[0].state):
                return family
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _tell_progress(self, doubts: int) -> int:
        self._show.progress(CAMPAIGN_JOB, done=await self._arrived(), total=len(self._population.expected))
        found = (await asyncio.to_thread(self._counts)).get(DeliveryState.UNCERTAIN, 0)
        if found > doubts:
            self._show.say(
                f"its batch was taken over; what it had on the wire is uncertain: {found} messages"
            )
        return found

    def _family(self, run_id: int) -> list[Run]:
        with self._runtime.ledger.read() as connection:
            night = runs.get(connection, run_id)
            assert night is not None
            return [night, *runs.steps(connection, run_id)]

    def _tell(self, one: Run) -> None:
        if one.state in (RunState.WAITING, RunState.QUEUED):
            return
        counted = ", ".join(
            f"{name} {value}" for name, value in (one.result or {}).items() if name != "steps"
        )
        reason = f": {one.reason}" if one.reason else ""
        self._show.say(f"{one.job} {one.state.value}{reason}" + (f" ({counted})" if counted else ""))

    def report(self, family: list[Run], *, seconds: Callable[[], float]) -> Report:
        """Counts what arrived and compares it with what had to."""
        results = {one.job: one.result or {} for one in family}
        with self._runtime.ledger.read() as connection:
            campaign = campaigns.latest(connection, job=CAMPAIGN_JOB, limit=1)[0]
            counts = deliveries.counts(connection, campaign.id)
            doubts = deliveries.uncertain(connection, campaign_id=campaign.id, limit=1000)
        addresses = tuple(doubt.address for doubt in doubts)
        counted = self._tally(campaign.name, addresses) if self._options.smtp_url is None else None
        return Report(
            recipients=len(self._population.expected),
            sent=counts[DeliveryState.SENT],
            uncertain=len(doubts),
            uncertain_addresses=addresses,
            mailbox_messages=counted.messages if counted else None,
            duplicates=counted.duplicates if counted else None,
            missing=counted.missing if counted else None,
            unexpected=counted.unexpected if counted else None,
            rows_removed=results.get("expired-sessions", {}).get("removed", 0),
            titles_rated=results.get("title-ratings", {}).get("items", 0),
            worker_killed=self._kill.pid,
            killed_at_fraction=self._kill.fraction,
            seconds=round(seconds(), 1),
            problems=tuple(self._problems(family, len(doubts), counted)),
        )

    def _tally(self, campaign: str, doubtful: tuple[str, ...]) -> Tally:
        return tally(
            self._options.directory / "mailbox",
            campaign=campaign,
            expected=self._population.expected,
            uncertain=frozenset(parse_address(address).canonical for address in doubtful),
        )

    def _problems(self, family: list[Run], doubts: int, counted: Tally | None) -> Iterator[str]:
        for one in family:
            if one.state is not RunState.SUCCEEDED:
                yield f"{one.name} {one.state}: {one.reason}"
        if not self._kill.confirmed:
            yield "no worker was killed while it held claims"
        if doubts > CONNECTIONS:
            yield f"{doubts} messages are uncertain, more than the {CONNECTIONS} connections that were open"
        if counted is None:
            return
        for name, count, first in (
            ("duplicates", counted.duplicates, counted.first_duplicates),
            ("missing", counted.missing, counted.first_missing),
            ("unexpected", counted.unexpected, counted.first_unexpected),
        ):
            if count:
                yield f"{count} {name}: {', '.join(first)}"
