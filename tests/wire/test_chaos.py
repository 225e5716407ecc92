"""Mailings under faults, a few of `make chaos`; and each guard taken out once, so that the checker proves something."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.checker import Verdict, check
from tests.chaos.directed import DIRECTED, LANES, RESTORED
from tests.chaos.performance import perform
from tests.chaos.scenario import Scenario, scenario_of
from tests.chaos.without import Guard

#: What the checker says first of a product without the guard.
_SEEN = {
    Guard.CLAIM: "more than 1 copies",
    Guard.MARK: "more than 1 copies",
    Guard.INTENT: "more than 1 copies",
    Guard.BOOT: "more than 1 copies",
    Guard.MERGE: "accepted on record, and not sent",
    Guard.RESET: "more than 1 copies",
    Guard.SUPPRESSION: "suppressed, and mailed",
    Guard.PROOF: "in doubt, although no dot was written",
    Guard.TAKEOVER: "accepted on record, and not sent",
    Guard.REPLAY: "more than 1 copies",
}

_MOST_PERFORMANCES = 4


@pytest.fixture
def directory() -> Iterator[Path]:
    """Of a shorter path than pytest's, for there are Unix sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="chaos-"))
    yield path
    shutil.rmtree(path)


def verdict_on(scenario: Scenario, directory: Path, *, server_url: str) -> Verdict:
    return check(perform(scenario, directory, server_url=server_url))


@pytest.mark.parametrize("seed", range(1, 17))
def test_whatever_fails_nobody_is_mailed_twice_and_every_doubt_is_named(
    directory: Path, postgresql_server: str, seed: int
) -> None:
    verdict = verdict_on(scenario_of(seed, people=300), directory, server_url=postgresql_server)

    assert verdict.problems == ()


@pytest.mark.parametrize("scenario", sorted({*DIRECTED.values(), RESTORED, LANES}, key=str), ids=str)
def test_all_is_well_where_each_guard_is_in_place(
    directory: Path, postgresql_server: str, scenario: Scenario
) -> None:
    assert verdict_on(scenario, directory, server_url=postgresql_server).problems == ()


@pytest.mark.parametrize("guard", Guard)
def test_a_missing_guard_is_noticed(directory: Path, guard: Guard) -> None:
    scenario = replace(DIRECTED[guard], without=frozenset({guard}))

    # Whether its absence does harm depends on the moment: whoever dies between two windows needs no guard.
    verdicts = (verdict_on(scenario, stage, server_url="") for stage in _stages(directory))
    assert any(_SEEN[guard] in problem for verdict in verdicts for problem in verdict.problems)


def _stages(directory: Path) -> Iterator[Path]:
    for number in range(_MOST_PERFORMANCES):
        stage = directory / str(number)
        stage.mkdir()
        yield stage


def test_whoever_is_mailed_again_after_their_acceptance_was_read_is_noticed_where_copies_are_allowed(
    directory: Path, postgresql_server: str
) -> None:
    scenario = replace(RESTORED, without=frozenset({Guard.REPLAY}))

    verdict = verdict_on(scenario, directory, server_url=postgresql_server)

    assert any("their acceptance was on record" in problem for problem in verdict.problems), verdict
