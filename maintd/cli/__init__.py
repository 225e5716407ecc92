"""The `maintd` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click
from sqlalchemy.exc import DBAPIError

from maintd import __version__
from maintd.cli.context import Context
from maintd.cli.output import print_error
from maintd.database import first_line
from maintd.errors import ExitCode, MaintdError

_EXIT_CODES = """
Exit codes: 0 done · 1 failed, or something is wrong with what was given · 2 plan: files and ledger differ ·
64 the command line is wrong · 69 the ledger, Redis, a source or the relay does not answer · 130 interrupted.
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
)
@click.version_option(__version__, prog_name="maintd")
@click.option(
    "--env-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read settings from this file; without it from $MAINTD_ENV_FILE, else ./maintd.env.",
)
@click.pass_context
def cli(context: click.Context, env_file: Path | None) -> None:
    """Scheduled maintenance and notifications, with proof: it ran, it ran once, each e-mail was sent once.

    \b
    Example: maintd init && maintd migrate && maintd check && maintd up
    """
    context.obj = Context(env_file=env_file)


def _register() -> None:
    """Puts the commands of every module under the one group."""
    from maintd.cli import configuration, daemons, demo, jobs, mail, runs

    for module in (configuration, jobs, runs, mail, daemons, demo):
        for command in module.COMMANDS:
            cli.add_command(command)


_register()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line; every error a person can make ends in a line, not in a traceback.

    Args:
        arguments: Those of the process without it.
    """
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
        print_error(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away, as `maintd runs | head` does.
        sys.stderr.close()
        return ExitCode.OK
    except DBAPIError as error:
        print_error(MaintdError(f"a database refuses: {first_line(error)}"))
        return ExitCode.FAILED
    except OSError as error:
        print_error(MaintdError(f"{error.filename or 'the system refuses'}: {error.strerror or error}"))
        return ExitCode.FAILED
    return code if isinstance(code, int) else ExitCode.OK
