"""maintd's own keys in Redis. Everything here can be lost at any time: the ledger has the truth.

| key | type | what |
|---|---|---|
| `maintd:<queue>` | list | wake tokens, written by Celery's transport |
| `maintd:unacked…`, `maintd:_kombu…` | hash, zset, set | the transport's own book-keeping |
| `maintd:redbeat:<job>` | hash | a job as RedBeat's tools show it |
| `maintd:redbeat::schedule` | zset | job keys by next instant, in whole seconds of UTC |
| `maintd:redbeat::jobs` | set | the keys of all jobs that are shown: some have no next instant |
| `maintd:redbeat::lock` | string | the token of the leading beat, with a time to live |
| `maintd:redbeat::mirror` | string | which state of which ledger those of the jobs were built from |
| `maintd:relay:<key>` | zset | leases on connections to a relay with a cap, by the ms in which they end; and a marker |
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from maintd.config.settings import Settings
from maintd.errors import ClaimLost, Unavailable

PREFIX = "maintd:"
REDBEAT_PREFIX = f"{PREFIX}redbeat:"
SCHEDULE = f"{REDBEAT_PREFIX}:schedule"
JOBS = f"{REDBEAT_PREFIX}:jobs"
LOCK = f"{REDBEAT_PREFIX}:lock"
MIRROR = f"{REDBEAT_PREFIX}:mirror"
RELAY_PREFIX = f"{PREFIX}relay:"

# What Redis says itself, as against nothing at all: read-only, out of memory, still loading, wrong password.
_REFUSALS = (
    redis.ResponseError,
    redis.BusyLoadingError,
    redis.AuthenticationError,
    redis.exceptions.AuthorizationError,
)
_CONNECT_TIMEOUT_S = 5
_ANSWER_TIMEOUT_S = 10
_MIRROR_CHUNK = 500
_EMBEDDED_SOCKET = Path("valkey", "valkey.sock")

_RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
# KEYS: lock, schedule. ARGV: token, then key and score in turn; an empty score takes the key out.
_RESCHEDULE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('ZREM', KEYS[2], ARGV[i])
  else redis.call('ZADD', KEYS[2], ARGV[i + 1], ARGV[i]) end
end
return 1
"""
# KEYS: lock, jobs, then entry keys. ARGV: token, then one definition for each entry; an empty one deletes the entry.
_DEFINE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 3, #KEYS do
  local definition = ARGV[i - 1]
  if definition == '' then
    redis.call('DEL', KEYS[i])
    redis.call('SREM', KEYS[2], KEYS[i])
  else
    redis.call('HSET', KEYS[i], 'definition', definition, 'meta', '{"last_run_at": null}')
    redis.call('SADD', KEYS[2], KEYS[i])
  end
end
return 1
"""
_STAMP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""
# KEYS: leases of a relay. ARGV: cap, time to live in ms, "take" or "renew", tokens. Returns the tokens that hold now.
# The marker says which server process has seen every lease since when. Another one may have lost some, by a failover
# or a restart, and so may whoever finds no marker: it grants nothing until all that it may not know of have run out.
_LEASE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or 'unknown'
local marker = redis.call('ZRANGE', KEYS[1], -1, -1)[1] or ''
local opens = string.match(marker, '^server ' .. server .. ' from (%d+)$')
if not opens then
  opens = string.format('%d', now + ARGV[2])
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '+inf', '+inf')
  redis.call('ZADD', KEYS[1], '+inf', 'server ' .. server .. ' from ' .. opens)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local room = ARGV[1] - (redis.call('ZCARD', KEYS[1]) - 1)
local may_add = ARGV[3] == 'renew' or now >= tonumber(opens)
local holding = {}
for i = 4, #ARGV do
  local known = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if known or (may_add and room > 0) then
    if not known then room = room - 1 end
    redis.call('ZADD', KEYS[1], string.format('%d', now + ARGV[2]), ARGV[i])
    holding[#holding + 1] = ARGV[i]
  end
end
return holding
"""


def redis_url_of(settings: Settings) -> str:
    """Where Redis is: the configured one, else the socket of the server that `maintd up` embeds."""
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    return f"unix://{embedded_socket(settings)}"


def embedded_socket(settings: Settings) -> Path:
    """The Unix socket of the embedded server, in the state directory."""
    return settings.state_dir / _EMBEDDED_SOCKET


class Keyspace:
    """maintd's own connection to Redis. Every write of the leading beat compares its token first."""

    def __init__(self, url: str, *, patience: timedelta | None = None) -> None:
        """Prepares the connection; nothing is opened before the first use.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            patience: How long to wait, for a connection and for an answer, before it counts as away, without another
                try; None: as long as usual.
        """
        embedded = url.startswith("unix://") and url.endswith(f"/{_EMBEDDED_SOCKET}")
        self._which = (
            "it is the embedded server; is `maintd up` running?"
            if embedded
            else "it is the one of MAINTD_REDIS_URL"
        )
        self._client = redis.Redis.from_url(
            url,
            socket_connect_timeout=patience.total_seconds() if patience else _CONNECT_TIMEOUT_S,
            socket_timeout=patience.total_seconds() if patience else _ANSWER_TIMEOUT_S,
            health_check_interval=25,
            decode_responses=True,
            **({"retry": Retry(NoBackoff(), 0)} if patience else {}),
        )

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def ping(self) -> None:
        """Asks whether Redis is there.

        Raises:
            Unavailable: It is not.
        """
        with self._answering():
            self._client.ping()

    def maxmemory_policy(self) -> str:
        """What Redis does when its memory is full; empty when it will not say."""
        with self._answering():
            try:
                return str(self._client.info("memory").get("maxmemory_policy", ""))
            except redis.ResponseError:  # an access list (ACL) forbids INFO
                return ""

    def queue_length(self, queue: str) -> int:
        """Wake tokens waiting in a queue."""
        with self._answering():
            return self._client.llen(PREFIX + queue)

    def acquire_lock(self, token: str, *, ttl: timedelta) -> bool:
        """Tries to become the leader."""
        with self._answering():
            return bool(self._client.set(LOCK, token, nx=True, px=_ms(ttl)))

    def renew_lock(self, token: str, *, ttl: timedelta) -> bool:
        """Stays the leader; False when somebody else is."""
        with self._answering():
            return bool(self._client.eval(_RENEW, 1, LOCK, token, str(_ms(ttl))))

    def release_lock(self, token: str) -> None:
        """Steps down, if still the leader."""
        with self._answering():
            self._client.eval(_RELEASE, 1, LOCK, token)

    def leader_ttl(self) -> timedelta | None:
        """How long the present leader's lock still holds; None when nobody leads."""
        with self._answering():
            left_ms = self._client.pttl(LOCK)
        return timedelta(milliseconds=left_ms) if left_ms > 0 else None

    def take_leases(self, relay: str, tokens: Sequence[str], *, cap: int, ttl: timedelta) -> set[str]:
        """Grants new leases on connections to a relay as far as there is room; none while some may be unknown.

        Args:
            relay: What all processes call it.
            tokens: Names that nobody else has.
            cap: The most leases at any time.
            ttl: How long they hold unless they are renewed; equal in all calls.
        """
        return self._lease("take", relay, tokens, cap=cap, ttl=ttl)

    def renew_leases(self, relay: str, tokens: Sequence[str], *, cap: int, ttl: timedelta) -> set[str]:
        """Renews leases that their holder knows to hold still; one that was lost here as far as there is room."""
        return self._lease("renew", relay, tokens, cap=cap, ttl=ttl)

    def drop_leases(self, relay: str, tokens: Sequence[str]) -> None:
        """Ends leases."""
        with self._answering():
            self._client.zrem(RELAY_PREFIX + relay, *tokens)

    def _lease(self, verb: str, relay: str, tokens: Sequence[str], *, cap: int, ttl: timedelta) -> set[str]:
        with self._answering():
            held = self._client.eval(_LEASE, 1, RELAY_PREFIX + relay, str(cap), str(_ms(ttl)), verb, *tokens)
        return set(cast("list[str]", held))

    def mirrored(self) -> str | None:
        """What the mirror says it was built from; None when there is no mirror."""
        with self._answering():
            return cast("str | None", self._client.get(MIRROR))

    def due_jobs(self, *, now: datetime, limit: int) -> list[str]:
        """Names of the jobs whose instant has come, by the mirror."""
        with self._answering():
            keys = self._client.zrange(SCHEDULE, 0, int(now.timestamp()), byscore=True, offset=0, num=limit)
        return [key.removeprefix(REDBEAT_PREFIX) for key in cast(Sequence[str], keys)]

    def next_due(self) -> float | None:
        """When the first job is due, in seconds of UTC; None when none ever is."""
        with self._answering():
            first = cast("list[tuple[str, float]]", self._client.zrange(SCHEDULE, 0, 0, withscores=True))
        return first[0][1] if first else None

    def reschedule(self, token: str, next_at: Mapping[str, datetime | None]) -> None:
        """Moves jobs in the mirror.

        Raises:
            ClaimLost: The token is not the leader's.
        """
        for chunk in _chunks(list(next_at.items())):
            arguments = [token]
            for job, at in chunk:
                arguments += [REDBEAT_PREFIX + job, "" if at is None else str(int(at.timestamp()))]
            self._guarded(_RESCHEDULE, [LOCK, SCHEDULE], arguments)

    def rebuild_mirror(
        self,
        token: str,
        *,
        definitions: Mapping[str, str],
        next_at: Mapping[str, datetime | None],
        built_from: str,
    ) -> None:
        """Makes the mirror anew: definitions and next instants of all jobs; what is not named is removed.

        Raises:
            ClaimLost: The token is not the leader's.
        """
        with self._answering():
            scheduled = cast("list[str]", self._client.zrange(SCHEDULE, 0, -1))
            shown = cast("set[str]", self._client.smembers(JOBS))
        stale = {key.removeprefix(REDBEAT_PREFIX) for key in (*scheduled, *shown)} - definitions.keys()
        for chunk in _chunks([*definitions.items(), *((job, "") for job in stale)]):
            keys = [LOCK, JOBS, *(REDBEAT_PREFIX + job for job, _ in chunk)]
            self._guarded(_DEFINE, keys, [token, *(definition for _, definition in chunk)])
        self.reschedule(token, {**next_at, **dict.fromkeys(stale)})
        self._guarded(_STAMP, [LOCK, MIRROR], [token, built_from])

    def _guarded(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> None:
        with self._answering():
            done = self._client.eval(script, len(keys), *keys, *arguments)
        if not done:
            raise ClaimLost("this beat does not lead any more")

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except _REFUSALS as error:
            raise Unavailable(f"Redis refuses: {error}; {self._which}") from error
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {error}; {self._which}") from error


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


def _chunks(items: Sequence[tuple[str, Any]]) -> Iterator[Sequence[tuple[str, Any]]]:
    for start in range(0, len(items), _MIRROR_CHUNK):
        yield items[start : start + _MIRROR_CHUNK]
