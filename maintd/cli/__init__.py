"""The `maintd` command."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from maintd import __version__
from maintd.cli.context import Context
from maintd.errors import ExitCode, MaintdError, Problems

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
    import importlib
    import importlib.util

    for module in [importlib.import_module(f"maintd.cli.{m}") for m in ("configuration", "jobs", "mail", "daemons", "demo") if importlib.util.find_spec(f"maintd.cli.{m}")]:
        for command in module.COMMANDS:
            cli.add_command(command)


_register()


def main() -> None:
    """Runs the command line; every error a person can make ends in a line, not in a traceback."""
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else ExitCode.OK)
    except click.exceptions.Abort:
        sys.exit(ExitCode.INTERRUPTED)
    except click.UsageError as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.FAILED)
    except MaintdError as error:
        _show(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away, as `maintd runs | head` does.
        sys.stderr.close()
        sys.exit(ExitCode.OK)


def _show(error: MaintdError) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if isinstance(error, Problems):
        for problem in error.problems:
            console.print(f"error: {problem}", markup=False)
        count = len(error.problems)
        console.print(f"{count} problem{'s' if count > 1 else ''} found", markup=False)
    else:
        console.print(f"error: {error}", markup=False)
