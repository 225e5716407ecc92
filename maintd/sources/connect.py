"""Applications' databases, by the names that job files use for them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from maintd.database import Database
from maintd.errors import JobFailed, did_you_mean


class Sources:
    """The configured sources, each opened at its first use and kept."""

    def __init__(self, urls: Mapping[str, str], *, statement_timeout: timedelta) -> None:
        """Takes the URLs by lower-case source name, from `MAINTD_SOURCE_<NAME>_URL`."""
        self._urls = dict(urls)
        self._statement_timeout = statement_timeout
        self._open: dict[str, Database] = {}

    @property
    def names(self) -> list[str]:
        """The configured names, sorted."""
        return sorted(self._urls)

    def get(self, name: str) -> Database:
        """The database of that name.

        Raises:
            JobFailed: No such source is configured.
            Problems: Its URL is not usable.
        """
        if name not in self._urls:
            hint = did_you_mean(name, self._urls) or "no source is configured"
            raise JobFailed(f'source "{name}" is not configured ({hint}); set MAINTD_SOURCE_{name.upper()}_URL')
        if name not in self._open:
            self._open[name] = Database(
                self._urls[name], name=f"source {name}", statement_timeout=self._statement_timeout
            )
        return self._open[name]

    def dispose(self) -> None:
        """Closes every source that was opened."""
        for database in self._open.values():
            database.dispose()
        self._open.clear()
