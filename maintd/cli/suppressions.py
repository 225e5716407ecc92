"""Commands about the suppression list: who is never mailed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import click

from maintd.cli.command import LEDGER_AWAY, Group
from maintd.cli.context import Context, pass_context
from maintd.cli.output import print_json
from maintd.cli.parameters import ADDRESS, json_option, reason_option
from maintd.errors import ExitCode
from maintd.mail import suppress
from maintd.mail.address import Address


@click.group(cls=Group)
def suppressions() -> None:
    """Keep the list of people who are never mailed.

    It counts at once, in campaigns under way too, and keeps no address, only keyed digests.

    \b
    Example: maintd suppressions add ada@example.org --reason "asked by phone"
    """


@suppressions.command("add", exits={1: "some lines are no address; the others are listed", 69: LEDGER_AWAY})
@click.argument("address")
@reason_option
@pass_context
def add_suppressions(context: Context, *, address: str, reason: str) -> None:
    """Put an address on the list; "-" reads many from standard input, one a line.

    Lines that are no address are reported by their number, and all the others are listed; the exit code is then 1.

    \b
    Example: maintd suppressions add ada@example.org
             maintd suppressions add - --reason bounced < bounced.txt
    """
    many = address == "-"
    lines: Iterable[str] = sys.stdin
    if not many:
        lines = [ADDRESS(address).mailbox]
    with context.runtime() as runtime:
        counted = suppress.suppress(runtime.ledger, lines, reason=reason, now=context.clock.now())
    for number, fault in counted.invalid:
        click.echo(f"line {number}: {fault}", err=True)
    if many:
        click.echo(f"{counted.added:,} added, {counted.known:,} known, {len(counted.invalid):,} invalid")
    else:
        click.echo("it is on the list" if counted.added else "it was on the list already")
    if counted.invalid:
        raise click.exceptions.Exit(ExitCode.FAILED)


@suppressions.command("remove", exits={69: LEDGER_AWAY})
@click.argument("address", type=ADDRESS)
@pass_context
def remove_suppression(context: Context, *, address: Address) -> None:
    """Take an address off the list. Campaigns that left it out already do not come back to it.

    \b
    Example: maintd suppressions remove ada@example.org
    """
    with context.runtime() as runtime:
        was_listed = suppress.allow(runtime.ledger, address)
    click.echo("it is off the list" if was_listed else "it was not on the list")


@suppressions.command("find", exits={0: "done, listed or not", 69: LEDGER_AWAY})
@click.argument("address", type=ADDRESS)
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
        print_json(suppression(found))
    elif found:
        tell_suppressed(address, found)
    else:
        click.echo(f"{address.mailbox} is not on the list")


def suppression(found: tuple[str, datetime] | None) -> dict[str, Any] | None:
    """Reason and instant under the names of the JSON output."""
    return None if found is None else {"reason": found[0], "since": found[1]}


def tell_suppressed(address: Address, found: tuple[str, datetime]) -> None:
    """Says since when somebody is not mailed, and why."""
    reason, since = found
    click.echo(f"{address.mailbox} is never mailed since {since:%Y-%m-%d %H:%M} UTC: {reason}")
