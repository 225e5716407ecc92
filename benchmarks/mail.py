"""Mail from pending to finished, through a real `maintd worker` process and both kinds of ledger.

    python -m benchmarks.mail [--quick] [--million] [--write]

Beside it, in turn: rendering alone, the same mailing on plain Celery, plain aiosmtplib, and Postfix's smtp-source to
smtp-sink as the ceiling, if they are installed. The relay keeps nothing; distance is made as in benchmarks/smtp.py.
`--write` puts the figures into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import rivals
from benchmarks.mailing import CONNECTIONS, Bench, Figures, Mailing
from benchmarks.page import surroundings, table, target, version_of, write_section
from benchmarks.servers import postgresql, relays, valkey
from benchmarks.smtp import sink_per_s
from maintd.execution.queues import Queue

RTTS_MS = (0.0, 1.0, 5.0, 20.0)
LEDGERS = ("postgresql", "sqlite")
ROUND_TRIPS = 4  # of a message on a connection without pipelining
TARGETS = {"beyond_us": 100, "baseline": 10, "distance": 3.5, "ceiling": 0.5, "rss_mb": 150, "flat": 0.1,
           "urgent_s": 1, "sink": 20_000}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: How often everything takes its turn; figures are medians.
        count: Messages of one measurement without distance.
        slow: The same of plain Celery.
        seconds: Of one measurement over a distance, as long as aiosmtplib takes.
        sizes: Recipients for the memory.
        urgent: Urgent mails, one after the other.
        beside: Recipients of the mailing beside them.
    """

    rounds: int
    count: int
    slow: int
    seconds: float
    sizes: tuple[int, ...]
    urgent: int
    beside: int


QUICK = Plan(rounds=1, count=5_000, slow=500, seconds=2, sizes=(2_000, 10_000), urgent=20, beside=50_000)
WHOLE = Plan(
    rounds=3, count=20_000, slow=2_000, seconds=4, sizes=(10_000, 100_000), urgent=100, beside=200_000
)


@dataclass(frozen=True, kw_only=True)
class Near:
    """What was measured without distance, with one template."""

    template: str
    rendering: Figures
    maintd: dict[str, Figures]
    celery: Figures
    ceiling_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class Far:
    """What was measured at one distance, with the small template."""

    rtt_ms: float
    maintd: Figures
    aiosmtplib: Figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--million", action="store_true", help="memory with a million recipients, too")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    given = parser.parse_args()
    plan, load, began_s = QUICK if given.quick else WHOLE, os.getloadavg()[0], time.monotonic()
    lines = list(measure(plan, sizes=(*plan.sizes, *([1_000_000] if given.million else []))))
    with postgresql() as url:
        server = version_of(url)
    lines[2:2] = [*surroundings(took_s=time.monotonic() - began_s, load=load, postgresql=server), ""]
    Console().print(Markdown("\n".join(lines)))
    if given.write:
        write_section("mail", lines)


def measure(plan: Plan, *, sizes: Sequence[int]) -> Iterator[str]:
    """Measures everything; yields the section of the page."""
    with (
        tempfile.TemporaryDirectory(prefix="maintd-bench-") as directory,
        postgresql() as url,
        relays(RTTS_MS) as ports,
    ):
        bench = Bench(Path(directory), postgresql_url=url, ports=ports)
        with valkey(bench.settings) as redis_url:
            near = [_near(bench, template, plan, redis_url=redis_url) for template in ("small", "rich")]
            far = [_far(bench, rtt_ms, plan) for rtt_ms in RTTS_MS]
            memory = {
                ledger: [
                    bench.send(Mailing(ledger=ledger, template="small", recipients=size)) for size in sizes
                ]
                for ledger in LEDGERS
            }
            sink = statistics.median(
                sink_per_s(ports[0.0], count=plan.count, size=1_000) for _ in range(plan.rounds)
            )
            waits_s = {ledger: _urgent(bench, ledger, plan) for ledger in LEDGERS}
    yield from ("## Mail", "")
    yield from (*_show_near(near), "", *_show_far(far), "", *_show_urgent(waits_s), "")
    yield from (*_show_memory(sizes, memory), "", *_show_sink(sink))


def _near(bench: Bench, template: str, plan: Plan, *, redis_url: str) -> Near:
    size = rivals.size_of(template)
    rounds = [
        (
            rivals.rendering(template, plan.count),
            {
                ledger: bench.send(Mailing(ledger=ledger, template=template, recipients=plan.count))
                for ledger in LEDGERS
            },
            rivals.plain_celery_mailing(
                template, plan.slow, directory=bench.directory, redis_url=redis_url, port=bench.ports[0.0]
            ),
            rivals.ceiling(plan.count, size=size),
        )
        for _ in range(plan.rounds)
    ]
    rendering, maintd, celery, ceiling = zip(*rounds, strict=True)
    return Near(
        template=template,
        rendering=_median(rendering),
        maintd={ledger: _median([one[ledger] for one in maintd]) for ledger in LEDGERS},
        celery=_median(celery),
        ceiling_per_s=None if None in ceiling else statistics.median(ceiling),
    )


def _far(bench: Bench, rtt_ms: float, plan: Plan) -> Far:
    alone = plan.count
    if rtt_ms:
        alone = int(plan.seconds * CONNECTIONS * 1000 / (ROUND_TRIPS * rtt_ms))
    ours = min(plan.count, 4 * alone)
    rounds = [
        (
            bench.send(Mailing(ledger="postgresql", template="small", recipients=ours, rtt_ms=rtt_ms)),
            rivals.plain_aiosmtplib("small", min(alone, plan.count), port=bench.ports[rtt_ms]),
        )
        for _ in range(plan.rounds)
    ]
    maintd, aiosmtplib = zip(*rounds, strict=True)
    return Far(rtt_ms=rtt_ms, maintd=_median(maintd), aiosmtplib=_median(aiosmtplib))


def _urgent(bench: Bench, ledger: str, plan: Plan) -> list[float]:
    with (
        bench.run(ledger, rtt_ms=1.0) as run,
        run.worker(Queue.MAIL_BULK),
        run.worker(Queue.MAIL_URGENT),
    ):
        run.send("small", 1, urgent=True)
        return sorted(run.urgent_waits_s(plan.urgent, beside=plan.beside))


def _median(figures: Sequence[Figures]) -> Figures:
    def middle(of: Callable[[Figures], float]) -> float:
        return statistics.median(map(of, figures))

    return Figures(
        per_s=middle(lambda one: one.per_s),
        cpu_us=middle(lambda one: one.cpu_us),
        rss_mb=middle(lambda one: one.rss_mb),
    )


def _show_near(near: Sequence[Near]) -> Iterator[str]:
    yield "One mail process, 10 connections, the relay on the same machine; CPU is that of the sender, for one message."
    yield ""
    heading = (
        "template, ledger",
        "messages/s",
        "CPU",
        "rendering",
        "beyond",
        "× plain Celery",
        "of the ceiling",
    )
    yield from table(heading, (_near_row(one, ledger) for one in near for ledger in LEDGERS))
    yield ""
    yield from table(
        ("template", "plain Celery, one process", "its CPU", "smtp-source → smtp-sink"),
        ((one.template, f"{one.celery.per_s:,.0f}/s", _us(one.celery.cpu_us), _ceiling(one)) for one in near),
    )
    yield ""
    beyond = [one.maintd[ledger].cpu_us - one.rendering.cpu_us for one in near for ledger in LEDGERS]
    times = [one.maintd[ledger].per_s / one.celery.per_s for one in near for ledger in LEDGERS]
    small = near[0]
    yield target(f"at most {TARGETS['beyond_us']} µs beyond rendering", met=max(beyond) <= TARGETS["beyond_us"],
                  measured=f"{max(beyond):.0f} µs at most")  # fmt: skip
    yield target(f"at least {TARGETS['baseline']} × plain Celery", met=min(times) >= TARGETS["baseline"],
                  measured=f"{min(times):.1f} × at least")  # fmt: skip
    if small.ceiling_per_s is not None:
        share = max(one.per_s for one in small.maintd.values()) / small.ceiling_per_s
        yield target(f"at least {TARGETS['ceiling']} of the ceiling with the small template",
                      met=share >= TARGETS["ceiling"], measured=f"{share:.2f}")  # fmt: skip


def _near_row(one: Near, ledger: str) -> tuple[str, ...]:
    figures = one.maintd[ledger]
    share = "not measured" if one.ceiling_per_s is None else f"{figures.per_s / one.ceiling_per_s:.2f}"
    return (
        f"{one.template}, {ledger}",
        f"{figures.per_s:,.0f}",
        _us(figures.cpu_us),
        _us(one.rendering.cpu_us),
        _us(figures.cpu_us - one.rendering.cpu_us),
        f"{figures.per_s / one.celery.per_s:.1f}",
        share,
    )


def _ceiling(one: Near) -> str:
    return "not measured" if one.ceiling_per_s is None else f"{one.ceiling_per_s:,.0f}/s"


def _show_far(far: Sequence[Far]) -> Iterator[str]:
    yield "The small template over a distance, PostgreSQL, against aiosmtplib with messages that are made already and"
    yield "nothing recorded; 10 connections each."
    yield ""
    yield from table(
        ("round trip", "maintd", "its CPU", "aiosmtplib", "its CPU", "ratio"),
        (
            (
                f"{one.rtt_ms:g} ms",
                f"{one.maintd.per_s:,.0f}/s",
                _us(one.maintd.cpu_us),
                f"{one.aiosmtplib.per_s:,.0f}/s",
                _us(one.aiosmtplib.cpu_us),
                f"{one.maintd.per_s / one.aiosmtplib.per_s:.1f} ×",
            )
            for one in far
        ),
    )
    yield ""
    least = min(one.maintd.per_s / one.aiosmtplib.per_s for one in far if one.rtt_ms >= 1)
    yield target(f"at least {TARGETS['distance']} × aiosmtplib from 1 ms on", met=least >= TARGETS["distance"],
                  measured=f"{least:.1f} × at least")  # fmt: skip


def _show_urgent(waits_s: dict[str, list[float]]) -> Iterator[str]:
    yield f"{len(waits_s['sqlite'])} urgent mails, one after the other, while another process sends a large mailing,"
    yield "1 ms from the relay: from the wake-up to the commit that says that the relay has it; milliseconds."
    yield ""
    yield from table(
        ("ledger", "median", "p99", "longest"),
        (
            (
                ledger,
                *(f"{1000 * wait_s:.0f}" for wait_s in (statistics.median(waits), _p99(waits), waits[-1])),
            )
            for ledger, waits in waits_s.items()
        ),
    )
    yield ""
    worst_s = max(map(_p99, waits_s.values()))
    yield target(
        f"p99 below {TARGETS['urgent_s']} s", met=worst_s < TARGETS["urgent_s"], measured=f"{worst_s:.2f} s"
    )


def _p99(waits: Sequence[float]) -> float:
    """Of sorted ones, that which one of a hundred exceeds."""
    return waits[-1 - len(waits) // 100]


def _show_memory(sizes: Sequence[int], memory: dict[str, list[Figures]]) -> Iterator[str]:
    yield "The most memory that a mail process held (RSS), by recipients of its campaign."
    yield ""
    yield from table(
        ("ledger", *(f"{size:,}" for size in sizes)),
        ((ledger, *(f"{one.rss_mb:.0f} MB" for one in figures)) for ledger, figures in memory.items()),
    )
    yield ""
    most = max(one.rss_mb for figures in memory.values() for one in figures)
    growth = max(figures[-1].rss_mb / figures[0].rss_mb - 1 for figures in memory.values())
    yield target(f"at most {TARGETS['rss_mb']} MB", met=most <= TARGETS["rss_mb"], measured=f"{most:.0f} MB")
    yield target(
        f"no more than {TARGETS['flat']:.0%} growth", met=growth <= TARGETS["flat"], measured=f"{growth:.0%}"
    )


def _show_sink(per_s: float) -> Iterator[str]:
    yield "All of this is measured against the sink of maintd. From a sender that waits for no reply it takes"
    yield f"{per_s:,.0f} messages of 1,000 octets a second."
    yield ""
    yield target(
        f"at least {TARGETS['sink']:,} a second", met=per_s >= TARGETS["sink"], measured=f"{per_s:,.0f}"
    )


def _us(value: float) -> str:
    return f"{value:.0f} µs"


if __name__ == "__main__":
    main()
