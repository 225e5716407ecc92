"""What every command has in common: its help ends with what its exit status means."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import click

LEDGER_AWAY = "the ledger does not answer"

_ANY_COMMAND = {0: "done", 64: "the command line is wrong"}
_ANY_GROUP = "Exit codes: each command tells its own."


class Command(click.Command):
    """A command that says what its exit status means."""

    def __init__(
        self,
        name: str | None,
        *,
        help: str | None = None,
        exits: Mapping[int, str] | None = None,
        **rest: Any,
    ) -> None:
        """Takes what `click.Command` takes.

        Args:
            name: What it is called by.
            help: The text before the exit codes.
            exits: The meaning of each exit code, where it is not that of any command.
            rest: Handed on.
        """
        meanings = sorted((_ANY_COMMAND | dict(exits or {})).items())
        codes = "Exit codes: " + " · ".join(f"{code} {meaning}" for code, meaning in meanings) + "."
        super().__init__(name, help=_ending_with(codes, help), **rest)


class Group(click.Group):
    """Commands under one name."""

    command_class = Command

    def __init__(self, name: str | None, *, help: str | None = None, **rest: Any) -> None:
        super().__init__(name, help=_ending_with(_ANY_GROUP, help), **rest)


class ListsByDefault(Group):
    """A group of which `list` need not be said: a first word that is none of its commands belongs to `list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, *self.get_help_option_names(ctx)}
        # A shell that completes the word after the group's name wants the names of its commands.
        completing = ctx.resilient_parsing and not args
        if not completing and (not args or args[0] not in known):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _ending_with(last: str, help: str | None) -> str:
    return f"{inspect.cleandoc(help or '')}\n\n{last}"
