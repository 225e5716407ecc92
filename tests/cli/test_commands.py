"""What holds for every command: how its help reads, and what it loads."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.shell_completion import BashComplete

from maintd.cli import cli

HEAVY = ("alembic", "celery", "css_inline", "pydantic", "sqlalchemy")


def every_command(command: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield names, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from every_command(inner, *names, name)


COMMANDS = dict(every_command(cli))
with_help = pytest.mark.parametrize("names", [names for names in COMMANDS if names], ids=" ".join)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-command"]], ids=" ".join)
def test_what_concerns_no_command_loads_none_of_them(arguments: list[str]) -> None:
    code = (
        "import atexit, sys; from maintd.cli import main; "
        f"atexit.register(lambda: print(sorted(sys.modules.keys() & {set(HEAVY)}), file=sys.stderr)); "
        f"main({arguments})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_the_list_of_commands_says_what_the_command_says_first(name: str) -> None:
    assert cli.table[name].help == cli.commands[name].get_short_help_str(limit=1000)
    assert cli.commands[name].name == name


@with_help
def test_every_help_ends_with_what_the_exit_status_means(names: tuple[str, ...]) -> None:
    *_, last = (COMMANDS[names].help or "").split("\n\n")
    assert last.startswith("Exit codes: ")
    assert (COMMANDS[names].help or "").count("Exit codes") == 1
    codes = [int(code) for code in re.findall(r"(?<=[:·] )\d+", last)]
    assert codes == sorted(codes)


def test_a_misspelt_command_gets_a_proposal() -> None:
    with pytest.raises(click.UsageError) as refused:
        cli.main(["timer"], standalone_mode=False)
    assert "timers" in refused.value.format_message()


@pytest.mark.parametrize(
    ("words", "incomplete", "completions"),
    [
        ([], "se", ["send-test", "settings"]),
        (["runs"], "", ["cancel", "list", "retry", "show"]),
        (["run"], "--w", ["--wait"]),
    ],
)
def test_a_shell_completes_commands_and_options(
    words: list[str], incomplete: str, completions: list[str]
) -> None:
    shell = BashComplete(cli, {}, "maintd", "_MAINTD_COMPLETE")
    found = [item.value for item in shell.get_completions(words, incomplete)]
    assert found == completions
