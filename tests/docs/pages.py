"""The pages that people read, and what stands in them."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from maintd.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:\S+/)?maintd [^`]+)`")
_HEREDOC = re.compile(r"<<'(\w+)'\n.*?^\1$", re.MULTILINE | re.DOTALL)
_QUOTED_LINES = re.compile(r'"\n[^"]*"')
_SEPARATORS = frozenset({"&&", "||", "|", ";", "&", ">", ">>", "<", "<<"})


def blocks(text: str) -> list[tuple[str, str]]:
    """The blocks of code with their languages, in order."""
    return _FENCE.findall(text)


def fences(page: Path, language: str) -> list[str]:
    """The blocks of code in a language."""
    return [text for of, text in blocks(page.read_text(encoding="utf-8")) if of == language]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The arguments of every call of maintd in the page's blocks of shell."""
    for block in fences(page, "sh"):
        yield from calls(block)


def commands_in_prose(page: Path) -> Iterator[list[str]]:
    """The arguments of every command that a sentence speaks of, as far as they are not placeholders."""
    for line in _INLINE.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        for arguments in calls(line):
            yield list(itertools.takewhile(lambda word: not word.startswith(("[", "…")), arguments))


def calls(shell: str) -> Iterator[list[str]]:
    """The arguments of every call of maintd in some shell; what a line feeds to another program is none."""
    commands = _QUOTED_LINES.sub("''", _HEREDOC.sub("", shell)).replace("\\\n", " ")
    for line in commands.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for separator, words in itertools.groupby(lexer, key=_SEPARATORS.__contains__):
            command = [] if separator else _without_prefix(list(words))
            if command and Path(command[0]).name == "maintd":
                yield command[1:]


def _without_prefix(words: list[str]) -> list[str]:
    """A command without what may stand before it: settings of its environment, sudo and whom it becomes."""
    match words:
        case ["sudo", "-u", _, *rest] | ["sudo" | "/usr/bin/env", *rest]:
            return _without_prefix(rest)
        case [first, *rest] if "=" in first:
            return _without_prefix(rest)
    return words


def carry_out_nothing(arguments: list[str]) -> str:
    """Reads a command line as the command itself does, and gives the name of what it would carry out.

    Raises:
        click.UsageError: There is no such command or option, or an argument is missing or one too many.
    """
    invoked = [""]

    def invoke(_command: click.Command, context: click.Context) -> None:
        invoked.append(context.command_path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click.Command, "invoke", invoke)
        cli.main(list(arguments), prog_name="maintd", standalone_mode=False)
    return invoked[-1]
