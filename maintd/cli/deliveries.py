"""Commands about single mails: who was mailed what, and what to do where nobody can know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from maintd.broker.wake import open_wake
from maintd.cli.command import LEDGER_AWAY, Group, ListsByDefault
from maintd.cli.context import Context, pass_context
from maintd.cli.output import print_json, print_table
from maintd.cli.parameters import ADDRESS, confirm, json_option, limit_option
from maintd.cli.suppressions import suppression, tell_suppressed
from maintd.errors import UsageError
from maintd.execution.queues import MAIL_QUEUES
from maintd.ledger import campaigns as ledger_campaigns
from maintd.ledger import deliveries as ledger_deliveries
from maintd.ledger.states import DeliveryState
from maintd.mail import resolve, trace
from maintd.mail.address import Address
from maintd.mail.resolve import Word
from maintd.mail.trace import Traced


@click.group(cls=Group)
def deliveries() -> None:
    """Find out who was mailed what.

    \b
    Example: maintd deliveries find ada@example.org
    """


@deliveries.command("find", exits={69: LEDGER_AWAY})
@click.argument("address", type=ADDRESS)
@json_option
@pass_context
def find_deliveries(context: Context, *, address: Address, as_json: bool) -> None:
    """Find every mail to an address, in every campaign.

    However the address was written there: upper and lower case and the two forms of its domain make no difference.

    \b
    Example: maintd deliveries find ada@example.org
    """
    with context.runtime() as runtime, runtime.ledger.read() as connection:
        found = trace.trace(connection, address)
    if as_json:
        listed = [_delivery(traced) for traced in found.deliveries]
        print_json({
            "address": address.mailbox,
            "suppressed": suppression(found.suppressed),
            "deliveries": listed,
        })  # fmt: skip
        return
    empty = f"there are no deliveries to {address.mailbox}"
    _print_deliveries(found.deliveries, ("campaign", *_OUTCOME, "message_id"), empty=empty)
    if found.suppressed:
        tell_suppressed(address, found.suppressed)


@deliveries.command("list", exits={64: "there is no such campaign", 69: LEDGER_AWAY})
@click.argument("campaign")
@click.option(
    "--state", type=click.Choice([state.value for state in DeliveryState]), help="Only those in this state."
)
@limit_option(100)
@json_option
@pass_context
def list_deliveries(context: Context, *, campaign: str, state: str | None, limit: int, as_json: bool) -> None:
    """List the deliveries of a campaign, in the order of its line.

    \b
    Example: maintd deliveries list weekly-digest/2026-W47 --state rejected
    """
    with context.runtime() as runtime, runtime.ledger.read() as connection:
        found = ledger_deliveries.of_campaign(
            connection,
            ledger_campaigns.named(connection, campaign).id,
            state=DeliveryState(state) if state else None,
            limit=limit,
        )
        traced = trace.with_names(connection, found)
    if as_json:
        print_json([_delivery(one) for one in traced])
    else:
        _print_deliveries(traced, ("address", *_OUTCOME), empty="there are no such deliveries")


@click.group(cls=ListsByDefault, subcommand_metavar="[--campaign NAME] [--limit N] [--json] | COMMAND …")
def uncertain() -> None:
    """List messages of which nobody can know whether they arrived, and say what to do with them.

    A relay whose answer to a whole message was never read may have taken it or not. Its log, searched for the
    message id, knows.

    \b
    Example: maintd uncertain
             maintd uncertain resolve --sent ada@example.org --campaign weekly-digest/2026-W47
    """


@uncertain.command("list", exits={64: "there is no such campaign", 69: LEDGER_AWAY})
@click.option("--campaign", help="Only those of this campaign.")
@limit_option(100)
@json_option
@pass_context
def list_uncertain(context: Context, *, campaign: str | None, limit: int, as_json: bool) -> None:
    """List uncertain messages.

    \b
    Example: maintd uncertain list --campaign weekly-digest/2026-W47
    """
    with context.runtime() as runtime, runtime.ledger.read() as connection:
        campaign_id = ledger_campaigns.named(connection, campaign).id if campaign else None
        found = ledger_deliveries.uncertain(connection, campaign_id=campaign_id, limit=limit)
        traced = trace.with_names(connection, found)
    if as_json:
        print_json([_delivery(one) for one in traced])
    else:
        columns = ("campaign", "address", "at", "detail", "copies", "message_id")
        _print_deliveries(traced, columns, empty="there are no uncertain deliveries")


@uncertain.command(
    "resolve",
    exits={
        1: "it is not uncertain, or cannot be sent again",
        64: "the command line is wrong, or there is no such campaign",
        69: LEDGER_AWAY,
        130: "you were asked, and did not agree",
    },
)
@click.argument("address", type=ADDRESS, required=False)
@click.option("--campaign", required=True, help="The campaign, by name or id.")
@click.option("--all", "every", is_flag=True, help="All that is uncertain in it now.")
@click.option("--sent", is_flag=True, help="They arrived, or count as such.")
@click.option("--resend", is_flag=True, help="Send them again.")
@click.option("--drop", is_flag=True, help="Let them go, arrived or not.")
@click.option("--yes", is_flag=True, help="Do not ask before sending again.")
@pass_context
def resolve_uncertain(
    context: Context, /, *, address: Address | None, campaign: str, every: bool, yes: bool, **words: bool
) -> None:
    """Say what to do with one uncertain message, or with all of a campaign.

    Exactly one of --sent, --resend and --drop. What is sent again arrives twice where the relay had taken it after all.

    \b
    Example: maintd uncertain resolve --sent ada@example.org --campaign weekly-digest/2026-W47
             maintd uncertain resolve --resend --all --campaign weekly-digest/2026-W47
    """
    said = [Word(name) for name, given in words.items() if given]
    if len(said) != 1:
        raise UsageError("say exactly one of --sent, --resend and --drop")
    if (address is None) is not every:
        raise UsageError("name one address, or say --all")
    if said == [Word.RESEND] and not yes:
        whom = address.mailbox if address else f"all uncertain recipients of {campaign}"
        confirm(f"Whoever got it after all gets it twice. Send it again to {whom}?")
    with context.runtime() as runtime:
        ledger, now = runtime.ledger, context.clock.now()
        if address is None:
            count = resolve.resolve_all(ledger, campaign, said[0], now=now)
        else:
            resolve.resolve_one(ledger, campaign, address, said[0], now=now)
            count = 1
        if said == [Word.RESEND]:
            context.say_if_held(runtime)
    if count and said == [Word.RESEND]:
        with open_wake(context.settings) as wake:
            wake(MAIL_QUEUES)
    click.echo(
        f"{count:,} {_RESOLVED[said[0]]}" if count else f"there are no uncertain deliveries in {campaign}"
    )


_RESOLVED = {
    Word.SENT: "settled as sent",
    Word.RESEND: "put at the end of the line, to be sent again",
    Word.DROP: "settled as cancelled",
}


def _delivery(traced: Traced) -> dict[str, Any]:
    """A delivery under the names of the JSON output, which are those of the tables' columns too."""
    delivery = traced.delivery
    return {
        "campaign": traced.campaign,
        "address": delivery.address,
        "recipient": delivery.recipient,
        "state": delivery.state.value,
        "failure": delivery.failure,
        "at": delivery.settled_at,
        "due_at": delivery.due_at if delivery.state is DeliveryState.DEFERRED else None,
        "code": delivery.code,
        "enhanced": delivery.enhanced,
        "detail": delivery.detail,
        "copies": delivery.copies,
        "message_id": traced.message_id,
    }


_OUTCOME = ("state", "at", "due_at", "code", "enhanced", "failure", "detail", "copies")
_HEADINGS = {"at": "when", "due_at": "next try", "message_id": "message id"}


def _print_deliveries(found: Sequence[Traced], columns: Sequence[str], *, empty: str) -> None:
    rows = [_delivery(traced) for traced in found]
    shown = [column for column in columns if column != "due_at" or any(row["due_at"] for row in rows)]
    headings = [_HEADINGS.get(column, column) for column in shown]
    print_table(headings, [[row[column] for column in shown] for row in rows], empty=empty)
