"""Applications' databases, by the names that job files use for them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from maintd.database import Database, first_line, sqlite_path
from maintd.errors import JobFailed, Unavailable, did_you_mean


class Sources:
    """The configured sources, each opened at its first use and kept."""

    def __init__(self, urls: Mapping[str, str], *, statement_timeout: timedelta) -> None:
        """Takes the URLs by lower-case source name, from `MAINTD_SOURCE_<NAME>_URL`."""
        self._urls = dict(urls)
        self._statement_timeout = statement_timeout
        self._open: dict[str, Database] = {}

    def get(self, name: str) -> Database:
        """The database of that name.

        Raises:
            JobFailed: No such source is configured, or it is a SQLite file that does not exist, which opening it would
                change.
            Problems: Its URL is not usable.
        """
        if name not in self._urls:
            hint = did_you_mean(name, self._urls) or "no source is configured"
            raise JobFailed(
                f'source "{name}" is not configured ({hint}); set MAINTD_SOURCE_{name.upper()}_URL'
            )
        if name not in self._open:
            source = Database(
                self._urls[name], name=f"source {name}", statement_timeout=self._statement_timeout
            )
            path = sqlite_path(source.url)
            if path is not None and not path.exists():
                raise JobFailed(f"the {source.name} is the file {path}, which does not exist")
            self._open[name] = source
        return self._open[name]

    def dispose(self) -> None:
        """Closes every source that was opened."""
        for database in self._open.values():
            database.dispose()
        self._open.clear()


def count_tables(source: Database) -> int:
    """How many tables a source has: the least that shows that it answers, and which database it is.

    Raises:
        JobFailed: It answers, but not as a database does: a SQLite file that is none.
        Unavailable: The source does not answer.
    """
    try:
        with source.read() as connection:
            return len(sa.inspect(connection).get_table_names())
    except Unavailable:
        raise
    except DBAPIError as error:
        raise JobFailed(f"the {source.name} ({source.where}) refuses: {first_line(error)}") from error
