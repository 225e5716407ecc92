"""The Celery application: every setting, in one function."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu.entity import Queue as KombuQueue

from maintd.config.settings import Settings
from maintd.execution.queues import Queue
from maintd.keyspace import LOCK, PREFIX, REDBEAT_PREFIX


def make_app(settings: Settings, *, redis_url: str) -> Celery:
    """A Celery application on the given Redis; it has no tasks yet.

    Args:
        settings: For the timeouts.
        redis_url: `redis://`, `rediss://` or `unix://`.
    """
    app = Celery("maintd", set_as_current=False)
    app.conf.update(
        broker_url=_kombu_url(redis_url),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport_options(settings),
        # Nothing reads results: the ledger has them.
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        result_backend=None,
        # A token may come twice, but it should not be lost more easily than it must.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # JSON only: whoever can write to the broker must not be able to run code.
        task_serializer="json",
        accept_content=["json"],
        timezone="UTC",
        enable_utc=True,
        task_queues=[KombuQueue(queue.value) for queue in Queue],
        task_default_queue=Queue.CONTROL.value,
        task_create_missing_queues=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_state_db=None,
        # RedBeat shares the server, under keys of our own.
        redbeat_redis_url=redis_url,
        redbeat_redis_options={},
        redbeat_key_prefix=REDBEAT_PREFIX,
        redbeat_lock_key=LOCK,
        beat_max_loop_interval=settings.tick.total_seconds(),
    )
    return app


def _transport_options(settings: Settings) -> dict[str, Any]:
    return {
        "global_keyprefix": PREFIX,
        "visibility_timeout": settings.visibility_timeout.total_seconds(),
        # The defaults look for unacknowledged messages every 10 × 10 s.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        # Without these a half-open connection hangs for ever.
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "health_check_interval": 25,
    }


def _kombu_url(redis_url: str) -> str:
    """Celery spells a Unix socket differently from redis-py and RedBeat."""
    scheme, _, rest = redis_url.partition("://")
    return f"redis+socket://{rest}" if scheme == "unix" else redis_url
