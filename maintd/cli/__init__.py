"""The `maintd` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from maintd import __version__
from maintd.cli.lazy import Entry, LazyGroup
from maintd.cli.terminal import write_anything
from maintd.errors import ExitCode, MaintdError

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

_EXIT_CODES = """
Exit codes: 0 done · 1 failed, or something is wrong with what was given · 2 plan: files and ledger differ ·
64 the command line is wrong · 69 the ledger, Redis, a source or the relay does not answer · 130 interrupted.
"""


def _entry(place: str, help: str) -> Entry:
    module, _, attribute = place.partition(":")
    return Entry(module=f"maintd.cli.{module}", attribute=attribute, help=help)


_TABLE = {
    "init": _entry(
        "configuration:init", "Write a sample set to begin with: job files, a mail template, settings."
    ),
    "settings": _entry("configuration:settings", "Show every setting, its value and where it came from."),
    "migrate": _entry("configuration:migrate", "Make the ledger, or bring it to the schema of this version."),
    "check": _entry(
        "configuration:check_",
        "Look at everything once: settings, job files, templates, ledger, Redis, sources, relays.",
    ),
    "schema": _entry(
        "configuration:schema",
        "Print the JSON Schema of job files, with which editors complete and explain keys.",
    ),
    "plan": _entry("jobs:plan", "Show what `apply` would do, and do nothing."),
    "apply": _entry(
        "jobs:apply", "Bring the job files into the ledger: all of them, or none if anything is wrong."
    ),
    "timers": _entry(
        "jobs:timers", "Show when every job runs next, when it last began, and what keeps it from running."
    ),
    "pause": _entry("jobs:pause", "Keep a job from becoming due until it is resumed."),
    "resume": _entry("jobs:resume", "End the pause of a job; it counts from now."),
    "run": _entry("runs:run", "Start a job now, whatever its schedule says."),
    "runs": _entry("runs:runs", "Show what ran, and decide about a run."),
    "preview": _entry("preview:preview", "Show the mail of a campaign for one person of its audience."),
    "send-test": _entry("preview:send_test", "Send the preview of a campaign's mail to an address of yours."),
    "campaigns": _entry("campaigns:campaigns", "List campaigns; show, pause, resume or cancel one."),
    "deliveries": _entry("deliveries:deliveries", "Find out who was mailed what."),
    "uncertain": _entry(
        "deliveries:uncertain",
        "List messages of which nobody can know whether they arrived, and say what to do with them.",
    ),
    "suppressions": _entry("suppressions:suppressions", "Keep the list of people who are never mailed."),
    "ledger": _entry("ledger:ledger", "See whether the ledger went back in time, and accept it."),
    "sink": _entry(
        "sink:sink",
        "Run a mail server that keeps every mail in a directory and delivers none; for trying out.",
    ),
    "beat": _entry("daemons:beat", "Watch the calendar: queue what is due and make good what was lost."),
    "worker": _entry("daemons:worker", "Take work: clean up, recompute, send mail."),
    "up": _entry(
        "daemons:up",
        "Run everything in one supervised tree: beat, workers, mail and, without MAINTD_REDIS_URL, a Redis.",
    ),
    "demo": _entry(
        "demo:demo",
        "Watch the main job happen: clean up, recompute, mail 2,000 people once each, with a worker killed half-way.",
    ),
}


@click.group(
    cls=LazyGroup,
    table=_TABLE,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
)
@click.version_option(__version__, prog_name="maintd")
@click.option(
    "--env-file",
    type=click.Path(path_type=Path),
    help="Read settings from this file; without it from $MAINTD_ENV_FILE, else ./maintd.env.",
)
@click.pass_context
def cli(context: click.Context, *, env_file: Path | None) -> None:
    """Scheduled maintenance and notifications, with proof: it ran, it ran once, each e-mail was sent once.

    \b
    Example: maintd init && maintd migrate && maintd check && maintd up
    """
    from maintd.cli.context import Context

    context.obj = Context(env_file=env_file)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line; every error a person can make ends in a line, not in a traceback.

    Args:
        arguments: Those of the process without it.
    """
    write_anything()
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        code = cli.main(arguments, prog_name="maintd", standalone_mode=False)
    except click.exceptions.Abort:
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE if isinstance(error, click.UsageError) else ExitCode.FAILED
    except MaintdError as error:
        return _told(error)
    except BrokenPipeError:
        # The reader of our output went away, as `maintd runs | head` does.
        sys.stderr.close()
        return ExitCode.OK
    except OSError as error:
        return _told(MaintdError(f"{error.filename or 'the system refuses'}: {error.strerror or error}"))
    except _database_error() as error:
        from maintd.database import first_line

        return _told(MaintdError(f"a database refuses: {first_line(error)}"))
    return code if isinstance(code, int) else ExitCode.OK


def _told(error: MaintdError) -> ExitCode:
    from maintd.cli.output import print_error

    print_error(error)
    return error.exit_code


def _database_error() -> type[DBAPIError]:
    """What a database raises; imported only when something was raised that nothing else knows."""
    from sqlalchemy.exc import DBAPIError

    return DBAPIError
