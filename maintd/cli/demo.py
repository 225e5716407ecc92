"""The demo, on a screen."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from maintd import log
from maintd.cli.command import Command
from maintd.cli.context import Context, pass_context
from maintd.cli.output import print_json, print_pairs
from maintd.cli.parameters import json_option
from maintd.demo.movielens import read_movielens
from maintd.demo.run import CONNECTIONS, Options, Report, run
from maintd.errors import ExitCode, UsageError

_MOST_RATINGS = 1_000_000


@click.command(
    cls=Command,
    exits={0: "everybody was mailed once", 1: "a duplicate, somebody missing, or a step that failed"},
)
@click.option("--seed", default=1, show_default=True, help="Equal seeds give equal data and kills.")
@click.option(
    "--users", type=click.IntRange(100, 1_000_000), default=2000, show_default=True, help="How many users."
)
@click.option("--source-url", metavar="URL", help="The film site's database: SQLite (default) or PostgreSQL.")
@click.option(
    "--database-url", metavar="URL", help="The ledger's, which must be new: SQLite (default) or PostgreSQL."
)
@click.option("--smtp-url", metavar="URL", help="Send to this relay instead, and count there by hand.")
@click.option(
    "--movielens",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A directory with ratings.csv and movies.csv of a MovieLens download.",
)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep everything in this new directory.")
@json_option
@pass_context
def demo(
    context: Context,
    *,
    seed: int,
    users: int,
    source_url: str | None,
    database_url: str | None,
    smtp_url: str | None,
    movielens: Path | None,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Watch the main job happen: clean up, recompute, mail 2,000 people once each, with a worker killed half-way.

    Everything is real: database, Redis, beat, workers, SMTP. Nothing outside a directory of its own is touched. At the
    end the mailbox is counted; any duplicate, anybody missing, ends in exit code 1.

    \b
    Example: maintd demo
             maintd demo --seed 7 --keep ./maintd-demo
             maintd demo --source-url postgresql://localhost/scratch --json
    """
    log.configure(level="error", format="plain")
    directory = _directory(keep)
    try:
        options = Options(
            directory=directory,
            seed=seed,
            users=users,
            source_url=source_url,
            database_url=database_url,
            smtp_url=smtp_url,
            films=read_movielens(movielens, limit=_MOST_RATINGS) if movielens else None,
        )
        with _Screen() as screen:
            report = asyncio.run(run(options, clock=context.clock, environ=os.environ, show=screen))
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    if as_json:
        print_json(report)
    else:
        _print(report, kept=keep)
    if report.problems:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _directory(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="maintd-demo-"))
    if keep.exists() and any(keep.iterdir()):
        raise UsageError(f"{keep} is not empty; name a new directory")
    keep.mkdir(parents=True, exist_ok=True)
    return keep.absolute()


class _Screen:
    """Lines on standard error, and below them a bar when somebody watches a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._live = console.is_terminal
        self._told_tenth = -1
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self._live,
        )

    def __enter__(self) -> _Screen:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._bar.console.print(f"• {line}", markup=False, soft_wrap=True)

    def progress(self, step: str, *, done: int, total: int) -> None:
        """Moves the bar; without a terminal, prints every tenth."""
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task(step, total=total)
            self._bar.update(self._task, completed=done, total=total)
        elif total and done * 10 // total > self._told_tenth:
            self._told_tenth = done * 10 // total
            self.say(f"{step}: {done:,} of {total:,} in the mailbox")


def counted(report: Report) -> dict[str, object]:
    """What the mailbox holds, by what the table calls it."""
    return {
        "people to be mailed": report.recipients,
        "messages in the mailbox": report.mailbox_messages,
        "duplicates": report.duplicates,
        f"missing, besides the {report.uncertain} uncertain": report.missing,
        "unexpected": report.unexpected,
    }


def recorded(report: Report) -> dict[str, object]:
    """What the ledger says, by what the table calls it."""
    killed = f"pid {report.worker_killed}, at {report.killed_at_fraction or 0:.0%} of the mailing"
    return {
        "sent": report.sent,
        "uncertain": f"{report.uncertain} (at most {CONNECTIONS}: one for each open connection)",
        "sessions removed": report.rows_removed,
        "titles rated": report.titles_rated,
        "worker killed": killed if report.worker_killed else None,
        "seconds": report.seconds,
    }


def _print(report: Report, *, kept: Path | None) -> None:
    click.echo("\ncounted in the mailbox, by campaign and recipient:")
    print_pairs(counted(report))
    click.echo("\nrecorded in the ledger:")
    print_pairs(recorded(report))
    for address in report.uncertain_addresses:
        click.echo(f"uncertain, waits for your word: {address}")
    for problem in report.problems:
        click.echo(f"PROBLEM: {problem}", err=True)
    if kept is not None:
        click.echo(f"kept in {kept}; look at it with: MAINTD_STATE_DIR={kept}/state maintd runs")
