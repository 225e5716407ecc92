"""Many scenarios, one after the other, and the totals: `make chaos N=200 SEED=1`."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import click

from tests.chaos.checker import Verdict, check
from tests.chaos.performance import Evidence, perform
from tests.chaos.scenario import Policy, Scenario, scenario_of
from tests.chaos.servers import PostgreSQL


@dataclass(frozen=True, kw_only=True)
class Performed:
    """What is left of a performance.

    Attributes:
        evidence: None if it broke off.
        verdict: The same.
        error: Why it broke off.
        directory: Where everything is, if it was kept.
    """

    scenario: Scenario
    evidence: Evidence | None = None
    verdict: Verdict | None = None
    error: str = ""
    directory: Path | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that must not be."""
        return self.verdict.problems if self.verdict is not None else (self.error,)


def perform_and_check(scenario: Scenario, *, server_url: str) -> Performed:
    """One scenario in a directory of its own, which is removed if all is well."""
    directory = Path(tempfile.mkdtemp(prefix=f"chaos-{scenario.seed}-"))
    try:
        evidence = perform(scenario, directory, server_url=server_url)
        verdict = check(evidence)
    except Exception:  # noqa: BLE001 - the harness itself is at fault: told with the seed, and the others go on
        return Performed(scenario=scenario, error=traceback.format_exc(), directory=directory)
    if not verdict.problems:
        shutil.rmtree(directory)
        return Performed(scenario=scenario, evidence=evidence, verdict=verdict)
    return Performed(scenario=scenario, evidence=evidence, verdict=verdict, directory=directory)


def end_in_order() -> None:
    """Lets SIGTERM end this process as Ctrl-C does: nothing is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))


def perform_all(scenarios: Iterable[Scenario], *, at_once: int) -> Iterator[Performed]:
    """All of them, each as soon as it is done."""
    context = multiprocessing.get_context("spawn")
    with (
        closing(PostgreSQL()) as server,
        ProcessPoolExecutor(at_once, mp_context=context, initializer=end_in_order) as pool,
    ):
        waiting = [pool.submit(perform_and_check, one, server_url=server.url) for one in scenarios]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:  # whoever is interrupted waits for what is on the stage, and for no more
            pool.shutdown(cancel_futures=True)


def told(performed: Performed) -> str:
    """One line on a performance, and a few more if it failed."""
    seed, verdict, evidence = performed.scenario.seed, performed.verdict, performed.evidence
    if verdict is not None and evidence is not None:
        counts = f"{verdict.messages} messages, {verdict.uncertain} uncertain, {evidence.seconds:.0f} s"
    else:
        counts = "broken off"
    lines = [f"seed {seed}: {counts} | {performed.scenario}"]
    if performed.problems:
        lines += [f"  FAILED: {problem}" for problem in performed.problems]
        lines += [f"  kept in {performed.directory}; again: make chaos SEED={seed} N=1"]
    return "\n".join(lines)


@dataclass(kw_only=True)
class Totals:
    """What all performances came to."""

    seeds: int = 0
    failures: int = 0
    messages: int = 0
    duplicates: int = 0
    copies: int = 0
    missing: int = 0
    uncertain: int = 0
    lapsed: int = 0
    resumed: int = 0
    held: int = 0
    relay_faults: int = 0

    def __post_init__(self) -> None:
        self.struck: Counter[str] = Counter()

    def add(self, performed: Performed) -> None:
        """Counts one more."""
        self.seeds += 1
        self.failures += bool(performed.problems)
        verdict, evidence = performed.verdict, performed.evidence
        if verdict is None or evidence is None:
            return
        self.messages += verdict.messages
        self.missing += verdict.missing
        self.uncertain += verdict.uncertain
        self.lapsed += verdict.lapsed
        self.resumed += evidence.resumed
        self.held += evidence.toll.held
        self.relay_faults += len(evidence.noted)
        self.struck.update({fault.value: count for fault, count in evidence.toll.struck.items()})
        if performed.scenario.policy is Policy.NEVER_DUPLICATE:
            self.duplicates += verdict.duplicates
        else:
            self.copies += verdict.duplicates

    def __str__(self) -> str:
        struck = ", ".join(f"{fault} {count}" for fault, count in sorted(self.struck.items()))
        return (
            f"{self.seeds} seeds, {self.messages:,} messages ({struck}, relay {self.relay_faults:,}): "
            f"{self.duplicates} duplicates under never_duplicate, {self.copies} further copies under never_lose, "
            f"{self.missing} missing, {self.uncertain} uncertain, {self.resumed} resumed, {self.held} held, "
            f"{self.lapsed} lapsed, {self.failures} failures"
        )


@click.command()
@click.option("--seed", default=1, show_default=True, help="The first seed.")
@click.option("--count", default=20, show_default=True, help="How many seeds.")
@click.option("--people", default=2000, show_default=True, help="Recipients of each mailing.")
@click.option("--at-once", default=2, show_default=True, help="Performances at the same time.")
def main(*, seed: int, count: int, people: int, at_once: int) -> None:
    """Mail under faults, seed by seed, and compare what the relay accepted with what the ledger says."""
    end_in_order()
    totals = Totals()
    scenarios = [scenario_of(one, people=people) for one in range(seed, seed + count)]
    try:
        for performed in perform_all(scenarios, at_once=at_once):
            totals.add(performed)
            click.echo(told(performed))
    finally:  # also of a run that is interrupted
        click.echo(str(totals))
    sys.exit(1 if totals.failures else 0)
