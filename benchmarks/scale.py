"""A ledger with ten million settled deliveries: what each step of a mailing costs there, against ten thousand.

    python -m benchmarks.scale [--deliveries 10000000] [--recipients 1000000] [--write]

Then a million recipients are enrolled, alone and beside a sender, and their enrolment is wiped. `--write` puts the
figures into docs/benchmarks.md. It wants some ten gigabytes in the temporary directory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console
from rich.markdown import Markdown
from sqlalchemy.engine import Connection

from benchmarks.mailing import add_edition, edition_of
from benchmarks.page import surroundings, table, version_of, write_section
from benchmarks.servers import postgresql
from maintd.clock import SystemClock
from maintd.database import Database
from maintd.errors import Interrupted
from maintd.ledger import batches, campaigns, deliveries
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Outcome
from maintd.ledger.engine import migrate, open_ledger
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.mail.enrol import enrol

EACH = 100_000  # deliveries of one old campaign
RUNNING = 5_000  # of the one that is measured
WINDOW = 256
ROUNDS = 15
FEW = 10_000
TARGETS = {"postgresql": 60, "sqlite": 120, "resumed_s": 5}
NOW = SystemClock().now()
_KEYS = {
    "postgresql": "decode(md5(k || '-' || c), 'hex')",
    "sqlite": "randomblob(16)",
}
_SERIES = {
    "postgresql": "generate_series(0, :last) AS s(k)",
    "sqlite": "(WITH RECURSIVE s(k) AS (SELECT 0 UNION ALL SELECT k + 1 FROM s WHERE k < :last) SELECT k FROM s)",
}
