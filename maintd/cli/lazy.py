"""A group whose commands are imported when they are called, so that no command waits for what only others need."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem


class Entry(NamedTuple):
    """Where a command is, and what the group says about it without looking there.

    Attributes:
        module: Its full name.
        attribute: The command in it.
        help: The first sentence of the command's own help.
    """

    module: str
    attribute: str
    help: str


class LazyGroup(click.Group):
    """A group that knows its commands from a table."""

    def __init__(self, *args: Any, table: Mapping[str, Entry], **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.table = table
        self.commands = _Commands(table)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.table[name].help) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        own = click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=self.table[name].help) for name in names] + own


class _Commands(MutableMapping[str, click.Command]):
    """Commands by name, each imported when it is first asked for."""

    def __init__(self, table: Mapping[str, Entry]) -> None:
        self._table = table
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            entry = self._table[name]
            self._loaded[name] = getattr(importlib.import_module(entry.module), entry.attribute)
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._table, **self._loaded})

    def __len__(self) -> int:
        return len({**self._table, **self._loaded})

    def __contains__(self, name: object) -> bool:
        return name in self._table or name in self._loaded
