"""What every daemon and command works with: settings, ledger, sources, clock, and a name for itself."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cached_property

from maintd.clock import Clock
from maintd.config.settings import Settings
from maintd.database import Database
from maintd.ledger.engine import open_ledger
from maintd.ledger.timeline import Timeline
from maintd.ledger.witness import Witness
from maintd.mail.sending.allowance import Limits
from maintd.sources.connect import Sources


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The opened surroundings of one process.

    Attributes:
        owner: `host:pid`, written into every claim of this process.
    """

    settings: Settings
    ledger: Database
    sources: Sources
    clock: Clock
    owner: str

    @cached_property
    def timeline(self) -> Timeline:
        """The ledger's history as this host knows it."""
        return Timeline(self.ledger, witness=self.witness, host=self.owner.partition(":")[0])

    @property
    def witness(self) -> Witness:
        """What this host has seen of the ledger."""
        return Witness(self.settings.state_dir / "witness")

    def close(self) -> None:
        """Closes every database."""
        self.sources.dispose()
        self.ledger.dispose()


def open_runtime(settings: Settings, *, clock: Clock) -> Runtime:
    """Opens the ledger; sources are opened when they are first used.

    Raises:
        SchemaUnknown: The ledger has not the schema of this version.
        Unavailable: The ledger does not answer.
    """
    return Runtime(
        settings=settings,
        ledger=open_ledger(
            settings.database_url.get_secret_value(),
            statement_timeout=settings.statement_timeout,
            idle_timeout=settings.lease,  # by then its claim is taken over anyway
        ),
        sources=open_sources(settings),
        clock=clock,
        owner=f"{socket.gethostname()}:{os.getpid()}",
    )


def limits_of(settings: Settings) -> Limits:
    """The limits of these settings."""
    lanes = {name: lane.rate for name, lane in settings.lanes.items()}
    return Limits(relay=settings.smtp_limit, lanes=lanes)


def open_sources(settings: Settings) -> Sources:
    """The sources of these settings."""
    urls = {name: url.get_secret_value() for name, url in settings.source_urls.items()}
    return Sources(urls, statement_timeout=settings.statement_timeout)
