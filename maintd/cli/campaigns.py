"""Commands about campaigns: how far they are, and taking a hand in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from sqlalchemy.engine import Connection

from maintd.broker.wake import open_wake
from maintd.cli.command import LEDGER_AWAY, ListsByDefault
from maintd.cli.context import Context, pass_context
from maintd.cli.output import print_json, print_pairs, print_table
from maintd.cli.parameters import json_option, limit_option, reason_option
from maintd.execution.queues import mail_queue
from maintd.execution.runtime import limits_of
from maintd.ledger import campaigns as ledger_campaigns
from maintd.ledger import deliveries as ledger_deliveries
from maintd.ledger import jobs, runs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import ENDED_RUNS, CampaignState, DeliveryState
from maintd.mail import control
from maintd.mail.sending.allowance import look
from maintd.units import format_duration


@click.group(cls=ListsByDefault, subcommand_metavar="[JOB] [--limit N] [--json] | COMMAND …")
def campaigns() -> None:
    """List campaigns; show, pause, resume or cancel one.

    A campaign is one edition of a campaign job, such as weekly-digest/2026-W47. Its name or its id will do.

    \b
    Example: maintd campaigns
             maintd campaigns weekly-digest --limit 5
             maintd campaigns pause weekly-digest/2026-W47 --reason "wrong link"
    """


@campaigns.command("list", exits={64: "there is no such job and it never mailed", 69: LEDGER_AWAY})
@click.argument("job", required=False)
@limit_option(20)
@json_option
@pass_context
def list_campaigns(context: Context, *, job: str | None, limit: int, as_json: bool) -> None:
    """List the newest campaigns, of one job or of all.

    \b
    Example: maintd campaigns list weekly-digest --json
    """
    with context.runtime() as runtime, runtime.ledger.read() as connection:
        found = [
            _summary(connection, one) for one in ledger_campaigns.latest(connection, job=job, limit=limit)
        ]
        if job is not None and not found:
            jobs.require(connection, job)
    if as_json:
        print_json(found)
        return
    print_table(
        list(_CAMPAIGN_COLUMNS.values()),
        [_campaign_row(summary) for summary in found],
        empty=f"there are no campaigns of {job}" if job else "there are no campaigns yet",
    )


@campaigns.command("show", exits={64: "there is no such campaign", 69: LEDGER_AWAY})
@click.argument("name")
@json_option
@pass_context
def show_campaign(context: Context, *, name: str, as_json: bool) -> None:
    """Show all about one campaign.

    \b
    Example: maintd campaigns show weekly-digest/2026-W47
    """
    with context.runtime() as runtime, runtime.ledger.read() as connection:
        campaign = ledger_campaigns.named(connection, name)
        summary = _summary(connection, campaign)
        limits, now = limits_of(runtime.settings), context.clock.now()
        waits = look(connection, limits, urgent=campaign.urgent, now=now).waits_of(campaign.id)
    details = {
        "run": campaign.run_id,
        "expires": campaign.expires_at,
        "template": campaign.template,
        "spec": campaign.spec,
    }
    if as_json:
        print_json(summary | details | {"held_back": waits})
        return
    shown = {
        **summary,
        "id": str(campaign.id),
        "state": _state_of(summary),
        **summary["deliveries"],
        **details,
        "held back": "; ".join(
            dict.fromkeys(f"{wait.why}, for {format_duration(wait.opens_in)}" for wait in waits)
        ),
    }
    print_pairs({name: value for name, value in shown.items() if name not in ("deliveries", "spec")})


@campaigns.command(
    "pause",
    exits={
        0: "paused",
        1: "it is over, or still being enrolled",
        64: "there is no such campaign",
        69: LEDGER_AWAY,
    },
)
@click.argument("name")
@click.option("--reason", help=f'Kept and shown; "{control.BY_HAND}" if none is given.')
@pass_context
def pause_campaign(context: Context, *, name: str, reason: str | None) -> None:
    """Stop a campaign until it is resumed.

    Every sender looks before each window of messages, so no more than those on the wire still go out. One that is
    paused already takes the reason that is given.

    \b
    Example: maintd campaigns pause weekly-digest/2026-W47 --reason "wrong link"
    """
    with context.runtime() as runtime:
        campaign = control.pause(runtime.ledger, name, reason=reason, now=context.clock.now())
    click.echo(f"{campaign.name} is paused; `maintd campaigns resume {campaign.name}` lets it go on")


@campaigns.command(
    "resume",
    exits={
        0: "it sends",
        1: "it is over, or still being enrolled; with --refused: it is not paused",
        64: "there is no such campaign",
        69: LEDGER_AWAY,
    },
)
@click.argument("name")
@click.option(
    "--refused",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="From now on bear this share of refusals for good, whatever stop_at.refused says.",
)
@pass_context
def resume_campaign(context: Context, *, name: str, refused: float | None) -> None:
    """Let a paused campaign go on where it stopped.

    What is counted to stop it, refusals and doubts, is counted from now. One that sends already is left alone.

    \b
    Example: maintd campaigns resume weekly-digest/2026-W47
             maintd campaigns resume weekly-digest/2026-W47 --refused 0.2
    """
    with context.runtime() as runtime:
        campaign = control.resume(runtime.ledger, name, now=context.clock.now(), refused=refused)
        context.say_if_held(runtime)
    with open_wake(context.settings) as wake:
        wake({mail_queue(urgent=campaign.urgent)})
    click.echo(f"{campaign.name} is sending")


@campaigns.command(
    "cancel", exits={0: "cancelled", 1: "it is over", 64: "there is no such campaign", 69: LEDGER_AWAY}
)
@click.argument("name")
@reason_option
@pass_context
def cancel_campaign(context: Context, *, name: str, reason: str) -> None:
    """Give a campaign up for good: what was not sent never will be.

    It cannot be taken back. Messages that are uncertain stay so. If the command was cut off, call it again.

    \b
    Example: maintd campaigns cancel weekly-digest/2026-W47 --reason "wrong audience"
    """
    with context.runtime() as runtime:
        cancelled = control.cancel(runtime.ledger, name, reason=reason, clock=context.clock)
    name = cancelled.campaign.name
    click.echo(
        f"{name} is cancelled; {cancelled.settled:,} deliveries that were not sent are settled as cancelled"
    )
    if cancelled.left:
        click.echo(
            f"{cancelled.left:,} are still with a sender, which puts no further message of it on the wire; "
            "the beat settles what it leaves"
        )


def _summary(connection: Connection, campaign: Campaign) -> dict[str, Any]:
    """A campaign under the names of the JSON output."""
    counts = ledger_deliveries.counts(connection, campaign.id)
    return {
        "id": campaign.id,
        "campaign": campaign.name,
        "state": campaign.state.value,
        "reason": campaign.reason or _why_enrolling(connection, campaign),
        "enrolled": campaign.enrolled,
        "deliveries": {state.value: count for state, count in counts.items()},
        "audience": campaign.audience,
        "duplicates": campaign.duplicates,
        "started": campaign.created_at,
        "finished": campaign.finished_at,
    }


def _why_enrolling(connection: Connection, campaign: Campaign) -> str | None:
    """Why a campaign is still being enrolled, if its run has come to an end over it; the next run begins anew."""
    run = runs.get(connection, campaign.run_id) if campaign.state is CampaignState.ENROLLING else None
    return f"run {run.id} {run.state}: {run.reason}" if run is not None and run.state in ENDED_RUNS else None


def _state_of(summary: Mapping[str, Any]) -> str:
    uncertain = summary["deliveries"][DeliveryState.UNCERTAIN]
    if summary["state"] == CampaignState.FINISHED and uncertain:
        return f"finished, {uncertain:,} uncertain"
    return str(summary["state"])


def _campaign_row(summary: Mapping[str, Any]) -> list[object]:
    counts = [f"{count:,} {state}" for state, count in summary["deliveries"].items() if count]
    shown = {
        **summary,
        "id": str(summary["id"]),
        "state": _state_of(summary),
        "deliveries": ", ".join(counts),
    }
    return [shown[name] for name in _CAMPAIGN_COLUMNS]


_CAMPAIGN_COLUMNS = {
    "id": "id",
    "campaign": "campaign",
    "state": "state",
    "enrolled": "enrolled",
    "deliveries": "deliveries",
    "audience": "rows",
    "duplicates": "duplicates",
    "started": "started",
    "finished": "finished",
    "reason": "reason",
}
