"""The same mailings under the same faults, on plain Celery and on maintd: `make chaos-baseline`.

Plain Celery is given what an operator would do: processes are started again, and when nothing happens any more the task
that enqueues the unsent is run once more. What was missing before that, and what is double afterwards, is counted.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click

from maintd.smtp.faults import Step
from maintd.smtp.mailbox import read_index
from tests.chaos.cast import send, tethered
from tests.chaos.plain_celery import SEND_UNSENT, Outbox, Plain, enrol, make_app
from tests.chaos.run import Performed, end_in_order, perform_and_check
from tests.chaos.scenario import Blow, Fault, Scenario
from tests.chaos.servers import Valkey
from tests.chaos.weather import CLEAR, Relay, RelayFault, Weather
from tests.sinks import SinkThread
from tests.wire.site import children_of, until

_FAULTS = (Fault.KILL_SENDER, Fault.KILL_ALL, Fault.REDIS_EMPTIED)
_LOSING_ANSWERS = Weather(chances=((Step.DOT, RelayFault.TAKE_AND_DROP, 0.005),))
_VISIBILITY_S = 4
#: Nothing more comes by itself: longer than what a killed worker had is invisible, and than a worker on a busy machine
#: takes to find a Redis that is back.
_IDLE_S = 30
_LOOK_EVERY_S = 0.02


def scenario_of(seed: int, *, people: int) -> Scenario:
    """A kill or an emptied Redis at some moment, and in every other one a relay that now and then loses its answer."""
    draw = random.Random(seed)
    blow = Blow(
        fault=draw.choice(_FAULTS),
        at=draw.uniform(0.05, 0.95),
        held=draw.random() < 0.5,
        away_s=0.5,
        draw=draw.getrandbits(32),
    )
    weather = draw.choice([CLEAR, _LOSING_ANSWERS])
    return Scenario(
        seed=seed, people=people, senders=2, connections=2, batch=50, blows=(blow,), weather=weather
    )


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the relay accepted of a mailing on plain Celery.

    Attributes:
        missing_at_first: People without a message when nothing happened any more.
        missing: The same after whoever had no flag was enqueued once more.
        duplicates: Messages beyond the first to the same person, then.
    """

    missing_at_first: int
    missing: int
    duplicates: int


@dataclass
class PlainStage:
    """A worker of plain Celery with its servers."""

    scenario: Scenario
    directory: Path
    plain: Plain
    valkey: Valkey
    sink: SinkThread
    relay: Relay
    worker: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def play(self) -> Counted:
        """The mailing, the blow, and what is done about it."""
        enrol(
            self.plain.database_url,
            ((f"person{n}@people.example", {"name": f"person{n}"}) for n in range(self.scenario.people)),
        )
        self.start()
        self._enqueue_unsent()
        for blow in self.scenario.blows:
            self._await_moment(blow)
            self._strike(blow)
            self.sink.call(self.relay.release)
            time.sleep(blow.away_s)
            self.start()
        self._await_idleness()
        self.sink.call(self.relay.settle_down)
        missing_at_first = self.scenario.people - len(self._arrived())
        self._enqueue_unsent()
        self._await_idleness()
        arrived = self._arrived()
        return Counted(
            missing_at_first=missing_at_first,
            missing=self.scenario.people - len(arrived),
            duplicates=arrived.total() - len(arrived),
        )

    def start(self) -> None:
        """Starts the worker and the Redis, unless they run."""
        self.valkey.start()
        if self.worker is None:
            with (self.directory / "worker.log").open("ab") as log:
                self.worker = subprocess.Popen(
                    tethered(
                        sys.executable, "-m", "tests.chaos.plain_celery", "worker", "--concurrency", "4"
                    ),
                    env={**os.environ, **self.plain.environment()},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def kill_worker(self) -> None:
        """Kills the worker with all its children, which are in its process group."""
        if self.worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.worker.pid, signal.SIGKILL)
            self.worker.wait()
            self.worker = None

    def _strike(self, blow: Blow) -> None:
        if blow.fault is Fault.KILL_SENDER:
            assert self.worker is not None
            send(random.Random(blow.draw).choice(children_of(self.worker.pid)), signal.SIGKILL)
        elif blow.fault is Fault.KILL_ALL:
            self.kill_worker()
        else:
            self.valkey.kill()
            self.valkey.forget()

    def _await_moment(self, blow: Blow) -> None:
        count = int(blow.at * self.scenario.people)
        if blow.held:
            self.relay.held_from = count
        until(lambda: self.sink.sink.accepted >= count, what="the moment", within_s=120)
        if blow.held:
            until(lambda: self.relay.holding, what="an open dot")

    def _await_idleness(self) -> None:
        outbox, seen, since_s = Outbox(self.plain), -1, time.monotonic()
        while outbox.unsent() and time.monotonic() - since_s < _IDLE_S:
            if self.sink.sink.accepted != seen:
                seen, since_s = self.sink.sink.accepted, time.monotonic()
            time.sleep(10 * _LOOK_EVERY_S)

    def _enqueue_unsent(self) -> None:
        with make_app(self.plain) as app:
            app.send_task(SEND_UNSENT)

    def _arrived(self) -> Counter[str]:
        index = read_index(self.directory / "mailbox")
        return Counter(to for message in index for to in message.recipients)


@contextlib.contextmanager
def plain_stage(scenario: Scenario, directory: Path) -> Iterator[PlainStage]:
    """Sets the stage for plain Celery; afterwards nothing runs any more."""
    valkey = Valkey(directory / "valkey")
    with SinkThread(directory / "mailbox", store=False) as sink:
        relay = Relay(
            weather=scenario.weather,
            draw=random.Random(scenario.seed),
            accepted=lambda: sink.sink.accepted,
            notes=directory / "faults.jsonl",
        )
        sink.sink.script = relay
        plain = Plain(
            redis_url=valkey.url,
            database_url=f"sqlite:///{directory / 'mail.db'}",
            smtp_url=sink.url,
            visibility_timeout_s=str(_VISIBILITY_S),
        )
        stage = PlainStage(scenario, directory, plain, valkey, sink, relay)
        try:
            yield stage
        finally:
            stage.kill_worker()
            valkey.kill()


def on_both(scenario: Scenario) -> tuple[Counted, Performed]:
    """One scenario on plain Celery and on maintd."""
    with (
        tempfile.TemporaryDirectory(prefix="chaos-plain-", ignore_cleanup_errors=True) as directory,
        plain_stage(scenario, Path(directory)) as stage,
    ):
        counted = stage.play()
    return counted, perform_and_check(scenario, server_url="")


@click.command()
@click.option("--seed", default=1, show_default=True, help="The first seed.")
@click.option("--count", default=12, show_default=True, help="How many seeds.")
@click.option("--people", default=1000, show_default=True, help="Recipients of each mailing.")
@click.option("--at-once", default=2, show_default=True, help="Performances at the same time.")
def main(*, seed: int, count: int, people: int, at_once: int) -> None:
    """The same mailings under the same faults on plain Celery and on maintd, and what arrived."""
    end_in_order()
    scenarios = [scenario_of(one, people=people) for one in range(seed, seed + count)]
    plain: Counter[str] = Counter()
    ours: Counter[str] = Counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, mp_context=context, initializer=end_in_order) as pool:
        for scenario, (counted, performed) in zip(scenarios, pool.map(on_both, scenarios), strict=True):
            plain.update(vars(counted))
            if performed.verdict is not None:
                found = performed.verdict
                ours.update(missing=found.missing, duplicates=found.duplicates, uncertain=found.uncertain)
            ours.update(failures=bool(performed.problems))
            click.echo(
                f"seed {scenario.seed}: {scenario} | plain {vars(counted)} | maintd {performed.verdict}"
            )
    click.echo(
        f"{count} seeds, {count * people:,} recipients: plain Celery {dict(plain)}; maintd {dict(ours)}"
    )
    sys.exit(1 if ours["failures"] else 0)


if __name__ == "__main__":
    main()
