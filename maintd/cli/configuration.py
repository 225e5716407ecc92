"""Commands about configuration: begin with a sample set, look at settings, check everything."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

from maintd.cli.command import LEDGER_AWAY, Command
from maintd.cli.context import Context, pass_context
from maintd.cli.output import print_json, print_problems, print_table
from maintd.cli.parameters import json_option
from maintd.cli.starter import starter_files, write_new
from maintd.errors import ExitCode, Problems
from maintd.execution.check import Checked, Verdict, check
from maintd.execution.kinds import SPECS
from maintd.ledger.engine import ledger_database
from maintd.ledger.engine import migrate as migrate_ledger
from maintd.scheduling.files import json_schema
from maintd.supervise.embedded import server_program


@click.command(cls=Command, exits={0: "written", 1: "a file is there already; nothing was written"})
@click.argument(
    "directory", default=".", type=click.Path(file_okay=False, path_type=Path), metavar="[DIRECTORY]"
)
def init(directory: Path) -> None:
    """Write a sample set to begin with: job files, a mail template, settings.

    Every job of it is disabled, so that nothing deletes or mails before you have read it. Nothing is overwritten.

    \b
    Example: maintd init /srv/maintd && cd /srv/maintd && maintd migrate && maintd check
    """
    files = starter_files()
    write_new(files, into=directory)
    for name in files:
        click.echo(directory / name)
    click.echo(
        "every job is disabled; next: maintd.env, then `maintd migrate`, `maintd check`, `maintd apply`"
    )


@click.command(cls=Command, exits={1: "something is wrong with the settings"})
@json_option
@pass_context
def settings(context: Context, *, as_json: bool) -> None:
    """Show every setting, its value and where it came from.

    Passwords are masked. The first place that gives a setting wins: environment, credential, env file, default.

    \b
    Example: maintd settings
             maintd --env-file /etc/maintd/maintd.env settings --json
    """
    rows = context.settings.public()
    if as_json:
        print_json([{"name": name, "value": value, "came_from": place} for name, value, place in rows])
    else:
        print_table(("NAME", "VALUE", "CAME FROM"), rows, empty="there are no settings")


@click.command(cls=Command, exits={1: "the database refuses", 69: LEDGER_AWAY})
@pass_context
def migrate(context: Context) -> None:
    """Make the ledger, or bring it to the schema of this version.

    All or nothing, and safe to repeat. In PostgreSQL everything goes into the schema `maintd`.

    \b
    Example: maintd migrate
    """
    context.make_state_dir()
    url = context.settings.database_url.get_secret_value()
    with context.naming_the_ledger():
        before, after = migrate_ledger(url)
    where = ledger_database(url).where
    change = "unchanged" if before == after else f"from {before or 'none'}"
    click.echo(f"ledger {where}: schema {after} ({change})")


@click.command(
    "check",
    cls=Command,
    exits={0: "all is well", 1: "something is wrong", 69: "nothing is wrong but a service does not answer"},
)
@click.option("--offline", is_flag=True, help="Look at files only: no database, no Redis, no relay.")
@json_option
@pass_context
def check_(context: Context, *, offline: bool, as_json: bool) -> None:
    """Look at everything once: settings, job files, templates, ledger, Redis, sources, relays.

    Every job is held against its source: tables, columns, statements. Nothing that is written stays, in the state
    directory as little as elsewhere, and no mail is sent; relays are only greeted. All that is wrong is named at once,
    with its cure.

    \b
    Example: maintd check
             maintd check --offline --json
    """
    found = _checked(context, offline=offline)
    if as_json:
        print_json(found)
    else:
        rows = [(one.what, one.verdict, one.detail) for one in found]
        print_table(("WHAT", "STATE", "DETAIL"), rows, empty="nothing was looked at")
        problems = [problem for one in found for problem in one.problems]
        if problems:
            print_problems(problems)
    _exit({one.verdict for one in found})


def _checked(context: Context, *, offline: bool) -> list[Checked]:
    try:
        settings = context.settings
    except Problems as error:
        detail = "nothing else can be looked at"
        return [
            Checked(what="settings", verdict=Verdict.PROBLEM, detail=detail, problems=tuple(error.problems))
        ]
    return [
        Checked(what="settings", verdict=Verdict.OK),
        *check(settings, clock=context.clock, offline=offline, embedded_server=server_program),
    ]


def _exit(verdicts: set[Verdict]) -> NoReturn:
    code = ExitCode.OK
    if Verdict.PROBLEM in verdicts:
        code = ExitCode.FAILED
    elif Verdict.AWAY in verdicts:
        code = ExitCode.UNAVAILABLE
    raise click.exceptions.Exit(code)


@click.command(cls=Command)
def schema() -> None:
    """Print the JSON Schema of job files, with which editors complete and explain keys.

    \b
    Example: maintd schema > schedules/.schema.json
             (and as the first line of a job file: #:schema ./.schema.json)
    """
    print_json(json_schema(SPECS))
