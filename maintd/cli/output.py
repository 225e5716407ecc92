"""What commands print: a table for people, or the same as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.table import Table

from maintd.units import format_duration

_F = TypeVar("_F", bound=Callable[..., Any])

#: What a table shows where there is nothing.
NOTHING = "–"


def json_option(command: _F) -> _F:
    """Adds `--json`, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


def console() -> Console:
    """Standard output. Lines are cut nowhere when nobody watches, so that `grep` finds everything."""
    width = None if sys.stdout.isatty() else 250
    return Console(width=width, highlight=False, soft_wrap=not sys.stdout.isatty())


def print_json(value: object) -> None:
    """Prints one JSON document: dataclasses as objects, instants as ISO 8601, durations in seconds."""
    click.echo(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Prints rows under headings, or the sentence `empty` when there are none."""
    if not rows:
        click.echo(empty)
        return
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console().print(table)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Prints names and values, one line each."""
    table = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(f"[bold]{name}[/bold]", _cell(value))
    console().print(table)


def ago(instant: datetime | None, *, now: datetime) -> str:
    """How long since, or until: "4 min 10 s"."""
    return NOTHING if instant is None else format_duration(now - instant)


def _cell(value: object) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    # What comes from a user or a relay is never read as markup.
    return str(value).replace("[", r"\[")


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path | set | frozenset | tuple):
        return str(value) if isinstance(value, Path) else sorted(value)
    raise TypeError(f"cannot print {type(value).__name__}")
