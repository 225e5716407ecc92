"""Commands about runs: start one, see what became of them, decide about one."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from maintd import api
from maintd.broker.wake import open_wake
from maintd.cli.command import LEDGER_AWAY, Command, ListsByDefault
from maintd.cli.context import Context, pass_context
from maintd.cli.output import NOTHING, ago, in_short, print_json, print_pairs, print_table
from maintd.cli.parameters import confirm, json_option, limit_option
from maintd.errors import ExitCode, UsageError
from maintd.execution import intervene
from maintd.execution.dryrun import DryRun, overlap_of
from maintd.execution.dryrun import dry_run as dry_run_of
from maintd.execution.follow import Standing, counted, follow, found_finished, standing
from maintd.ledger import jobs, misses
from maintd.ledger import runs as stored_runs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.misses import Miss
from maintd.ledger.runs import Run
from maintd.ledger.states import CampaignState, DeliveryState, RunState

_INTERNAL = ("token", "counter")
#: A run that stands so is in, or has ended with, a try that is neither among its failures nor its losses.
_LAST_TRY = frozenset({RunState.RUNNING, RunState.UNDERWAY, RunState.SUCCEEDED, RunState.FAILED})


@click.command(
    cls=Command,
    exits={
        0: "queued; with --wait: succeeded",
        1: "with --wait: did not succeed; with --dry-run: a cap would stop it",
        64: "there is no such job",
        69: LEDGER_AWAY,
        130: "interrupted: the run itself goes on",
    },
)
@click.argument("job")
@click.option("--wait", is_flag=True, help="Follow the run to its end, or to where only a person can go on.")
@click.option("--dry-run", is_flag=True, help="Only count and show what it would do; no worker, no trace.")
@click.option("--new-edition", is_flag=True, help="Of a campaign: mail although the period has an edition.")
@click.option("--yes", is_flag=True, help="With --new-edition: do not ask.")
@json_option
@pass_context
def run(
    context: Context,
    *,
    job: str,
    wait: bool,
    dry_run: bool,
    new_edition: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Start a job now, whatever its schedule says.

    The run is queued for a worker. A campaign whose period has an edition goes on with that one and mails nobody
    twice; only --new-edition begins another, after showing how many would be mailed again.

    \b
    Example: maintd run expired-sessions --dry-run
             maintd run nightly --wait
             maintd run weekly-digest --new-edition
    """
    if dry_run:
        if wait or new_edition:
            raise UsageError("--dry-run starts no run: leave out --wait and --new-edition")
        _show_dry_run(context, job, as_json=as_json)
        return
    if new_edition:
        _confirm_new_edition(context, job, yes=yes)
    with context.naming_the_ledger():
        run_id = api.trigger(job, new_edition=new_edition, settings=context.settings)
    click.echo(f"run {run_id} of {job} is queued", err=wait or as_json)
    if wait:
        _wait(context, run_id, as_json=as_json)
    elif as_json:
        print_json({"run": run_id})


def _show_dry_run(context: Context, job: str, *, as_json: bool) -> None:
    with context.runtime() as runtime:
        found = dry_run_of(job, runtime)
    if as_json:
        print_json(found)
    else:
        _print_dry_run(found)
    if found.would_stop:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _print_dry_run(found: DryRun) -> None:
    print_pairs({name.replace("_", " "): value for name, value in found.counts.items()})
    if found.samples:
        columns = list(dict.fromkeys(name for sample in found.samples for name in sample))
        rows = [[_text(sample.get(name)) for name in columns] for sample in found.samples]
        print_table(columns, rows, empty="")
    if found.would_stop:
        click.echo(f"it would be stopped: {found.would_stop}", err=True)
    click.echo("nothing was changed", err=True)


def _text(value: object) -> object:
    # An identifier is no quantity: no commas in it.
    return str(value) if isinstance(value, int) else value


def _confirm_new_edition(context: Context, job: str, *, yes: bool) -> None:
    with context.runtime() as runtime:
        overlap = overlap_of(job, runtime)
    if not overlap.editions:
        return
    editions = ", ".join(f"{edition} ({state})" for edition, state in overlap.editions.items())
    enrolling = CampaignState.ENROLLING in overlap.editions.values()
    click.echo(
        f"this period has {editions}; the audience has {overlap.audience:,} rows, of whom {overlap.mailed:,} people "
        f"were mailed in this period and {overlap.to_come:,} more are still going to be"
        + ("; one that is enrolling may yet have all of them" if enrolling else ""),
        err=True,
    )
    again = "all of them" if enrolling else f"{overlap.mailed + overlap.to_come:,} people"
    question = f"Mail {again} once more? (--yes does not ask)"
    if not yes:
        confirm(question)


def _wait(context: Context, run_id: int, *, as_json: bool) -> None:
    told: dict[int, str] = {}
    with context.runtime() as runtime:
        try:
            for now in follow(run_id, runtime.ledger, pause=time.sleep):
                _tell(now, told)
        except KeyboardInterrupt:
            click.echo(f"run {run_id} goes on; `maintd runs show {run_id}` tells how", err=True)
            raise click.Abort from None
    _print_standing(now, now=context.clock.now(), as_json=as_json)
    if now.run.state is not RunState.SUCCEEDED:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _tell(now: Standing, told: dict[int, str]) -> None:
    """Says on standard error what is new since the last look."""
    for one in (now.run, *now.steps):
        line = f"{one.job}: {one.state} {_progress(one, now)}".rstrip()
        if told.get(one.id) != line:
            told[one.id] = line
            click.echo(line, err=True)


def _progress(one: Run, now: Standing) -> str:
    campaign = now.campaigns.get(one.id)
    if campaign is not None and one.state is RunState.UNDERWAY:
        settled = now.settled.get(one.id, {})
        how_far = f"{sum(settled.values()):,} of {campaign.enrolled:,} settled{_among(settled)}"
        return f"{_named(campaign)}, {how_far}"
    return _counted(one, now.idle)


def _named(campaign: Campaign) -> str:
    """Which campaign it is, how it stands, and if it does not go on, why."""
    return f"{campaign.name} {campaign.state}" + (f" ({campaign.reason})" if campaign.reason else "")


def _among(settled: Mapping[DeliveryState, int]) -> str:
    counts = ", ".join(f"{state} {count:,}" for state, count in settled.items() if count)
    return f" ({counts})" if counts else ""


def _counted(one: Run, idle: Collection[int]) -> str:
    """What a run counted; one that found its edition finished has only that to tell."""
    return "edition finished before: nothing to send" if one.id in idle else in_short(one.result)


@click.group(cls=ListsByDefault, subcommand_metavar="[JOB] [--limit N] [--json] | COMMAND …")
def runs() -> None:
    """Show what ran, and decide about a run.

    Without a command, or with the name of a job, it lists the newest runs. (A job that is called like one of the
    commands is listed by `maintd runs list JOB`.)

    \b
    Example: maintd runs
             maintd runs weekly-digest --limit 5
             maintd runs show 4711
             maintd runs retry 4711
    """


@runs.command("list", exits={64: "there is no such job and it never ran", 69: LEDGER_AWAY})
@click.argument("job", required=False)
@limit_option(20)
@json_option
@pass_context
def list_(context: Context, *, job: str | None, limit: int, as_json: bool) -> None:
    """List the newest runs, of one job or of all.

    For one job also the instants that were due and did not run, as ranges with their reason. Times are UTC.

    \b
    Example: maintd runs weekly-digest
    """
    with context.runtime() as runtime, runtime.ledger.read() as connection:
        found = stored_runs.latest(connection, job=job, limit=limit)
        idle = found_finished(connection, found)
        if job is not None and not found:
            jobs.require(connection, job)
        missed = misses.latest(connection, job=job, limit=limit) if job is not None else []
    if as_json:
        print_json({"runs": [_plain(one) for one in found]} | ({"misses": missed} if job else {}))
        return
    now = context.clock.now()
    _print_runs(found, now=now, names=True, idle=idle)
    if missed:
        click.echo("it was due at these times and did not run:")
        _print_misses(missed)


@runs.command("show", exits={64: "there is no such run", 69: LEDGER_AWAY})
@click.argument("run_id", type=int, metavar="ID")
@json_option
@pass_context
def show(context: Context, *, run_id: int, as_json: bool) -> None:
    """Show everything about one run, its steps and its campaign.

    \b
    Example: maintd runs show 4711
    """
    with context.runtime() as runtime, runtime.ledger.read() as connection:
        found = counted(connection, standing(connection, run_id))
    _print_standing(found, now=context.clock.now(), as_json=as_json)


@runs.command(
    "cancel",
    exits={0: "cancelled", 1: "it has begun, or is over", 64: "there is no such run", 69: LEDGER_AWAY},
)
@click.argument("run_id", type=int, metavar="ID")
@pass_context
def cancel(context: Context, *, run_id: int) -> None:
    """Take back a run that has not begun; of a pipeline, the steps that have not.

    \b
    Example: maintd runs cancel 4711
    """
    with context.runtime() as runtime:
        queues = intervene.cancel(run_id, runtime)
    with open_wake(context.settings) as wake:
        wake(queues)
    click.echo(f"run {run_id} is cancelled")


@runs.command(
    "retry", exits={0: "queued", 1: "it is not parked", 64: "there is no such run", 69: LEDGER_AWAY}
)
@click.argument("run_id", type=int, metavar="ID")
@pass_context
def retry(context: Context, *, run_id: int) -> None:
    """Let a parked run go on: its worker vanished, and its job leaves it to you whether it is safe to repeat.

    \b
    Example: maintd runs retry 4711
    """
    with context.runtime() as runtime:
        queues = intervene.retry(run_id, runtime)
        context.say_if_held(runtime)
    with open_wake(context.settings) as wake:
        wake(queues)
    click.echo(f"run {run_id} is queued")


def _print_runs(found: Sequence[Run], *, now: datetime, names: bool, idle: Collection[int]) -> None:
    columns = ("ID", "RUN" if names else "STEP", "STATE", "STARTED", "TOOK", "TRIED", "COUNTED", "REASON")
    rows = [
        (
            str(one.id),
            one.name if names else one.job,
            one.state,
            one.started_at,
            _took(one, now=now),
            _tried(one),
            _counted(one, idle),
            one.reason,
        )
        for one in found
    ]
    print_table(columns, rows, empty="there are no runs yet")


def _print_misses(missed: Sequence[Miss]) -> None:
    rows = [
        (one.first_at, one.last_at, f"{one.count:,}" if one.exact else f"at least {one.count:,}", one.reason)
        for one in missed
    ]
    print_table(("FIRST", "LAST", "TIMES", "REASON"), rows, empty="")


def _print_standing(found: Standing, *, now: datetime, as_json: bool) -> None:
    campaign = found.campaigns.get(found.run.id)
    if as_json:
        steps = [_plain(step) for step in found.steps]
        print_json({"run": _plain(found.run), "steps": steps, "campaign": campaign})
        return
    one = found.run
    pairs: dict[str, Any] = {"run": str(one.id), "name": one.name}
    pairs |= {name: getattr(one, name) for name in ("kind", "cause", "state", "reason")}
    pairs |= {"queue": one.queue, "due": one.due_at, "started": one.started_at, "finished": one.finished_at}
    pairs |= {"took": _took(one, now=now), "tried": _tried(one), "worker": one.owner}
    pairs |= {
        "revision": one.revision and str(one.revision),
        "step of run": one.parent_id and str(one.parent_id),
    }
    if campaign is not None:
        pairs["campaign"] = _named(campaign)
    settled = found.settled.get(one.id)
    if settled is not None:
        pairs["settled"] = f"{sum(settled.values()):,}{_among(settled)}"
    if one.id in found.idle:
        pairs["counted"] = _counted(one, found.idle)
    print_pairs({name: value for name, value in pairs.items() if value not in (None, "", NOTHING)})
    _print_result(found)
    if found.steps:
        _print_runs(found.steps, now=now, names=False, idle=found.idle)


def _print_result(found: Standing) -> None:
    if found.run.result and not found.steps and found.run.id not in found.idle:
        print_pairs({name.replace("_", " "): _result(value) for name, value in found.run.result.items()})


def _result(value: object) -> object:
    return value if isinstance(value, int | str) else str(value)


def _plain(one: Run) -> dict[str, Any]:
    values = {name: value for name, value in asdict(one).items() if name not in _INTERNAL}
    return {"id": values.pop("id"), "name": one.name} | values


def _took(one: Run, *, now: datetime) -> str:
    if one.started_at is None:
        return NOTHING
    return ago(one.started_at, now=one.finished_at or now)


def _tried(one: Run) -> str:
    """How often it was begun, and of these how often it failed or its worker vanished and it was tried again."""
    if one.started_at is None:
        return ""
    words = [f"{one.failures} failed"] if one.failures else []
    words += [f"{one.losses} lost"] if one.losses else []
    times = max(1, one.failures + one.losses + (one.state in _LAST_TRY))
    return f"{times} ({', '.join(words)})" if words else str(times)
