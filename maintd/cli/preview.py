"""Commands that show a mail before it is sent: on the screen, in files, in your own mailbox."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import click

from maintd.cli.command import Command
from maintd.cli.context import Context, pass_context
from maintd.cli.output import print_json
from maintd.cli.parameters import ADDRESS, json_option
from maintd.clock import new_token
from maintd.errors import ExitCode, MaintdError, Unavailable, UsageError, did_you_mean
from maintd.execution.project import read_project
from maintd.execution.runtime import open_sources
from maintd.execution.worker import relays_of, timeouts_of
from maintd.mail import trial
from maintd.mail.address import Address
from maintd.mail.campaign import CampaignSpec
from maintd.mail.content.enclosures import Enclosure
from maintd.mail.preview import Draft, Preview
from maintd.mail.preview import preview as make_preview
from maintd.scheduling.occurrences import options_of
from maintd.smtp.session import Result, Verdict
from maintd.units import format_size


@click.command(
    cls=Command,
    exits={
        1: "a file is wrong, or there is nobody to make it for",
        64: "there is no such campaign job",
        69: "the source does not answer",
    },
)
@click.argument("job")
@click.option("--recipient", type=ADDRESS, help="For this person of the audience; without it for the first.")
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

    It is made from the files as they are now, applied or not, and from the source's data. Attachments and inline images
    are listed. Nothing is sent or written.

    \b
    Example: maintd preview weekly-digest --recipient ada@example.org --output /tmp/mail
    """
    made = _preview(context, job, recipient, uid="preview")
    content = made.content
    sender = f"{content.from_name} <{content.from_address.mailbox}>".lstrip()
    headers = {"From": sender, "To": content.to.mailbox, "Subject": content.subject}
    enclosed = {"attachments": made.attachments, "inline": made.inline}
    if as_json:
        files = {name: [_facts(file) for file in files] for name, files in enclosed.items()}
        print_json({**headers, "text": content.text, "html": content.html, **files})
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in headers.items()))
        click.echo(f"\n{content.text}")
        _echo_enclosed(enclosed)
    if output is not None:
        _write(output, made.files())


@click.command(
    "send-test",
    cls=Command,
    exits={
        0: "the relay took it",
        1: "a file is wrong, or the relay did not take it",
        64: "there is no such campaign job",
        69: "the source or the relay does not answer",
    },
)
@click.argument("job")
@click.argument("address", type=ADDRESS)
@click.option("--recipient", type=ADDRESS, help="The mail of this person; without it of the first.")
@pass_context
def send_test(context: Context, *, job: str, address: Address, recipient: Address | None) -> None:
    """Send the preview of a campaign's mail to an address of yours.

    It goes through the configured relay, of several the first, and to MAINTD_MAIL_REDIRECT where that is set, with
    "[test]" before its subject. It counts as nobody's delivery: the ledger is neither read nor written, so it is sent
    while the ledger is held, too.

    \b
    Example: maintd send-test weekly-digest me@example.org
    """
    settings = context.settings
    message = trial.trial_of(_preview(context, job, recipient, uid=new_token()), to=address)
    result = asyncio.run(
        trial.send_once(
            message,
            relays_of(settings)[0],
            timeouts=timeouts_of(settings),
            hello=settings.smtp_hello,
        )
    )
    if result.verdict is Verdict.UNSENT:
        raise Unavailable(f"the message to {message.recipient} was not sent: {_said(result)}")
    click.echo(f"{message.recipient}: {result.verdict} ({result.phase}): {_said(result)}")
    if result.verdict is not Verdict.ACCEPTED:
        raise click.exceptions.Exit(ExitCode.FAILED)


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


def _facts(file: Enclosure) -> dict[str, object]:
    return {"name": file.name, "type": file.media_type, "octets": len(file.content)}


def _echo_enclosed(enclosed: Mapping[str, Sequence[Enclosure]]) -> None:
    for folder, files in enclosed.items():
        for file in files:
            click.echo(f"{folder}/{file.name} ({file.media_type}, {format_size(len(file.content))})")


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
