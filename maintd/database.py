"""Opening SQLite and PostgreSQL the same careful way: the ledger's database and the applications' own.

SQLite: every write transaction is `BEGIN IMMEDIATE` (a deferred one that upgrades fails at once, whatever the busy
timeout), with `synchronous=FULL`; in maintd's own files WAL. PostgreSQL: settings ride in each transaction (`SET
LOCAL`), so a PgBouncer in transaction mode may stand between.

Nobody waits for ever for somebody who is gone: a silent server is given up, and on the ledger no transaction stands
idle or waits for a lock for long.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from maintd.errors import Problem, Problems, Unavailable

Dialect = Literal["sqlite", "postgresql"]

_BUSY_TIMEOUT_MS = 30_000
_LOCKED = "database is locked"
# A host that is gone says nothing. After half a minute without a sign of life libpq gives the connection up; on a Unix
# socket these mean nothing to it.
_KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
# Longer than any transaction on the ledger takes that makes progress.
_LOCK_TIMEOUT = timedelta(seconds=5)
# SQLSTATE classes and codes by which PostgreSQL says "not now" rather than "wrong": connection exceptions, a lost
# race with another transaction, too many connections, shutting down, crashed, starting up, idle transaction or session
# ended.
_AWAY_STATES = ("08", "40", "53300", "57P01", "57P02", "57P03", "25P03", "57P05")
_AWAY_WORDS = ("unable to open database file", _LOCKED, "disk i/o error")
# Cancelled by a timeout, of the statement or of its wait for a lock. An application's tables may be too big for a
# statement, however often it is tried; maintd's own statements are short, so somebody else holds them up.
_SLOW_STATES = ("57014", "55P03")
_INTERRUPTED = "interrupted"
# Of SQLite's virtual machine, between two looks at the time: well below a millisecond.
_LOOK_EVERY = 10_000


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
        idle_timeout: timedelta | None = None,
    ) -> None:
        """Prepares the connection; nothing is opened before the first use.

        Args:
            url: `sqlite:///path`, `postgresql://…` or `postgres://…`.
            name: What to call it in errors.
            owned: It is maintd's own. A SQLite file's journal may then be set to WAL (an application's file keeps the
                one its owner chose), and a statement that takes too long is worth another try.
            schema: PostgreSQL only: the schema of tables that name none.
            statement_timeout: No statement runs longer.
            idle_timeout: PostgreSQL only: the server ends a transaction that stands idle for so long, because its
                process was stopped or its host is lost; and none waits longer than 5 s for a lock.

        Raises:
            Problems: The URL is not one of a supported database, or its driver is not installed.
        """
        self.name = name
        self.url = parse_url(url, name=name)
        self.dialect: Dialect = "sqlite" if self.url.get_backend_name() == "sqlite" else "postgresql"
        self._owned = owned
        self._schema = schema
        self._statement_timeout = statement_timeout
        self._idle_timeout = idle_timeout
        self.engine = self._engine()

    def __repr__(self) -> str:
        return f"Database({self.name!r}, {self.where!r})"

    @property
    def where(self) -> str:
        """Its URL without the password."""
        return self.url.render_as_string(hide_password=True)

    def _engine(self) -> Engine:
        try:
            engine = self._sqlite_engine() if self.dialect == "sqlite" else self._postgresql_engine()
        except ModuleNotFoundError:
            what = "PostgreSQL needs a driver that is not installed"
            raise Problems(
                [Problem(where=self.name, what=what, cure="pip install 'maintd[postgres]'")]
            ) from None
        sa.event.listen(engine, "handle_error", _keep_rows_out)
        return engine

    def _sqlite_engine(self) -> Engine:
        engine = sa.create_engine(
            self.url,
            hide_parameters=True,
            connect_args={
                "timeout": _BUSY_TIMEOUT_MS / 1000,
                "check_same_thread": False,
                "factory": _TimedConnection,
            },
        )
        sa.event.listen(engine, "connect", self._prepare_sqlite)
        sa.event.listen(engine, "checkout", self._see_that_it_is_the_file)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _postgresql_engine(self) -> Engine:
        engine = sa.create_engine(
            self.url,
            hide_parameters=True,
            pool_size=4,
            max_overflow=4,
            pool_pre_ping=True,
            connect_args={
                "prepare_threshold": None,
                "connect_timeout": 10,
                "application_name": "maintd",
                **_KEEPALIVE,
            },
            execution_options={"schema_translate_map": {None: self._schema}} if self._schema else {},
        )
        sa.event.listen(engine, "begin", self._begin_postgresql)
        return engine

    def _see_that_it_is_the_file(self, _: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        """A file that was put in the place of another is the database from now on."""
        if record.info["file"] != (now := self._file()) and now is not None:
            raise DisconnectionError(f"{self.where} is another file now")

    def _file(self) -> tuple[int, int] | None:
        path = sqlite_path(self.url)
        try:
            found = path.stat() if path is not None else None
        except OSError:
            return None
        return (found.st_dev, found.st_ino) if found is not None else None

    def _prepare_sqlite(self, connection: Any, record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        connection.statement_timeout = self._statement_timeout
        if self._owned:
            _write_ahead(connection)
        for pragma in ("synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}").close()
        # Not every SQLite is built with its mathematical functions.
        connection.create_function(
            "sqrt", 1, lambda x: None if x is None else math.sqrt(x), deterministic=True
        )
        record.info["file"] = self._file()

    def _begin_postgresql(self, connection: Connection) -> None:
        settings = ["SET LOCAL synchronous_commit = on", "SET LOCAL TIME ZONE 'UTC'"]
        if connection.get_execution_options().get("maintd_read_only"):
            settings.append("SET TRANSACTION READ ONLY")
        timeouts = {"statement_timeout": self._statement_timeout}
        if self._idle_timeout is not None:
            timeouts |= {
                "idle_in_transaction_session_timeout": self._idle_timeout,
                "lock_timeout": _LOCK_TIMEOUT,
            }
        settings += [f"SET LOCAL {name} = {_ms(value)}" for name, value in timeouts.items() if value]
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
        except DBAPIError as error:  # an idle transaction's end is an InternalError
            slow = self._owned and _is_slow(error)
            if not (slow or is_away(error)):
                raise
            what = "does not answer in time" if slow else _why_away(error)
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


def insert_many(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts rows in a fraction of the usual time, on PostgreSQL with one COPY.

    It is part of the connection's transaction. There is one row at least, and all have the same columns.

    Raises:
        DBAPIError: As an INSERT would.
        KeyError: The table has no such column.
    """
    dialect = connection.dialect
    if unknown := rows[0].keys() - table.c.keys():
        raise KeyError(f"{table.name} has no column {', '.join(sorted(unknown))}")
    columns = [column for column in table.c if column.name in rows[0]]
    values = zip(*(_bound(column, rows, dialect) for column in columns), strict=True)
    names = [column.name for column in columns]
    if dialect.name == "postgresql":
        _copy_in(connection, table, names, values)
    else:
        statement = sa.insert(table).compile(dialect=dialect, column_keys=names)
        connection.exec_driver_sql(str(statement), list(values))


def _bound(column: sa.Column[Any], rows: Sequence[Mapping[str, Any]], dialect: sa.Dialect) -> Iterable[Any]:
    """The values of a column in the form that the driver takes."""
    values = [row[column.name] for row in rows]
    # What the drivers' own wrappings of these two cost is as much as all the rest of a row.
    if isinstance(column.type, sa.JSON):
        return map(json.dumps, values)
    if isinstance(column.type, sa.LargeBinary):
        return values
    bind = column.type.dialect_impl(dialect).bind_processor(dialect)
    return map(bind, values) if bind else values


def _copy_in(
    connection: Connection, table: sa.Table, names: Iterable[str], rows: Iterable[Sequence[Any]]
) -> None:
    quote, schema = connection.dialect.identifier_preparer.quote, connection.schema_for_object(table)
    into = f"{quote(schema)}.{quote(table.name)}" if schema else quote(table.name)
    driver: Any = connection.connection.driver_connection
    with (
        _like_an_insert(connection),
        driver.cursor() as cursor,
        cursor.copy(f"COPY {into} ({', '.join(map(quote, names))}) FROM STDIN") as copy,
    ):
        for row in rows:
            copy.write_row(row)


@contextlib.contextmanager
def _like_an_insert(connection: Connection) -> Iterator[None]:
    """Raises the driver's errors as SQLAlchemy raises those of what goes through it."""
    dialect, driver_error = connection.dialect, connection.dialect.loaded_dbapi.Error
    try:
        yield
    except driver_error as error:
        error.args = tuple(_cut(part) if isinstance(part, str) else part for part in error.args)
        lost = dialect.is_disconnect(error, connection.connection.driver_connection, None)
        raise DBAPIError.instance(
            "COPY", None, error, driver_error, connection_invalidated=lost, dialect=dialect
        ) from error


def is_away(error: DBAPIError) -> bool:
    """Whether the database did not answer, as against: it answered that the statement is wrong."""
    if error.connection_invalidated:
        return True
    if state := _state(error):
        return state.startswith(_AWAY_STATES)
    words = str(error.orig).lower()
    if isinstance(error.orig, sqlite3.Error):
        return any(word in words for word in _AWAY_WORDS)
    # psycopg gives no SQLSTATE when the connection itself failed, nor when it refuses a value by itself.
    return isinstance(error, OperationalError | InterfaceError)


def _is_slow(error: DBAPIError) -> bool:
    """Whether the database gave a statement up because of its own time limits."""
    if isinstance(error.orig, sqlite3.Error):
        return str(error.orig).startswith(_INTERRUPTED)
    return _state(error) in _SLOW_STATES


def _why_away(error: DBAPIError) -> str:
    gave_way = _state(error).startswith("40")  # deadlock, serialization failure
    return "gave way to another transaction, which can be tried again" if gave_way else "does not answer"


def _state(error: DBAPIError) -> str:
    """The SQLSTATE; empty if there is none, as on SQLite."""
    return str(getattr(error.orig, "sqlstate", None) or "")


def first_line(error: BaseException) -> str:
    """What a driver said, in one line, without the statement and its parameters."""
    original = getattr(error, "orig", None) or error
    return (str(original).strip().splitlines() or [type(original).__name__])[0]


def _keep_rows_out(context: ExceptionContext) -> None:
    """Cuts an error's text to its first line: behind it PostgreSQL may quote the whole row that it refused."""
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None:
            error.args = tuple(_cut(part) if isinstance(part, str) else part for part in error.args)


def _cut(text: str) -> str:
    return text.partition("\n")[0]


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


class _TimedConnection(sqlite3.Connection):
    """Gives SQLite the statement timeout that it does not have."""

    statement_timeout: timedelta | None = None

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or _TimedCursor)

    @contextlib.contextmanager
    def in_time(self) -> Iterator[None]:
        """Interrupts the block when it keeps the database busy for longer than the statement timeout."""
        if self.statement_timeout is None:
            yield
            return
        until_s = time.monotonic() + self.statement_timeout.total_seconds()
        self.set_progress_handler(lambda: time.monotonic() > until_s, _LOOK_EVERY)
        try:
            yield
        except sqlite3.OperationalError as error:
            if str(error) != _INTERRUPTED:
                raise
            raise sqlite3.OperationalError(f"{_INTERRUPTED} due to statement timeout") from error
        finally:
            self.set_progress_handler(None, 0)


class _TimedCursor(sqlite3.Cursor):
    """Each fetch has the whole time, as on PostgreSQL: between two of them a reader may take as long as it likes."""

    connection: _TimedConnection

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        with self.connection.in_time():
            return super().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Self:
        with self.connection.in_time():
            return super().executemany(sql, parameters)

    def fetchone(self) -> Any:
        with self.connection.in_time():
            return super().fetchone()

    def fetchmany(self, size: int | None = None) -> list[Any]:
        with self.connection.in_time():
            return super().fetchmany(self.arraysize if size is None else size)

    def fetchall(self) -> list[Any]:
        with self.connection.in_time():
            return super().fetchall()


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Lets readers and a writer work beside each other.

    The first one ever to come changes the file, and of several that come first all but one are told at once that it is
    locked: for this SQLite lets nobody wait.
    """
    until_s = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as error:
            if not str(error).startswith(_LOCKED) or time.monotonic() > until_s:
                raise
        time.sleep(0.01)


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
