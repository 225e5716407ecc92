"""What commands share: settings and runtime, opened when first needed and closed at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import click
from sqlalchemy.exc import DBAPIError

from maintd import log
from maintd.clock import SystemClock
from maintd.config.load import from_process
from maintd.config.settings import Settings
from maintd.database import first_line
from maintd.errors import MaintdError
from maintd.execution.runtime import Runtime, open_runtime
from maintd.ledger.engine import ledger_database
from maintd.ledger.timeline import LedgerHeld, Timeline


class Context:
    """Made once for each command line; `@pass_context` hands it to the command."""

    def __init__(self, *, env_file: Path | None) -> None:
        self.env_file = env_file
        self.clock = SystemClock()

    @cached_property
    def settings(self) -> Settings:
        """The settings of this process; reading them also sets up logging.

        Raises:
            Problems: Everything wrong with them.
        """
        settings = from_process(env_file=self.env_file)
        log.configure(level=settings.log_level, format=settings.log_format)
        return settings

    @contextlib.contextmanager
    def runtime(self) -> Iterator[Runtime]:
        """The opened ledger and the sources.

        Raises:
            Unavailable: The ledger does not answer.
            SchemaUnknown: It has not the schema of this version.
        """
        with self.naming_the_ledger():
            runtime = open_runtime(self.settings, clock=self.clock)
        try:
            yield runtime
        finally:
            runtime.close()

    def say_if_held(self, runtime: Runtime) -> None:
        """Says on standard error that nothing will come of what was asked for while the ledger is held."""
        if (reason := Timeline(runtime.ledger).trouble()) is not None:
            click.echo(f"{LedgerHeld(reason)}", err=True)

    @contextlib.contextmanager
    def naming_the_ledger(self) -> Iterator[None]:
        """Says which ledger it is that refuses.

        Raises:
            MaintdError: It does; where it is and what to do.
        """
        try:
            yield
        except DBAPIError as error:
            where = ledger_database(self.settings.database_url.get_secret_value()).where
            raise MaintdError(
                f"the ledger ({where}) refuses: {first_line(error)}; "
                "correct MAINTD_DATABASE_URL, or put a backup in its place"
            ) from error

    def make_state_dir(self) -> None:
        """Makes the state directory, if need be.

        Raises:
            MaintdError: It cannot be made.
        """
        path = self.settings.state_dir
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise MaintdError(
                f"MAINTD_STATE_DIR: {path} cannot be made: {error.strerror}; name another directory"
            ) from error


pass_context = click.make_pass_decorator(Context)
