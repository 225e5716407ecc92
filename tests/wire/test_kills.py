"""A worker is killed with SIGKILL in the middle of a mailing: everybody gets one mail, and every doubt is named."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from maintd.clock import SystemClock
from maintd.demo.run import CONNECTIONS, Options, Report, run


class _Silent:
    def say(self, line: str) -> None:
        """Nobody watches."""

    def progress(self, step: str, *, done: int, total: int) -> None:
        """Nobody watches."""


@pytest.mark.parametrize(
    ("seed", "between"),
    [(1, (0.0, 0.05)), (2, (0.2, 0.3)), (3, (0.45, 0.55)), (4, (0.7, 0.8)), (5, (0.93, 0.98))],
)
def test_a_killed_worker_costs_nobody_a_mail_and_sends_nobody_two(
    tmp_path: Path, database_url: str, seed: int, between: tuple[float, float]
) -> None:
    options = Options(
        directory=tmp_path, seed=seed, users=400, database_url=database_url, kill_between=between
    )

    report: Report = asyncio.run(run(options, clock=SystemClock(), environ=os.environ, show=_Silent()))

    assert report.problems == ()
    assert report.worker_killed is not None
    assert (report.duplicates, report.missing, report.unexpected) == (0, 0, 0)
    assert report.uncertain <= CONNECTIONS
    assert report.sent + report.uncertain == report.recipients
