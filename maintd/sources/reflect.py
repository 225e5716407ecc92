"""Tables and columns named in job files, looked up in the database itself: the only way an identifier gets into SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import NoSuchTableError

from maintd.errors import JobFailed, did_you_mean


def table(connection: Connection, name: str, *, key: str) -> sa.Table:
    """Reflects a table or `schema.table`.

    Args:
        connection: Of the source.
        name: As written in the job file.
        key: The job file's key that names it, for the error.

    Raises:
        JobFailed: No such table; the nearest name is suggested.
    """
    schema, _, bare = name.rpartition(".")
    try:
        return sa.Table(
            bare, sa.MetaData(), schema=schema or None, autoload_with=connection, resolve_fks=False
        )
    except NoSuchTableError:
        known = sa.inspect(connection).get_table_names(schema=schema or None)
        raise JobFailed(f'{key}: the source has no table "{name}"; {did_you_mean(bare, known)}') from None


def column(of: sa.Table, name: str, *, key: str) -> sa.Column[Any]:
    """One column of a reflected table.

    Raises:
        JobFailed: No such column; the nearest name is suggested.
    """
    if name not in of.columns:
        raise JobFailed(
            f'{key}: table "{of.name}" has no column "{name}"; {did_you_mean(name, of.columns.keys())}'
        )
    return of.columns[name]
