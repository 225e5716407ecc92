"""A ledger with ten million settled deliveries: what each step of a mailing costs there, against ten thousand.

    python -m benchmarks.scale [--deliveries 10000000] [--recipients 1000000] [--write]

Then many recipients are enrolled, alone and beside a sender, and an enrolment is wiped. `--write` puts the figures into
docs/benchmarks.md. It wants some ten gigabytes in the temporary directory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.mailing import Bench, Run, enrol_people
from benchmarks.page import surroundings, table, target, version_of, write_section
from benchmarks.servers import postgresql, relays, valkey
from maintd.clock import SystemClock, new_token
from maintd.database import Database
from maintd.errors import Interrupted
from maintd.execution.queues import Queue
from maintd.ledger import batches, campaigns, deliveries
from maintd.ledger.batches import Batch
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery, Outcome
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from maintd.ledger.tables import runs
from maintd.mail import control
from maintd.mail.sending.held import HeldBatch, Pumped

LEDGERS = ("postgresql", "sqlite")
FEW = 10_000
OLD = 100  # campaigns that have ended
RUNNING = 5_000  # recipients of the one that is measured
WINDOW = 256
ROUNDS = 15
RESUMED_S = 5
ENROLLED_S = {"postgresql": 60, "sqlite": 120}  # of a million
FLAT = 2.0
CLOCK = SystemClock()

#: Copies of a campaign that has ended, with so many settled deliveries each.
_OLD_CAMPAIGN = """
INSERT INTO {schema}campaigns (uid, job, edition, run_id, state, spec, template, shared, content, dated_at, created_at,
                               audience, tail, enrolled_at, finished_at)
SELECT :uid, job, :uid, run_id, 'finished', spec, template, shared, content, dated_at, created_at, :each, :each,
       created_at, created_at
FROM {schema}campaigns WHERE id = :like RETURNING id
"""
_OLD_DELIVERIES = """
INSERT INTO {schema}deliveries (campaign_id, ordinal, recipient_key, address, recipient, fields, state, settled_at,
                                phase, code, enhanced, detail)
SELECT :id, k, {key}, 'person' || k || '@example.com', k, '{{"name": "Person"}}', 'sent', CURRENT_TIMESTAMP,
       'dot', 250, '2.0.0', 'Kept'
FROM {series}
"""
_OLD_BATCHES = """
INSERT INTO {schema}batches (campaign_id, lo, hi, wire_hi, state)
SELECT :id, k * 500, k * 500 + 500, k * 500 + 500, 'done' FROM {series}
"""
_DIALECT = {
    "postgresql": {"schema": "maintd.", "key": "decode(md5(:id || '-' || k), 'hex')",
                   "series": "generate_series(0, :last) AS s(k)"},
    "sqlite": {"schema": "", "key": "randomblob(16)",
               "series": "(WITH RECURSIVE s(k) AS (SELECT 0 UNION ALL SELECT k + 1 FROM s WHERE k < :last) "
                         "SELECT k FROM s)"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """Of one kind of ledger; `waits_s` is how long a sender beside another one waited for each of its commits."""

    recipients: int
    took_s: float
    rss_mb: float
    waits_s: tuple[float, ...]
    wiped_s: float


def fill(ledger: Database, *, like: Campaign, total: int) -> None:
    """Adds so many settled deliveries, in campaigns that have ended."""
    each = total // OLD
    words = _DIALECT[ledger.dialect]
    old, rows, ranges = (
        sa.text(text.format(**words)) for text in (_OLD_CAMPAIGN, _OLD_DELIVERIES, _OLD_BATCHES)
    )
    for _ in range(OLD):
        with ledger.write() as connection:
            given = {"uid": new_token(), "each": each, "like": like.id}
            id_ = connection.execute(old, given).scalar_one()
            connection.execute(rows, {"id": id_, "last": each - 1})
            connection.execute(ranges, {"id": id_, "last": max(each // 500, 1) - 1})
    if ledger.dialect == "postgresql":  # what autovacuum does within minutes
        with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


class Steps:
    """The steps of a mailing, each in its transaction, on a campaign of its own."""

    def __init__(self, ledger: Database, campaign: Campaign) -> None:
        self._ledger = ledger
        self._campaign = campaign
        self._batch: Batch | None = None
        self._window: list[Delivery] = []

    def measure(self) -> dict[str, float]:
        """Milliseconds by step, the best of all rounds: what else runs on the machine only ever adds."""
        rounds = [dict(self._round()) for _ in range(ROUNDS)]
        return {step: min(one[step] for one in rounds) * 1000 for step in rounds[0]}

    def once(self) -> None:
        """Takes every step."""
        for _ in self._round():
            pass

    def _round(self) -> Iterator[tuple[str, float]]:
        yield "claim a batch", _seconds(self.claim)
        yield "load it", _seconds(self.load)
        yield f"mark a window of {WINDOW}", _seconds(self.mark)
        yield "settle it", _seconds(lambda: self._settle(DeliveryState.SENT, self._window[:-10]))
        self._settle(DeliveryState.DEFERRED, self._window[-10:])
        yield "put deferred ones back in line", _seconds(self._put_back)
        yield "finish if done", _seconds(self._finish)
        yield "look for work", _seconds(self._look)
        yield "count the campaign", _seconds(self._count)
        yield "find a recipient", _seconds(self._find)

    def claim(self) -> None:
        with self._ledger.write() as connection:
            self._batch = batches.claim(
                connection, self._campaign.id, size=WINDOW, token=new_token(), owner="b"
            )

    def load(self) -> None:
        assert self._batch is not None
        with self._ledger.read() as connection:
            self._window = deliveries.pending(connection, self._batch.stretch)

    def mark(self) -> None:
        assert self._batch is not None
        held = HeldBatch(
            self._campaign, self._batch, ledger=self._ledger, clock=CLOCK, lease=timedelta(minutes=1), pumped=Pumped()
        )  # fmt: skip
        assert len(held.mark(self._window).going) == len(self._window)

    def _settle(self, state: DeliveryState, window: Sequence[Delivery]) -> None:
        now = CLOCK.now()
        due_at = now - timedelta(minutes=1) if state is DeliveryState.DEFERRED else None
        outcomes = [
            Outcome(
                recipient_key=one.recipient_key,
                ordinal=one.ordinal,
                state=state,
                fact=True,
                phase="dot",
                code=250,
                enhanced="2.0.0",
                detail="Kept",
                due_at=due_at,
            )
            for one in window
        ]
        with self._ledger.write() as connection:
            deliveries.settle(connection, self._campaign.id, outcomes, now=now)

    def _put_back(self) -> None:
        with self._ledger.write() as connection:
            assert (
                deliveries.put_back_in_line(connection, self._campaign.id, now=CLOCK.now(), limit=1000) == 10
            )

    def _finish(self) -> None:
        with self._ledger.write() as connection:
            assert not campaigns.finish_if_done(connection, self._campaign.id, now=CLOCK.now())

    def _look(self) -> None:
        with self._ledger.read() as connection:
            assert batches.ready(connection, urgent=False)

    def _count(self) -> None:
        with self._ledger.read() as connection:
            deliveries.counts(connection, self._campaign.id)

    def _find(self) -> None:
        with self._ledger.read() as connection:
            assert deliveries.find(connection, self._window[0].recipient_key)


def _seconds(act: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    act()
    return time.perf_counter() - began_s


@contextlib.contextmanager
def plans_of(ledger: Database) -> Iterator[dict[str, None]]:
    """Collects how the database reads each table for what is executed meanwhile: its words, each once."""
    explain = "EXPLAIN " if ledger.dialect == "postgresql" else "EXPLAIN QUERY PLAN "
    found: dict[str, None] = {}

    def look(_c: object, cursor: Any, statement: str, parameters: Any, _context: object, many: bool) -> None:  # noqa: FBT001
        if statement.split(None, 1)[0] in ("SELECT", "UPDATE"):
            cursor.execute(explain + statement, parameters[0] if many else parameters)
            steps = (str(row[-1]).strip(" ->") for row in cursor.fetchall())
            found.update(dict.fromkeys(step.split("  (")[0] for step in steps if _reads(step)))

    sa.event.listen(ledger.engine, "before_cursor_execute", look)
    try:
        yield found
    finally:
        sa.event.remove(ledger.engine, "before_cursor_execute", look)


def _reads(step: str) -> bool:
    return any(word in step for word in ("Scan using", "Seq Scan", "Index Scan on", "SEARCH ", "SCAN "))


def resumed_s(run: Run) -> float:
    """From the word of a person to the first message that is settled, with a worker that waits."""
    ledger = run.ledger
    campaign = enrol_people(ledger, run.source, "small", RUNNING)
    control.pause(ledger, campaign.name, reason="benchmark", now=CLOCK.now())
    with run.worker():
        run.send("small", 500)
        began_s = time.perf_counter()
        control.resume(ledger, campaign.name, now=CLOCK.now())
        run.wake(Queue.MAIL_BULK)
        while not _has_sent(ledger, campaign):
            time.sleep(0.02)
        took_s = time.perf_counter() - began_s
        while _state_of(ledger, campaign) is not CampaignState.FINISHED:
            time.sleep(0.1)
    return took_s


def _has_sent(ledger: Database, campaign: Campaign) -> bool:
    with ledger.read() as connection:
        return deliveries.counts(connection, campaign.id)[DeliveryState.SENT] > 0


def _state_of(ledger: Database, campaign: Campaign) -> CampaignState:
    with ledger.read() as connection:
        return campaigns.get(connection, campaign.id).state


def enrolment(ledger: Database, source: Database, *, recipients: int) -> Enrolment:
    """Enrols many, fewer beside a sender, and lets an enrolment that was cut off be begun anew."""
    _end_every_campaign(ledger)
    alone: list[Campaign] = []
    took_s = _seconds(lambda: alone.append(enrol_people(ledger, source, "small", recipients)))
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    waits_s = tuple(_waits_beside(ledger, source, alone[0], recipients=recipients // 5))
    _end_every_campaign(ledger)
    _cut_off(ledger, source, recipients=recipients)
    wiped_s = _seconds(lambda: enrol_people(ledger, source, "small", 1, edition="cut-off"))
    return Enrolment(recipients=recipients, took_s=took_s, rss_mb=rss_mb, waits_s=waits_s, wiped_s=wiped_s)


def _end_every_campaign(ledger: Database) -> None:
    with ledger.write() as connection:
        for campaign in campaigns.sending(connection):
            campaigns.move(connection, campaign.id, to=CampaignState.FINISHED, now=CLOCK.now())
        # Those that have ended are counted once more for their runs, if these have not been told yet.
        connection.execute(sa.update(runs).values(state=RunState.SUCCEEDED))


def _waits_beside(
    ledger: Database, source: Database, sending: Campaign, *, recipients: int
) -> Iterator[float]:
    """How long the marks of a sender take while another campaign is enrolled."""
    steps = Steps(ledger, sending)
    enrolling = threading.Thread(target=enrol_people, args=(ledger, source, "small", recipients))
    enrolling.start()
    while enrolling.is_alive():
        steps.claim()
        steps.load()
        yield _seconds(steps.mark)
        time.sleep(0.02)
    enrolling.join()


def _cut_off(ledger: Database, source: Database, *, recipients: int) -> None:
    def stop_at_the_end(read: int) -> None:
        if read == recipients:
            raise Interrupted("cut off")

    with contextlib.suppress(Interrupted):
        enrol_people(ledger, source, "small", recipients, edition="cut-off", progress=stop_at_the_end)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one kind of ledger, with few deliveries in it and with many."""

    few: dict[str, float]
    many: dict[str, float]
    plans: tuple[str, ...]
    resumed_s: float
    enrolment: Enrolment


def measure(run: Run, *, total: int, recipients: int) -> Measured:
    """Measures one kind of ledger, which is empty."""
    ledger, source = run.ledger, run.source
    first = enrol_people(ledger, source, "small", RUNNING)
    fill(ledger, like=first, total=FEW)
    few = Steps(ledger, first).measure()
    _end_every_campaign(ledger)
    fill(ledger, like=first, total=total)
    second = Steps(ledger, enrol_people(ledger, source, "small", RUNNING))
    many = second.measure()
    with plans_of(ledger) as plans:
        second.once()
    _end_every_campaign(ledger)
    return Measured(
        few=few,
        many=many,
        plans=tuple(plans),
        resumed_s=resumed_s(run),
        enrolment=enrolment(ledger, source, recipients=recipients),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deliveries", type=int, default=10_000_000)
    parser.add_argument("--recipients", type=int, default=1_000_000)
    parser.add_argument("--ledgers", nargs="+", choices=LEDGERS, default=LEDGERS)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    given = parser.parse_args()
    load, began_s = os.getloadavg()[0], time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="maintd-bench-") as directory,
        postgresql() as url,
        relays([0.0]) as ports,
    ):
        version = version_of(url)
        bench = Bench(Path(directory), postgresql_url=url, ports=ports)
        measured = {}
        with valkey(bench.settings):
            for ledger in given.ledgers:
                with bench.run(ledger) as run:
                    measured[ledger] = measure(run, total=given.deliveries, recipients=given.recipients)
    lines = [
        f"## A ledger of {given.deliveries:,} deliveries",
        "",
        *surroundings(took_s=time.monotonic() - began_s, load=load, postgresql=version),
        "",
        *_show(measured, total=given.deliveries),
    ]
    Console().print(Markdown("\n".join(lines)))
    if given.write:
        write_section("scale", lines)


def _show(measured: Mapping[str, Measured], *, total: int) -> Iterator[str]:
    yield f"Each step in a transaction of its own, the best of {ROUNDS}, beside {FEW:,} and beside {total:,} settled"
    yield f"deliveries, both in {OLD} campaigns that have ended; milliseconds."
    yield ""
    steps = next(iter(measured.values())).few
    heading = ["step", *(f"{ledger}, {size}" for ledger in measured for size in ("few", "many", "ratio"))]
    yield from table(heading, ([step, *_times(measured, step)] for step in steps))
    yield ""
    worst = max(one.many[step] / one.few[step] for one in measured.values() for step in steps)
    yield target(
        f"no step more than {FLAT:g} times as long", met=worst <= FLAT, measured=f"{worst:.1f} times at most"
    )
    slowest = max(one.resumed_s for one in measured.values())
    yield target(f"a campaign that is resumed there has sent its first message within {RESUMED_S} s",
                 met=slowest <= RESUMED_S, measured=f"{slowest:.1f} s")  # fmt: skip
    yield ""
    for ledger, one in measured.items():
        yield from (f"How {ledger} reads its tables for these steps:", "", "```text", *one.plans, "```", "")
    yield "Enrolment, alone and beside a sender that marks windows of the campaign before:"
    yield ""
    heading = ("ledger", "recipients", "alone", "memory of the process", "a mark beside it", "wiped anew")
    yield from table(heading, (_enrolment_row(ledger, one.enrolment) for ledger, one in measured.items()))
    yield ""
    for ledger, one in measured.items():
        least, took_s = ENROLLED_S[ledger] * one.enrolment.recipients / 1_000_000, one.enrolment.took_s
        yield target(f"a million recipients in {ENROLLED_S[ledger]} s on {ledger}", met=took_s <= least,
                     measured=f"{one.enrolment.recipients:,} in {took_s:.0f} s")  # fmt: skip


def _times(measured: Mapping[str, Measured], step: str) -> Iterator[str]:
    for one in measured.values():
        few, many = one.few[step], one.many[step]
        yield from (f"{few:.1f}", f"{many:.1f}", f"{many / few:.1f}")


def _enrolment_row(ledger: str, one: Enrolment) -> tuple[str, ...]:
    waits_ms = sorted(wait_s * 1000 for wait_s in one.waits_s)
    beside = f"{statistics.median(waits_ms):.0f} ms, {waits_ms[-1]:.0f} ms at most"
    return (
        ledger,
        f"{one.recipients:,}",
        f"{one.took_s:.0f} s",
        f"{one.rss_mb:.0f} MB",
        beside,
        f"{one.wiped_s:.0f} s",
    )


if __name__ == "__main__":
    main()
