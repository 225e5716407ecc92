"""Commands about mail: looking at one before it is sent, at what became of them, and taking a hand in it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import click
from sqlalchemy.engine import Connection

from maintd.broker.wake import open_wake
from maintd.cli.context import Context, pass_context
from maintd.cli.output import json_option, print_json, print_pairs, print_table
from maintd.clock import new_token
from maintd.errors import ExitCode, MaintdError, Unavailable, UsageError, did_you_mean
from maintd.execution.project import read_project
from maintd.execution.queues import Queue
from maintd.execution.runtime import open_sources
from maintd.execution.worker import timeouts_of
from maintd.ledger import campaigns as ledger_campaigns
from maintd.ledger import deliveries as ledger_deliveries
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.mail import control, resolve, suppress, trace, trial
from maintd.mail.address import Address, InvalidAddress, parse_address
from maintd.mail.campaign import CampaignSpec
from maintd.mail.preview import Draft, Preview
from maintd.mail.preview import preview as make_preview
from maintd.mail.resolve import Word
from maintd.mail.trace import Traced
from maintd.scheduling.occurrences import options_of
from maintd.smtp.relays import parse_relay_url
from maintd.smtp.session import Result, Verdict
from maintd.smtp.sink import read_index, serve_forever


class _AddressType(click.ParamType[Address]):
    """An address, in whatever spelling: it means whoever it is the same as for a campaign."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return parse_address(str(value))
        except InvalidAddress as error:
            self.fail(f'"{value}": {error}', param, ctx)


class _ListsByDefault(click.Group):
    """A group of which `list` need not be said."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


_ADDRESS = _AddressType()
_limit_option = click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many."
)
_reason_option = click.option("--reason", default="by hand", show_default=True, help="Kept and shown.")


@click.command()
@click.argument("job")
@click.option("--recipient", type=_ADDRESS, help="For this person of the audience; without it for the first.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write subject.txt, body.txt, body.html and message.eml into this directory.",
)
@json_option
@pass_context
def preview(
    context: Context, *, job: str, recipient: Address | None, output: Path | None, as_json: bool
) -> None:
    """Show the mail of a campaign for one person of its audience.

    It is made from the files as they are now, applied or not, and from the source's data. Nothing is sent or written.

    \b
    Example: maintd preview weekly-digest --recipient ada@example.org --output /tmp/mail
    """
    made = _preview(context, job, recipient, uid="preview")
    content = made.content
    sender = f"{content.from_name} <{content.from_address.mailbox}>".lstrip()
    headers = {"From": sender, "To": content.to.mailbox, "Subject": content.subject}
    if as_json:
        print_json({**headers, "text": content.text, "html": content.html})
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in headers.items()))
        click.echo(f"\n{content.text}")
    if output is not None:
        _write(output, made.files())


@click.command("send-test")
@click.argument("job")
@click.argument("address", type=_ADDRESS)
@click.option("--recipient", type=_ADDRESS, help="The mail of this person; without it of the first.")
@pass_context
@click.pass_context
def send_test(
    click_context: click.Context, context: Context, job: str, address: Address, recipient: Address | None
) -> None:
    """Send the preview of a campaign's mail to an address of yours.

    It goes through the configured relay, or to MAINTD_MAIL_REDIRECT where that is set, with "[test]" before its
    subject. It counts as nobody's delivery.

    \b
    Example: maintd send-test weekly-digest me@example.org
    """
    settings = context.settings
    message = trial.trial_of(_preview(context, job, recipient, uid=new_token()), to=address)
    result = asyncio.run(
        trial.send_once(
            message,
            parse_relay_url(settings.smtp_url.get_secret_value(), where="MAINTD_SMTP_URL"),
            timeouts=timeouts_of(settings),
            hello=settings.smtp_hello,
        )
    )
    if result.verdict is Verdict.UNSENT:
        raise Unavailable(f"the message to {message.recipient} was not sent: {_said(result)}")
    click.echo(f"{message.recipient}: {result.verdict} ({result.phase}): {_said(result)}")
    if result.verdict is not Verdict.ACCEPTED:
        click_context.exit(ExitCode.FAILED)


@click.group(cls=_ListsByDefault)
def campaigns() -> None:
    """List campaigns; show, pause, resume or cancel one.

    A campaign is one edition of a campaign job, such as weekly-digest/2026-W47. Its name or its id will do.

    \b
    Example: maintd campaigns
             maintd campaigns weekly-digest --limit 5
             maintd campaigns pause weekly-digest/2026-W47 --reason "wrong link"
    """


@campaigns.command("list")
@click.argument("job", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
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
    if as_json:
        print_json(found)
        return
    print_table(
        list(_CAMPAIGN_COLUMNS.values()),
        [_campaign_row(summary) for summary in found],
        empty="There is no campaign" + (f" of {job}." if job else " yet."),
    )


@campaigns.command("show")
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
    details = {
        "run": campaign.run_id,
        "expires": campaign.expires_at,
        "template": campaign.template,
        "spec": campaign.spec,
    }
    if as_json:
        print_json(summary | details)
        return
    shown = {
        **summary,
        "id": str(campaign.id),
        "state": _state_of(summary),
        **summary["deliveries"],
        **details,
    }
    print_pairs({name: value for name, value in shown.items() if name not in ("deliveries", "spec")})


@campaigns.command("pause")
@click.argument("name")
@_reason_option
@pass_context
def pause_campaign(context: Context, name: str, reason: str) -> None:
    """Stop a campaign until it is resumed.

    Every sender looks before each window of messages, so no more than those on the wire still go out.

    \b
    Example: maintd campaigns pause weekly-digest/2026-W47 --reason "wrong link"
    """
    with context.runtime() as runtime:
        campaign = control.pause(runtime.ledger, name, reason=reason, now=context.clock.now())
    click.echo(f"{campaign.name} is paused; `maintd campaigns resume {campaign.name}` lets it go on.")


@campaigns.command("resume")
@click.argument("name")
@pass_context
def resume_campaign(context: Context, name: str) -> None:
    """Let a paused campaign go on where it stopped.

    \b
    Example: maintd campaigns resume weekly-digest/2026-W47
    """
    with context.runtime() as runtime:
        campaign = control.resume(runtime.ledger, name, now=context.clock.now())
    _wake_mail(context)
    click.echo(f"{campaign.name} is sending.")


@campaigns.command("cancel")
@click.argument("name")
@_reason_option
@pass_context
def cancel_campaign(context: Context, name: str, reason: str) -> None:
    """Give a campaign up for good: what was not sent never will be.

    It cannot be taken back. Doubtful messages stay doubtful. If the command was cut off, call it again.

    \b
    Example: maintd campaigns cancel weekly-digest/2026-W47 --reason "wrong audience"
    """
    with context.runtime() as runtime:
        cancelled = control.cancel(runtime.ledger, name, reason=reason, clock=context.clock)
    name = cancelled.campaign.name
    click.echo(
        f"{name} is cancelled; {cancelled.settled:,} deliveries that were not sent are settled as cancelled."
    )
    if cancelled.left:
        click.echo(
            f"{cancelled.left:,} are still with a sender, which puts no further message of it on the wire; "
            "the beat settles what it leaves."
        )


@click.group()
def deliveries() -> None:
    """Find out who was mailed what.

    \b
    Example: maintd deliveries find ada@example.org
    """


@deliveries.command("find")
@click.argument("address", type=_ADDRESS)
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
            "suppressed": _suppression(found.suppressed),
            "deliveries": listed,
        })  # fmt: skip
        return
    empty = f"No campaign has a delivery to {address.mailbox}."
    _print_deliveries(found.deliveries, ("campaign", *_OUTCOME, "message_id"), empty=empty)
    if found.suppressed:
        _tell_suppressed(address, found.suppressed)


@deliveries.command("list")
@click.argument("campaign")
@click.option(
    "--state", type=click.Choice([state.value for state in DeliveryState]), help="Only those in this state."
)
@_limit_option
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
        _print_deliveries(traced, ("address", *_OUTCOME), empty="There is no such delivery.")


@click.group(cls=_ListsByDefault)
def uncertain() -> None:
    """List messages of which nobody can know whether they arrived, and say what to do with them.

    A relay whose answer to a whole message was never read may have taken it or not. Its log, searched for the
    message id, knows.

    \b
    Example: maintd uncertain
             maintd uncertain resolve --sent ada@example.org --campaign weekly-digest/2026-W47
    """


@uncertain.command("list")
@click.option("--campaign", help="Only those of this campaign.")
@_limit_option
@json_option
@pass_context
def list_uncertain(context: Context, *, campaign: str | None, limit: int, as_json: bool) -> None:
    """List doubtful messages.

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
        _print_deliveries(traced, columns, empty="Nothing is uncertain.")


@uncertain.command("resolve")
@click.argument("address", type=_ADDRESS, required=False)
@click.option("--campaign", required=True, help="The campaign, by name or id.")
@click.option("--all", "every", is_flag=True, help="All that is doubtful in it now.")
@click.option("--sent", is_flag=True, help="They arrived, or count as such.")
@click.option("--resend", is_flag=True, help="Send them again.")
@click.option("--drop", is_flag=True, help="Let them go, arrived or not.")
@click.option("--yes", is_flag=True, help="Do not ask before sending again.")
@pass_context
def resolve_uncertain(
    context: Context, /, *, address: Address | None, campaign: str, every: bool, yes: bool, **words: bool
) -> None:
    """Say what to do with one doubtful message, or with all of a campaign.

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
        whom = address.mailbox if address else f"all doubtful recipients of {campaign}"
        click.confirm(f"Whoever got it after all gets it twice. Send it again to {whom}?", abort=True)
    with context.runtime() as runtime:
        ledger, now = runtime.ledger, context.clock.now()
        if address is None:
            count = resolve.resolve_all(ledger, campaign, said[0], now=now)
        else:
            resolve.resolve_one(ledger, campaign, address, said[0], now=now)
            count = 1
    if count and said == [Word.RESEND]:
        _wake_mail(context)
    click.echo(f"{count:,} {_RESOLVED[said[0]]}." if count else f"Nothing is uncertain in {campaign}.")


_RESOLVED = {
    Word.SENT: "settled as sent",
    Word.RESEND: "put at the end of the line, to be sent again",
    Word.DROP: "settled as cancelled",
}


@click.group()
def suppressions() -> None:
    """Keep the list of people who are never mailed.

    It counts at once, in campaigns under way too, and keeps no address, only keyed digests.

    \b
    Example: maintd suppressions add ada@example.org --reason "asked by phone"
    """


@suppressions.command("add")
@click.argument("address")
@_reason_option
@pass_context
@click.pass_context
def add_suppressions(click_context: click.Context, context: Context, address: str, reason: str) -> None:
    """Put an address on the list; "-" reads many from standard input, one a line.

    Lines that are no address are reported by their number, and all the others are listed; the exit code is then 1.

    \b
    Example: maintd suppressions add ada@example.org
             maintd suppressions add - --reason bounced < bounced.txt
    """
    many = address == "-"
    lines: Iterable[str] = sys.stdin
    if not many:
        lines = [_ADDRESS.convert(address, None, click_context).mailbox]
    with context.runtime() as runtime:
        counted = suppress.suppress(runtime.ledger, lines, reason=reason, now=context.clock.now())
    for number, fault in counted.invalid:
        click.echo(f"line {number}: {fault}", err=True)
    if many:
        click.echo(f"{counted.added:,} added, {counted.known:,} known, {len(counted.invalid):,} invalid.")
    else:
        click.echo("It is on the list." if counted.added else "It was on the list already.")
    if counted.invalid:
        click_context.exit(ExitCode.FAILED)


@suppressions.command("remove")
@click.argument("address", type=_ADDRESS)
@pass_context
def remove_suppression(context: Context, address: Address) -> None:
    """Take an address off the list. Campaigns that left it out already do not come back to it.

    \b
    Example: maintd suppressions remove ada@example.org
    """
    with context.runtime() as runtime:
        was_listed = suppress.allow(runtime.ledger, address)
    click.echo("It is off the list." if was_listed else "It was not on the list.")


@suppressions.command("find")
@click.argument("address", type=_ADDRESS)
@json_option
@pass_context
def find_suppression(context: Context, *, address: Address, as_json: bool) -> None:
    """Say whether an address is on the list, why and since when.

    \b
    Example: maintd suppressions find ada@example.org
    """
    with context.runtime() as runtime:
        found = suppress.suppressed_since(runtime.ledger, address)
    if as_json:
        print_json(_suppression(found))
    elif found:
        _tell_suppressed(address, found)
    else:
        click.echo(f"{address.mailbox} is not on the list.")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=2525, show_default=True, help="0 takes a free one."
)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@pass_context
def sink(context: Context, host: str, port: int, directory: Path) -> None:
    """Run a mail server that keeps every mail in a directory and delivers none; for trying out.

    messages/ has each mail as a file, index.jsonl a line for each. Stop it with Ctrl-C.

    \b
    Example: maintd sink /tmp/mail
             MAINTD_SMTP_URL=smtp://127.0.0.1:2525 maintd send-test weekly-digest me@example.org
    """
    if not _is_loopback(host):
        click.echo(f"warning: anybody who reaches {host} can leave mail here", err=True)
    before = sum(1 for _ in read_index(directory))
    try:
        asyncio.run(_serve(context, host, port, directory))
    except OSError as error:
        place = error.filename or f"{host}:{port}"
        raise MaintdError(f"the sink cannot start at {place}: {os.strerror(error.errno or 0)}") from None
    kept = sum(1 for _ in read_index(directory))
    click.echo(f"kept {kept - before:,} messages in {directory}, {kept:,} in all")


COMMANDS: list[click.Command] = [
    preview,
    send_test,
    campaigns,
    deliveries,
    uncertain,
    suppressions,
    sink,
]


def _preview(context: Context, name: str, recipient: Address | None, *, uid: str) -> Preview:
    """The mail of a campaign job as the files have it; the ledger is not opened."""
    settings = context.settings
    prepared = {one.job.name: one for one in read_project(settings)}
    known = [job for job, one in prepared.items() if isinstance(one.job.spec, CampaignSpec)]
    if name not in known:
        what = f'"{name}" is no campaign' if name in prepared else f'there is no job "{name}"'
        raise UsageError(f"{what}; {did_you_mean(name, known) or 'no job file has a campaign'}")
    job = prepared[name].job
    spec = cast(CampaignSpec, job.spec).sent_by(settings.mail_from)
    draft = Draft(
        job=name,
        spec=spec,
        files=prepared[name].files,
        timezone=options_of(job.header.when)["timezone"],
        uid=uid,
        now=context.clock.now(),
    )
    sources = open_sources(settings)
    try:
        return make_preview(
            draft,
            source=sources.get(spec.source),
            recipient=recipient,
            redirect=settings.mail_redirect,
        )
    finally:
        sources.dispose()


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_bytes(content)
    except OSError as error:
        raise MaintdError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    click.echo(f"{', '.join(files)} written to {directory}", err=True)


def _said(result: Result) -> str:
    return str(result.reply) if result.reply else result.detail


def _wake_mail(context: Context) -> None:
    with open_wake(context.settings) as wake:
        wake({Queue.MAIL_BULK})


def _summary(connection: Connection, campaign: Campaign) -> dict[str, Any]:
    """A campaign under the names of the JSON output."""
    counts = ledger_deliveries.counts(connection, campaign.id)
    return {
        "id": campaign.id,
        "name": campaign.name,
        "state": campaign.state.value,
        "reason": campaign.reason,
        "enrolled": campaign.enrolled,
        "deliveries": {state.value: count for state, count in counts.items()},
        "audience": campaign.audience,
        "duplicates": campaign.duplicates,
        "started": campaign.created_at,
        "finished": campaign.finished_at,
    }


def _state_of(summary: Mapping[str, Any]) -> str:
    doubtful = summary["deliveries"][DeliveryState.UNCERTAIN]
    if summary["state"] == CampaignState.FINISHED and doubtful:
        return f"finished, {doubtful:,} doubtful"
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
    "name": "campaign",
    "state": "state",
    "enrolled": "enrolled",
    "deliveries": "deliveries",
    "audience": "rows",
    "duplicates": "duplicates",
    "started": "started",
    "finished": "finished",
    "reason": "reason",
}


def _delivery(traced: Traced) -> dict[str, Any]:
    """A delivery under the names of the JSON output, which are those of the tables' columns too."""
    delivery = traced.delivery
    return {
        "campaign": traced.campaign,
        "address": delivery.address,
        "recipient": delivery.recipient,
        "state": delivery.state.value,
        "at": delivery.settled_at,
        "code": delivery.code,
        "enhanced": delivery.enhanced,
        "detail": delivery.detail,
        "copies": delivery.copies,
        "message_id": traced.message_id,
    }


_OUTCOME = ("state", "at", "code", "enhanced", "detail", "copies")
_HEADINGS = {"at": "when", "message_id": "message id"}


def _print_deliveries(found: Sequence[Traced], columns: Sequence[str], *, empty: str) -> None:
    rows = [_delivery(traced) for traced in found]
    headings = [_HEADINGS.get(column, column) for column in columns]
    print_table(headings, [[row[column] for column in columns] for row in rows], empty=empty)


def _suppression(found: tuple[str, datetime] | None) -> dict[str, Any] | None:
    return None if found is None else {"reason": found[0], "since": found[1]}


def _tell_suppressed(address: Address, found: tuple[str, datetime]) -> None:
    reason, since = found
    click.echo(f"{address.mailbox} is never mailed since {since:%Y-%m-%d %H:%M} UTC: {reason}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _serve(context: Context, host: str, port: int, directory: Path) -> None:
    """Runs the sink until Ctrl-C or SIGTERM."""
    serving = asyncio.create_task(
        serve_forever(
            host=host,
            port=port,
            directory=directory,
            clock=context.clock,
            listening=lambda bound: click.echo(
                f"listening on smtp://{host}:{bound}, keeping mail in {directory}"
            ),
        )
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    await serving
