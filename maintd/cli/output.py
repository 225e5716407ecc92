"""What commands print: a table for people, or the same as JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, TypeGuard

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from maintd.cli.narrow import fitting
from maintd.errors import MaintdError, Problem, Problems
from maintd.units import format_duration

#: What a table shows where there is nothing.
NOTHING = "–"
#: Columns that a narrow terminal keeps: what one looks things up by, and how they stand.
_KEPT = frozenset({"ADDRESS", "CAMPAIGN", "ID", "JOB", "MESSAGE ID", "RUN", "STATE", "STEP", "WHAT", "NAME"})
#: What it lacks only if nothing else helps: what came of something, and why.
_LAST = frozenset({"COUNTED", "DELIVERIES", "DETAIL", "NOTE", "REASON"})


def console() -> Console:
    """Standard output. Lines are cut nowhere when nobody watches, so that `grep` finds everything."""
    if not sys.stdout.isatty():
        return Console(width=10_000, highlight=False, soft_wrap=True)
    # Told both: of a dumb terminal rich believes neither, unless LINES is set too.
    width, height = shutil.get_terminal_size()
    return Console(width=width, height=height, highlight=False)


def print_json(value: object) -> None:
    """Prints one JSON document: dataclasses as objects, instants as ISO 8601, durations in seconds."""
    click.echo(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Prints rows under headings in upper case, or the sentence `empty` when there are none."""
    if not rows:
        click.echo(empty)
        return
    headings = [column.upper() for column in columns]
    cells = [[_cell(value) for value in row] for row in rows]
    screen = console()
    widths = fitting(headings, cells, width=screen.width, keep=_KEPT, last=_LAST, nothing=NOTHING)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, width in widths.items():
        table.add_column(headings[place], width=width, overflow="fold")
    for row in cells:
        # What comes from a user or a relay is never read as markup.
        table.add_row(*(escape(row[place]) for place in widths))
    screen.print(table)
    left_out = [heading for place, heading in enumerate(headings) if place not in widths]
    if left_out:
        screen.print(f"no room for {', '.join(left_out)}; --json has all", style="dim")


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Prints names and values, one line each."""
    table = Table.grid("", Column(overflow="fold"), padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(f"[bold]{name}[/bold]", escape(_cell(value)))
    console().print(table)


def print_error(error: MaintdError) -> None:
    """Prints an error on standard error; of several problems, all."""
    if isinstance(error, Problems):
        print_problems(error.problems)
    else:
        click.echo(f"error: {error}", err=True)


def print_problems(problems: Sequence[Problem]) -> None:
    """Prints problems on standard error, a line each, and how many there are."""
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    click.echo(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found", err=True)


def in_short(counts: Mapping[str, Any] | None) -> str:
    """What was counted, on one line: "removed 312, batches 4"; of a table within, how many there are of each."""
    words = []
    for name, value in (counts or {}).items():
        if isinstance(value, Mapping):
            words += [f"{count:,} {found}" for found, count in Counter(value.values()).items()]
        elif value not in (None, "", [], ()):
            words.append(f"{name.replace('_', ' ')} {value:,}" if _is_number(value) else f"{name} {value}")
    return ", ".join(words)


def ago(instant: datetime | None, *, now: datetime) -> str:
    """How long since, or until: "4 min 10 s"."""
    return NOTHING if instant is None else format_duration(now - instant)


def _cell(value: object) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}Z"
    if _is_number(value):
        return f"{value:,}"
    return str(value)


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


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
