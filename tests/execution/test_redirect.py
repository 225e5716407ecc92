"""Mail that goes elsewhere is no secret."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from dataclasses import replace

import pytest

from maintd.execution.queues import MAIL_QUEUES, Queue
from maintd.execution.runtime import Runtime
from maintd.execution.worker import Worker


@pytest.mark.parametrize(
    ("queues", "redirect", "warnings"),
    [
        (MAIL_QUEUES, "staging@acme.example", 1),
        (MAIL_QUEUES, None, 0),
        ({Queue.MAINTENANCE}, "a@b.example", 0),
    ],
)
def test_whoever_mails_to_another_address_warns_of_it_once_at_the_start(
    runtime: Runtime,
    caplog: pytest.LogCaptureFixture,
    queues: Collection[Queue],
    redirect: str | None,
    warnings: int,
) -> None:
    settings = runtime.settings.model_copy(update={"mail_redirect": redirect})
    with contextlib.closing(
        Worker(replace(runtime, settings=settings), stopping=lambda: False, queues=queues)
    ) as worker:
        for queue in queues:
            worker.work(queue)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == warnings
    assert all(str(redirect) in message for message in said)
