"""Commands about the ledger itself: where it stands in its own history, and what to do when it went back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from maintd.cli.command import LEDGER_AWAY, Group
from maintd.cli.context import Context, pass_context
from maintd.cli.output import print_json, print_pairs, print_table
from maintd.cli.parameters import confirm, json_option
from maintd.errors import ExitCode
from maintd.execution import history
from maintd.execution.history import GoesOn
from maintd.ledger.witness import Point
from maintd.mail.recording.replay import Replayed

_TELL_EVERY = 10
_CANNOT = "it is not held, or a mail process of this host has not let its flight recorder go yet"
_ON_SEVERAL_HOSTS = (
    "if other hosts have mailed too, run `maintd ledger replay` on each of them first: "
    "what they sent is known only there"
)
_NOT_IN_IT = (
    "cancellations, pauses, suppressions and verdicts of after the backup are not in it: enter them again before you "
    "accept it; `maintd campaigns cancel|pause`, `maintd suppressions add` and `maintd uncertain resolve` work while "
    "it is held"
)


@click.group(cls=Group)
def ledger() -> None:
    """See whether the ledger went back in time, and accept it.

    A ledger that was restored from a backup, or is a standby that lagged behind, has forgotten what was mailed since.
    Every host remembers how far it has seen the ledger come, so that is noticed and the ledger is held: no mail is
    sent and no job runs.

    \b
    Example: maintd ledger status
             maintd ledger accept --dry-run
             maintd ledger accept
    """


@ledger.command("status", exits={0: "all is well", 1: "it is held", 69: LEDGER_AWAY})
@json_option
@pass_context
def status(context: Context, *, as_json: bool) -> None:
    """Show where the ledger stands, what this host has seen of it, and why it is held.

    \b
    Example: maintd ledger status --json
    """
    with context.runtime() as runtime:
        found = history.status(runtime)
    if as_json:
        print_json(found)
    else:
        pairs = {
            "ledger": found.point.ledger_id,
            "stands at": _place(found.point),
            "this host has seen": _place(found.seen) if found.seen else None,
            "held": found.held or "no",
            "damaged recordings": ", ".join(found.damaged) or "none",
        }
        print_pairs(pairs)
        if found.held:
            click.echo(f"`maintd ledger accept` lets it go; {_ON_SEVERAL_HOSTS}", err=True)
    if found.held:
        raise click.exceptions.Exit(ExitCode.FAILED)


@ledger.command("hold", exits={0: "held", 69: LEDGER_AWAY})
@click.option("--reason", required=True, help="Kept and shown.")
@pass_context
def hold(context: Context, *, reason: str) -> None:
    """Hold the ledger: no mail is sent and no job runs on any host until it is accepted.

    For a copy that must not mail, and for a backup that no host can know to be older.

    \b
    Example: maintd ledger hold --reason "copy of production for staging"
    """
    with context.runtime() as runtime:
        history.hold_ledger(runtime, reason=reason)
    click.echo("the ledger is held; `maintd ledger accept` lets it go")


@ledger.command("replay", exits={0: "replayed; or counted", 1: _CANNOT, 69: LEDGER_AWAY})
@click.option("--dry-run", is_flag=True, help="Only count what it would do.")
@json_option
@pass_context
def replay(context: Context, *, dry_run: bool, as_json: bool) -> None:
    """Write into a held ledger what this host's flight recordings know; it stays held.

    Run it on every host that mails but one, then accept the ledger there. It may be run again.

    \b
    Example: maintd ledger replay --dry-run
    """
    with context.runtime() as runtime:
        done = history.make_good(runtime, dry_run=dry_run, claims_of_all=False, progress=_tell)
    _print_replayed(done, as_json=as_json)
    click.echo("nothing was changed" if dry_run else "the ledger is still held", err=True)


@ledger.command(
    "accept",
    exits={0: "accepted; or counted", 1: _CANNOT, 69: LEDGER_AWAY, 130: "not confirmed; nothing was changed"},
)
@click.option("--dry-run", is_flag=True, help="Only count what it would do.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_context
def accept(context: Context, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Accept a ledger that went back in time: make it good from this host's flight recordings and let it go.

    What they say was taken by the relay becomes sent; what may have been handed over becomes uncertain. An edition
    that the ledger has forgotten is closed and its job paused. It cannot be taken back. If it was cut off, call it
    again.

    The campaigns that go on sending are listed before you are asked. What people did after the backup is undone: enter
    it again first.

    \b
    Example: maintd ledger accept --dry-run
             maintd ledger accept
    """
    with context.runtime() as runtime:
        if dry_run or not yes:
            would = history.make_good(runtime, dry_run=True, claims_of_all=True, progress=_tell)
            goes_on = history.going_on(runtime, forgotten={one.name for one in would.forgotten})
            _print_what_would_be(would, goes_on, as_json=as_json and dry_run)
        if dry_run:
            click.echo("nothing was changed", err=True)
            return
        if not yes:
            click.echo(_ON_SEVERAL_HOSTS, err=True)
            confirm("Write this into the ledger and let it go? (--yes does not ask)")
        done, point = history.accept(runtime, progress=_tell)
    if as_json:
        print_json(_plain(done) | {"point": point})
    else:
        _print_replayed(done, as_json=False)
        click.echo(f"the ledger is accepted and goes on at {_place(point)}")


def _tell(read: int, of: int) -> None:
    if read % _TELL_EVERY == 0 or (read == of and of > _TELL_EVERY):
        click.echo(f"{read:,} of {of:,} recordings are read", err=True)


def _print_what_would_be(would: Replayed, goes_on: list[GoesOn], *, as_json: bool) -> None:
    if as_json:
        print_json(_plain(would) | {"goes_on": goes_on})
    else:
        _print_replayed(would, as_json=False)
        print_table(
            ("campaign", "state", "left to mail, at most"),
            [(one.campaign, one.state, one.left) for one in goes_on],
            empty="no campaign goes on sending",
        )
    click.echo(_NOT_IN_IT, err=True)


def _print_replayed(done: Replayed, *, as_json: bool) -> None:
    if as_json:
        print_json(_plain(done))
        return
    print_pairs(
        {
            "recordings": done.recordings,
            "damaged": ", ".join(done.damaged) or "none",
            "become sent": done.accepted,
            "become uncertain": done.doubtful,
            "claims of the past": done.released,
            "forgotten editions": len(done.forgotten),
        }
    )
    for one in done.forgotten:
        click.echo(f"{one.name}: {one.reason}", err=True)


def _plain(done: Replayed) -> dict[str, Any]:
    forgotten = [
        {"campaign": one.name, "mailed": one.mailed, "doubtful": one.doubtful} for one in done.forgotten
    ]
    return asdict(done) | {"forgotten": forgotten}


def _place(point: Point) -> str:
    return f"sequence {point.sequence:,} of epoch {point.epoch}"
