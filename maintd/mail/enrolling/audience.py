"""Asking a source who gets a mail: the user's own statement, read-only, streamed."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from maintd.database import Database, first_line, is_away
from maintd.errors import JobFailed
from maintd.mail.campaign import SQL_PREFIX, CampaignSpec

CHUNK = 2000
# Comments, then the first word. What else could stand there is no question: ATTACH makes a file even when it may not
# write, and PRAGMA and SET change the connection.
_BEFORE = r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/|\()*"
_QUESTION = re.compile(rf"{_BEFORE}(?:SELECT|WITH|VALUES|TABLE)\b", re.IGNORECASE | re.DOTALL)
#: A query whose rows every recipient shares is kept with the campaign: it must stay small.
MAX_SHARED_ROWS = 1000

Row = dict[str, Any]


@contextlib.contextmanager
def open_audience(source: Database, sql: str, *, key: str) -> Iterator[tuple[list[str], Iterator[list[Row]]]]:
    """Runs a statement and gives its column names and its rows in chunks.

    Args:
        source: Where it runs, in a transaction that cannot write.
        sql: One whole statement.
        key: The job's key that names it, for errors.

    Raises:
        JobFailed: It is no query, or the database refuses it; in the middle of the rows too.
        Unavailable: The source does not answer.
    """
    if not _QUESTION.match(sql):
        raise JobFailed(f"{key}: the statement must be one SELECT (or WITH … SELECT), and there is none")
    # Not around the caller's block as well: what fails in there is none of the source's refusals.
    with source.read() as connection:
        with _refusals(source, key=key):
            result = _execute(connection, sql)
            columns = list(result.keys())
        yield columns, _chunks(columns, result, source, key=key)


@contextlib.contextmanager
def _refusals(source: Database, *, key: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        if isinstance(error, DBAPIError) and is_away(error):
            raise  # the database tells that in its own words
        raise JobFailed(f"{key}: the {source.name} refuses the statement: {first_line(error)}") from error


def ask(source: Database, sql: str, *, key: str, limit: int = MAX_SHARED_ROWS) -> list[Row]:
    """All rows of a small query.

    Raises:
        JobFailed: The database refuses it, or it has more than `limit` rows.
        Unavailable: The source does not answer.
    """
    rows: list[Row] = []
    with open_audience(source, sql, key=key) as (_, chunks):
        for chunk in chunks:
            rows.extend(chunk)
            if len(rows) > limit:
                raise JobFailed(f"{key}: more than {limit:,} rows; add a LIMIT to the statement")
    return rows


def ask_shared(source: Database, spec: CampaignSpec, files: Mapping[str, str]) -> dict[str, list[Row]]:
    """The rows of every query that all recipients share, by the name that the template has for them.

    Raises:
        JobFailed: The database refuses one, or it has too many rows.
        Unavailable: The source does not answer.
    """
    return {
        name: ask(source, files[SQL_PREFIX + file], key=f"shared.{name} ({file})")
        for name, file in spec.shared.items()
    }


def columns_of(source: Database, sql: str, *, key: str) -> list[str]:
    """The columns a statement gives; no row is read.

    Raises:
        JobFailed: The database refuses it.
        Unavailable: The source does not answer.
    """
    with open_audience(source, sql, key=key) as (columns, _):
        return columns


def _execute(connection: Connection, sql: str) -> CursorResult[Any]:
    # Without parameters the driver reads no % and no : in the user's text. On PostgreSQL the rows stay on the server.
    options = {"no_parameters": True, "stream_results": True, "max_row_buffer": CHUNK}
    return connection.exec_driver_sql(sql.strip().rstrip(";"), execution_options=options)


def _chunks(
    columns: Sequence[str], result: CursorResult[Any], source: Database, *, key: str
) -> Iterator[list[Row]]:
    partitions = result.partitions(CHUNK)
    while True:
        with _refusals(source, key=key):
            partition = next(partitions, None)
        if partition is None:
            return
        yield [
            {name: _plain(value, column=name) for name, value in zip(columns, row, strict=True)}
            for row in partition
        ]


def _plain(value: Any, *, column: str) -> Any:
    """A database value in the form in which it is kept: JSON has no decimals, no dates and no NaN."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item, column=column) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item, column=column) for name, item in value.items()}
    raise JobFailed(
        f'audience: column "{column}" has a value of type {type(value).__name__}, which a mail cannot use'
    )
