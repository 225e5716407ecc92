"""Opening SQLite and PostgreSQL the same careful way: the ledger's database and the applications' own.

SQLite: every write transaction is `BEGIN IMMEDIATE` (a deferred one that upgrades fails at once, whatever the busy
timeout), with `synchronous=FULL`; in maintd's own files WAL. PostgreSQL: settings ride in each transaction (`SET
LOCAL`), so a PgBouncer in transaction mode may stand between.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

from maintd.errors import Problem, Problems, Unavailable

Dialect = Literal["sqlite", "postgresql"]

_BUSY_TIMEOUT_MS = 30_000
# SQLSTATE classes and codes by which PostgreSQL says "not now" rather than "wrong": connection exceptions, a lost
# race with another transaction, too many connections, shutting down, crashed, starting up, idle session ended.
_AWAY_STATES = ("08", "40", "53300", "57P01", "57P02", "57P03", "57P05")
_AWAY_WORDS = ("unable to open database file", "database is locked", "disk i/o error")


class Database:
    """One SQL database and the two ways to use it: `write()` and `read()`.

    Attributes:
        name: What people call it: "ledger", "source app".
        dialect: Which of the two supported databases it is.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        owned: bool = False,
        schema: str | None = None,
        statement_timeout: timedelta | None = None,
    ) -> None:
        """Prepares the connection; nothing is opened before the first use.

        Args:
            url: `sqlite:///path`, `postgresql://…` or `postgres://…`.
            name: What to call it in errors.
            owned: SQLite only: the file is maintd's own, so its journal may be set to WAL. An application's file keeps
                the journal its owner chose.
            schema: PostgreSQL only: the schema of tables that name none.
            statement_timeout: PostgreSQL only: no statement runs longer.

        Raises:
            Problems: The URL is not one of a supported database, or its driver is not installed.
        """
        self.name = name
        self.url = parse_url(url, name=name)
        self.dialect: Dialect = "sqlite" if self.url.get_backend_name() == "sqlite" else "postgresql"
        self._owned = owned
        self._schema = schema
        self._statement_timeout = statement_timeout
        self.engine = self._engine()

    def __repr__(self) -> str:
        return f"Database({self.name!r}, {self.where!r})"

    @property
    def where(self) -> str:
        """Its URL without the password."""
        return self.url.render_as_string(hide_password=True)

    def _engine(self) -> Engine:
        if self.dialect == "sqlite":
            engine = sa.create_engine(
                self.url, connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
            )
            sa.event.listen(engine, "connect", self._prepare_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
            return engine
        engine = sa.create_engine(
            self.url,
            pool_size=4,
            max_overflow=4,
            pool_pre_ping=True,
            connect_args={"prepare_threshold": None, "connect_timeout": 10, "application_name": "maintd"},
            execution_options={"schema_translate_map": {None: self._schema}} if self._schema else {},
        )
        sa.event.listen(engine, "begin", self._begin_postgresql)
        return engine

    def _prepare_sqlite(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        journal = ["journal_mode = WAL"] if self._owned else []
        for pragma in (*journal, "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}").close()
        # Not every SQLite is built with its mathematical functions.
        connection.create_function(
            "sqrt", 1, lambda x: None if x is None else math.sqrt(x), deterministic=True
        )

    def _begin_postgresql(self, connection: Connection) -> None:
        settings = ["SET LOCAL synchronous_commit = on", "SET LOCAL TIME ZONE 'UTC'"]
        if connection.get_execution_options().get("maintd_read_only"):
            settings.append("SET TRANSACTION READ ONLY")
        if self._statement_timeout is not None:
            settings.append(
                f"SET LOCAL statement_timeout = {int(self._statement_timeout.total_seconds() * 1000)}"
            )
        connection.exec_driver_sql("; ".join(settings))

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that may write; committed at the end of the block, rolled back on any error.

        Raises:
            Unavailable: The database does not answer.
        """
        with self._answering(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that cannot write: the database itself refuses.

        Raises:
            Unavailable: The database does not answer.
        """
        with self._answering(), self.engine.connect() as connection:
            connection = connection.execution_options(maintd_read_only=True)
            with connection.begin():
                try:
                    if self.dialect == "sqlite":
                        connection.exec_driver_sql("PRAGMA query_only = ON")
                    yield connection
                finally:
                    if self.dialect == "sqlite" and not connection.invalidated:
                        connection.exec_driver_sql("PRAGMA query_only = OFF")

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, InterfaceError) as error:
            if not is_away(error):
                raise
            lost = "gave way to another transaction, which can be tried again"
            what = lost if _gave_way(error) else "does not answer"
            raise Unavailable(f"the {self.name} ({self.where}) {what}: {first_line(error)}") from error

    def dispose(self) -> None:
        """Closes what is open."""
        self.engine.dispose()


def parse_url(url: str, *, name: str) -> sa.URL:
    """Reads a database URL and picks the driver.

    Raises:
        Problems: Not a URL, or not of a supported database.
    """
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except ArgumentError:
        # The URL itself may hold a password: it is never repeated.
        parsed, backend = None, ""
    if parsed is not None and backend in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed is not None and backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise Problems([Problem(where=name, what="a SQLite database in memory cannot be shared by processes",
                                    cure="give a path: sqlite:////var/lib/maintd/ledger.db")])  # fmt: skip
        return parsed
    raise Problems([Problem(where=name, what="the URL is not one of a database that maintd knows",
                            cure="write sqlite:////path/to/file.db or postgresql://user@host/name")])  # fmt: skip


def is_away(error: DBAPIError) -> bool:
    """Whether the database did not answer, as against: it answered that the statement is wrong."""
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_AWAY_STATES)
    words = str(error.orig).lower()
    if type(error.orig).__module__.startswith("sqlite3"):
        return any(word in words for word in _AWAY_WORDS)
    return True  # psycopg gives no SQLSTATE when the connection itself failed


def _gave_way(error: DBAPIError) -> bool:
    """Whether a transaction lost against another (SQLSTATE class 40: deadlock, serialization failure)."""
    return str(getattr(error.orig, "sqlstate", None) or "").startswith("40")


def first_line(error: BaseException) -> str:
    """What a driver said, in one line, without the statement and its parameters."""
    original = getattr(error, "orig", None) or error
    return (str(original).strip().splitlines() or [type(original).__name__])[0]


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("maintd_read_only")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def sqlite_path(url: sa.URL) -> Path | None:
    """The file of a SQLite URL, None for other databases."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


class Instant(sa.TypeDecorator[datetime]):
    """An aware UTC datetime, kept as such by PostgreSQL and as naive UTC text by SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant must be aware")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
