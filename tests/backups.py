"""Backups of a ledger, taken and restored beneath whoever works on it."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa


class Backups:
    """Of one ledger, which has its database for itself."""

    def __init__(self, url: str, directory: Path) -> None:
        self._url = sa.make_url(url)
        self._directory = directory

    def take(self) -> str:
        """Copies the ledger as it is now; returns the name of the copy."""
        name = f"b{uuid.uuid4().hex[:12]}"
        if self._url.get_backend_name() == "sqlite":
            with (
                closing(sqlite3.connect(str(self._url.database))) as live,
                closing(sqlite3.connect(self._directory / name)) as copy,
            ):
                live.backup(copy)
        else:
            self._administer(*_copy(str(self._url.database), name))
        return name

    def restore(self, name: str) -> None:
        """Puts a copy in the place of the ledger; connections to the old one are lost."""
        if self._url.get_backend_name() == "sqlite":
            path = Path(str(self._url.database))
            shutil.copy(self._directory / name, self._directory / "restored")
            for leftover in (f"{path}-wal", f"{path}-shm"):
                Path(leftover).unlink(missing_ok=True)
            (self._directory / "restored").rename(path)
            return
        live = str(self._url.database)
        self._administer(f'DROP DATABASE "{live}" WITH (FORCE)', *_copy(name, live))

    def restore_in_place(self, name: str) -> None:
        """Puts a copy into the file of a SQLite ledger, under its locks; connections see it next time."""
        with (
            closing(sqlite3.connect(self._directory / name)) as copy,
            closing(sqlite3.connect(str(self._url.database), timeout=30)) as live,
        ):
            copy.backup(live)

    def _administer(self, *statements: str) -> None:
        admin = self._url.set(drivername="postgresql+psycopg", database="postgres")
        engine = sa.create_engine(admin, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()


def _copy(name: str, to: str) -> list[str]:
    # A database with connections cannot be copied; whoever had one opens another afterwards.
    return [
        f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false',
        f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'",
        f'CREATE DATABASE "{to}" TEMPLATE "{name}"',
        f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true',
    ]
