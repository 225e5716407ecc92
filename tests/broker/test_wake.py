from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from maintd.broker.wake import open_wake
from maintd.config.load import load_settings
from maintd.execution.queues import Queue
from maintd.keyspace import Keyspace
from tests.cli.conftest import redis_url as redis_url
from tests.cli.conftest import valkey_server as valkey_server


@pytest.mark.parametrize(
    ("queue", "slots"), [(Queue.MAIL_URGENT, 1), (Queue.MAIL_BULK, 3), (Queue.CONTROL, 2), (Queue.RATINGS, 2)]
)
def test_no_more_are_woken_than_there_are_processes(
    tmp_path: Path, redis_url: str, queue: Queue, slots: int
) -> None:
    settings = load_settings(
        environ={
            "MAINTD_STATE_DIR": str(tmp_path),
            "MAINTD_REDIS_URL": redis_url,
            "MAINTD_MAIL_PROCESSES": "3",
            "MAINTD_WORKER_PROCESSES": "2",
        },
        env_file=None,
    )
    with open_wake(settings) as wake, closing(Keyspace(redis_url)) as keyspace:
        for _ in range(5):
            wake({queue})
        assert keyspace.queue_length(queue) == slots
