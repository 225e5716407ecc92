"""The pages that people read, and what stands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from maintd.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:\S+/)?maintd [^`]+)`")
_SEPARATORS = {"&&", "||", "|", ";", "&", ">", "<"}


def fences(page: Path, *languages: str) -> list[str]:
    """The blocks of code in these languages."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The arguments of every call of maintd, in blocks of shell and in the middle of sentences."""
    for block in fences(page, "sh"):
        yield from calls(block)
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for line in _INLINE.findall(prose):
        yield from calls(line)


def calls(shell: str) -> Iterator[list[str]]:
    """The arguments of every call of maintd in some shell."""
    for line in shell.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        for place, word in enumerate(words):
            # `sudo -u maintd` names a user.
            if Path(word).name == "maintd" and "-u" not in words[max(0, place - 1) : place]:
                yield _up_to_separator(words[place + 1 :])
                break


def _up_to_separator(words: list[str]) -> list[str]:
    ends = (place for place, word in enumerate(words) if word in _SEPARATORS)
    return words[: next(ends, None)]


def parse(arguments: list[str], *, command: click.Command = cli, name: str = "maintd") -> click.Command:
    """Finds the command of a command line and reads its options; nothing is carried out.

    Raises:
        click.UsageError: There is no such command or option, or an argument is missing or one too many.
    """
    if not isinstance(command, click.Group):
        command.make_context(name, list(arguments))
        return command
    context = click.Context(command, info_name=name)
    _, rest, _ = command.make_parser(context).parse_args(list(arguments))
    if not rest:
        # The group alone lists something, or shows its help.
        return command
    inner_name, inner, inner_rest = command.resolve_command(context, rest)
    assert inner is not None
    return parse(inner_rest, command=inner, name=f"{name} {inner_name}")
