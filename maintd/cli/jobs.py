"""Commands about jobs: bring files into the ledger, see when they run, pause them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from zoneinfo import ZoneInfo

import click

from maintd.cli.command import LEDGER_AWAY, Command
from maintd.cli.context import Context, pass_context
from maintd.cli.output import NOTHING, print_json, print_table
from maintd.cli.parameters import json_option, reason_option
from maintd.config.settings import Settings
from maintd.errors import ExitCode, Unavailable
from maintd.execution.project import read_project
from maintd.keyspace import Keyspace, redis_url_of
from maintd.scheduling.apply import Change, Move
from maintd.scheduling.apply import apply as apply_jobs
from maintd.scheduling.apply import plan as plan_jobs
from maintd.scheduling.pause import pause as pause_job
from maintd.scheduling.pause import resume as resume_job
from maintd.scheduling.timers import Timer
from maintd.scheduling.timers import timers as timers_of
from maintd.units import format_duration

_PRUNE_HINT = "in no file; `maintd apply --prune` removes it"
_WOULD: Mapping[Move, str] = {move: move.value for move in Move}
_DID: Mapping[Move, str] = {Move.ADD: "added", Move.CHANGE: "changed", Move.SAME: "same", Move.REMOVE: "kept"}


@click.command(
    cls=Command, exits={0: "nothing differs", 1: "a file is wrong", 2: "something differs", 69: LEDGER_AWAY}
)
@json_option
@pass_context
def plan(context: Context, *, as_json: bool) -> None:
    """Show what `apply` would do, and do nothing.

    For a job that differs the keys are named, and the texts it depends on: SQL files and templates count as a part of
    their job. A job that is in the ledger and in no file differs too.

    \b
    Example: maintd plan
             maintd plan --json
    """
    prepared = read_project(context.settings)
    with context.runtime() as runtime, runtime.ledger.read() as connection:
        changes = plan_jobs(connection, prepared)
    _print_changes(changes, words=_WOULD, as_json=as_json)
    if any(change.move is not Move.SAME for change in changes):
        raise click.exceptions.Exit(ExitCode.DIFFERS)


@click.command(cls=Command, exits={0: "applied", 1: "a file is wrong; nothing was changed", 69: LEDGER_AWAY})
@click.option("--prune", is_flag=True, help="Remove jobs that are in no file; their history stays.")
@json_option
@pass_context
def apply(context: Context, *, prune: bool, as_json: bool) -> None:
    """Bring the job files into the ledger: all of them, or none if anything is wrong.

    A new job, one with a new rule and one enabled again count from now: nothing before is caught up. A directory
    without jobs is an error, so that a wrong path never removes anything.

    \b
    Example: maintd plan; maintd apply
             maintd apply --prune
    """
    prepared = read_project(context.settings)
    with context.runtime() as runtime:
        changes = apply_jobs(runtime.ledger, prepared, prune=prune, now=context.clock.now())
    words = {**_DID, Move.REMOVE: "removed"} if prune else _DID
    _print_changes(changes, words=words, as_json=as_json)


def _print_changes(changes: Sequence[Change], *, words: Mapping[Move, str], as_json: bool) -> None:
    if as_json:
        print_json(
            [{"job": one.job, "move": words[one.move], "keys": list(one.keys)} for one in changes],
        )
        return
    hint = "" if words[Move.REMOVE] == "removed" else _PRUNE_HINT
    rows = [
        (one.job, words[one.move], hint if one.move is Move.REMOVE else ", ".join(one.keys))
        for one in changes
    ]
    print_table(("JOB", "MOVE", "DIFFERS"), rows, empty="there are no jobs")


@click.command(
    cls=Command,
    exits={69: "the ledger does not answer; without Redis it is only unknown whether a beat leads"},
)
@json_option
@pass_context
def timers(context: Context, *, as_json: bool) -> None:
    """Show when every job runs next, when it last began, and what keeps it from running.

    Times are in each job's own zone. One is overdue when its instant has passed and no beat has seen it.

    \b
    Example: maintd timers
    """
    now = context.clock.now()
    with context.runtime() as runtime:
        with runtime.ledger.read() as connection:
            found = timers_of(connection, now=now)
        context.say_if_held(runtime)
    if as_json:
        print_json([asdict(timer) for timer in found])
    else:
        columns = ("NEXT", "LEFT", "LAST", "PASSED", "STATE", "JOB", "NOTE")
        print_table(
            columns,
            [_row(timer, now=now) for timer in found],
            empty="there are no jobs yet",
        )
    _say_who_leads(context.settings)


def _row(timer: Timer, *, now: datetime) -> tuple[object, ...]:
    zone = ZoneInfo(timer.timezone)
    return (
        _wall(timer.next_at, zone),
        _distance(timer.next_at, now=now),
        _wall(timer.last_at, zone),
        _distance(timer.last_at, now=now),
        timer.state,
        timer.job,
        timer.note,
    )


def _wall(instant: datetime | None, zone: ZoneInfo) -> str:
    return f"{instant.astimezone(zone):%a %Y-%m-%d %H:%M:%S %Z}" if instant else NOTHING


def _distance(instant: datetime | None, *, now: datetime) -> str:
    if instant is None:
        return NOTHING
    return format_duration(now - instant) + (" ago" if instant < now else "")


def _say_who_leads(settings: Settings) -> None:
    with contextlib.closing(Keyspace(redis_url_of(settings))) as keyspace:
        try:
            if keyspace.leader_ttl() is None:
                click.echo(
                    "no beat leads: nothing becomes due until `maintd up` or `maintd beat` runs", err=True
                )
        except Unavailable as error:
            click.echo(f"whether a beat leads is unknown: {error}", err=True)


@click.command(cls=Command, exits={0: "paused", 64: "there is no such job", 69: LEDGER_AWAY})
@click.argument("job")
@reason_option
@pass_context
def pause(context: Context, *, job: str, reason: str) -> None:
    """Keep a job from becoming due until it is resumed.

    A run that is going on goes on, and `maintd run` works all the same. A pipeline still runs a paused job as its step:
    to keep the step from running, pause the pipeline. Paused again, a job gets the new reason.

    \b
    Example: maintd pause weekly-digest --reason "new design is not signed off"
    """
    with context.runtime() as runtime:
        since = pause_job(runtime.ledger, job, reason=reason, now=context.clock.now())
    click.echo(f"{job} is paused since {since:%Y-%m-%d %H:%M:%S} UTC: {reason}")


@click.command(
    cls=Command, exits={0: "resumed, or was not paused", 64: "there is no such job", 69: LEDGER_AWAY}
)
@click.argument("job")
@pass_context
def resume(context: Context, *, job: str) -> None:
    """End the pause of a job; it counts from now.

    What was due meanwhile is not caught up: it is written down as missed, and `maintd runs JOB` shows it.

    \b
    Example: maintd resume weekly-digest
    """
    with context.runtime() as runtime:
        resumed = resume_job(runtime.ledger, job, now=context.clock.now())
        context.say_if_held(runtime)
    if resumed is None:
        click.echo(f"{job} was not paused")
        return
    missed = f"{resumed.missed.count:,} times it was due" if resumed.missed else "it was never due"
    following = f"{resumed.next_at:%Y-%m-%d %H:%M:%S} UTC" if resumed.next_at else "by hand or as a step"
    click.echo(f"{job} is resumed; {missed} during its pause; next: {following}")
