"""docs/benchmarks.md: each benchmark writes its own section of it, with what it was measured on."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import sqlalchemy as sa

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_LIBRARIES = ("SQLAlchemy", "psycopg", "aiosmtplib", "Jinja2", "css-inline", "celery")


def write_section(name: str, lines: Iterable[str]) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- end -->`."""
    section = "\n".join(lines)
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    text, found = pattern.subn(lambda match: f"{match[1]}{section}\n{match[2]}", PAGE.read_text())
    assert found == 1, f"{PAGE} has no section {name}"
    PAGE.write_text(text)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown; every column but the first is of numbers."""
    rule = ["---", *("---:" for _ in heading[1:])]
    return [f"| {' | '.join(row)} |" for row in (heading, rule, *rows)]


def target(wanted: str, *, met: bool, measured: str) -> str:
    """A line that says whether a target was met."""
    return f"- Target: {wanted}. {'Met' if met else '**Missed**'}: {measured}."


def version_of(postgresql_url: str) -> str:
    """The version of a PostgreSQL server."""
    engine = sa.create_engine(sa.make_url(postgresql_url).set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        version = str(connection.exec_driver_sql("SHOW server_version").scalar_one())
    engine.dispose()
    return version.split()[0]


def surroundings(*, took_s: float, load: float, postgresql: str) -> list[str]:
    """When, on what and beside what it was measured.

    Args:
        took_s: How long the whole run took.
        load: Of the machine before it began: processes that wanted to run, as a mean of one minute.
        postgresql: Its version.
    """
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    beside = f"the load of the machine was {load:.1f} before and {os.getloadavg()[0]:.1f} at the end"
    command = " ".join(["python", "-m", _module(), *sys.argv[1:]])
    return [
        f"`{command}`, {datetime.now(UTC):%-d %B %Y}, {took_s / 60:.0f} min; {beside}.",
        "",
        f"{os.cpu_count()} × {_processor()}, Linux {platform.release()}, Python {platform.python_version()}, "
        f"PostgreSQL {postgresql}, SQLite {sqlite3.sqlite_version}, {libraries}.",
    ]


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else sys.argv[0]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
