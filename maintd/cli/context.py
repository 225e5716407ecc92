"""What commands share: settings and runtime, opened when first needed and closed at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import click

from maintd import log
from maintd.clock import SystemClock
from maintd.config.load import from_process
from maintd.config.settings import Settings
from maintd.execution.runtime import Runtime, open_runtime


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
        runtime = open_runtime(self.settings, clock=self.clock)
        try:
            yield runtime
        finally:
            runtime.close()


pass_context = click.make_pass_decorator(Context)
