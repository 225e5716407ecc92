"""Logging: one line an event, plain at a terminal, JSON for machines. Never a secret, never an address."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["auto", "plain", "json"]
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD and key != "data"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and whatever was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class PlainFormatter(logging.Formatter):
    """`07:15:02 worker[4711] info: message (job=nightly run=12)`."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        name = record.name.removeprefix("maintd.")
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        line = f"{at} {name}[{record.process}] {record.levelname.lower()}: {record.getMessage()}"
        line += f" ({fields})" if fields else ""
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def configure(*, level: str, format: LogFormat) -> None:
    """Sends everything to standard error, which systemd and containers collect; replaces earlier handlers."""
    as_json = format == "json" or (format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("celery", "kombu", "redbeat", "alembic", "amqp"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
