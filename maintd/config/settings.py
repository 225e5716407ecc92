"""Every setting of maintd: its type, its default, what it means, and where its value came from."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from email.utils import getaddresses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from maintd.config.given import ENV_FILE, PREFIX
from maintd.config.lanes import Lanes
from maintd.config.secret_url import DatabaseUrl, RedisUrl, RelayUrls, shown_url
from maintd.log import LogFormat
from maintd.spec import Duration, RateLimit
from maintd.units import format_duration

FAMILIES = {"source_urls": "SOURCE_<NAME>_URL", "lanes": "LANE_<NAME>"}
"""The fields that stand for any number of variables, each with the form of its variables after `MAINTD_`."""

LOCAL_RELAY = "smtp://127.0.0.1:25"
_ADDRESS = re.compile(r"[^@\s<>,;\"]+@[^@\s<>,;\"]+")
_HELLO = re.compile(r"[A-Za-z0-9._:\[\]-]+")


def _whole_path(path: Path) -> Path:
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise ValueError("begins with ~, which only a shell expands; write the whole path")
    return path.absolute()


def _sender(text: str) -> str:
    found = getaddresses([text])
    if len(found) != 1 or not _ADDRESS.fullmatch(found[0][1]):
        raise ValueError('is not one sender; write "Acme <news@acme.example>" or news@acme.example')
    return text


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("is not one bare address; write name@host")
    return text


def _hello(text: str) -> str:
    if not _HELLO.fullmatch(text):
        raise ValueError("is not a host name or an address in brackets (RFC 5321 §4.1.1.1)")
    return text


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Directory = Annotated[Path, AfterValidator(_whole_path)]
Processes = Annotated[int, Field(ge=1, le=256)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]


class Settings(BaseModel):
    """All settings, validated. The variable of a field is its name in upper case after `MAINTD_`.

    URLs are secrets: neither `repr`, `str`, `model_dump` nor `public` shows their passwords.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    state_dir: Directory
    """Where this host keeps its state: the SQLite ledger, the embedded Redis, the lock of `maintd up`."""

    state_dir_volatile: Literal["refuse", "allow"] = "refuse"
    """Whether mail goes out with a state directory that is in memory (tmpfs) or on a network file system."""

    database_url: DatabaseUrl = Field(
        default_factory=lambda known: SecretStr(f"sqlite:///{known['state_dir']}/ledger.db")
    )
    """The ledger: `sqlite:////path/to/file.db` for one host, `postgresql://user@host/name` for any number."""

    redis_url: RedisUrl | None = None
    """The broker: `redis://`, `rediss://` or `unix:///path`. Without it `maintd up` starts an embedded server."""

    source_urls: Mapping[str, DatabaseUrl] = {}
    """An application's database; `MAINTD_SOURCE_APP_URL` is `source = "app"` in job files."""

    smtp_url: RelayUrls = SecretStr(LOCAL_RELAY)
    """The relay that takes the mail: `smtp://`, `smtp+starttls://` or `smtps://`; or several, separated by spaces, each
    with `?weight=…&connections=…&messages=…` if need be ([operations](operations.md#several-relays))."""

    smtp_hello: Annotated[str, AfterValidator(_hello)] = Field(
        default_factory=lambda: platform.node() or "localhost"
    )
    """The name given to the relay with EHLO."""

    smtp_connections: Annotated[int, Field(ge=1, le=100)] = 8
    """Connections to relays that one mail process keeps open, to all of them together."""

    smtp_connect_timeout: Duration = timedelta(seconds=30)
    """How long connecting to the relay, TLS and authentication may take."""

    smtp_command_timeout: Duration = timedelta(minutes=5)
    """How long the relay may take to answer a command (RFC 5321 §4.5.3.2)."""

    smtp_dot_timeout: Duration = timedelta(minutes=10)
    """How long the relay may take to answer a whole message (RFC 5321 §4.5.3.2.6)."""

    smtp_limit: RateLimit | None = None
    """At most so many messages go out, all processes and hosts together: `14/s`, `600/min`, `10000/h`, `50000/day`. A
    tenth is kept for urgent mail."""

    lanes: Lanes = {}
    """A limit for the mail to some domains together: `MAINTD_LANE_GMAIL=20/s gmail.com googlemail.com`. They have a
    line of their own, so that nobody else waits behind them."""

    mail_from: Annotated[str, AfterValidator(_sender)] | None = None
    """The sender of jobs that name none: `Acme <news@acme.example>`."""

    mail_redirect: Annotated[str, AfterValidator(_address)] | None = None
    """All mail goes to this address instead of its recipients; for staging."""

    mail_batch: Annotated[int, Field(ge=1, le=10_000)] = 2_000
    """Deliveries that a mail process claims at once."""

    mail_processes: Processes = 1
    """Mail processes that `maintd up` starts besides the one for urgent mail, and at most so many wake-ups at once for
    the queue `mail.bulk`."""

    worker_processes: Processes = 1
    """Worker processes that `maintd up` starts for everything but mail, and at most so many wake-ups at once for each
    of their queues."""

    schedules_dir: Directory = Path("schedules")
    """The directory of the job files, `*.toml`."""

    templates_dir: Directory = Path("templates")
    """The directory of the mail templates, one subdirectory a mail."""

    recorder_keep: Duration = timedelta(days=3)
    """How long flight recordings are kept that the ledger has: longer than a backup of the ledger is old when it is
    restored."""

    heartbeat: Duration = timedelta(seconds=5)
    """How often the counter of a claim moves while its holder lives."""

    lease: Duration = timedelta(seconds=30)
    """A claim whose counter stood still for this long is taken over; at least three heartbeats."""

    tick: Duration = timedelta(seconds=1)
    """The longest sleep of the beat."""

    beat_lock: Duration = timedelta(seconds=15)
    """How long a dead beat leads before a standby takes over; at least five ticks."""

    reconcile: Duration = timedelta(seconds=5)
    """How often the leading beat looks for claims to free, queues to wake and steps to ready."""

    wake_budget: Duration = timedelta(seconds=30)
    """How long a worker takes due work for one wake-up message."""

    visibility_timeout: Duration = timedelta(hours=1)
    """When Redis delivers a wake-up message again that nobody acknowledged; longer than the lease, and longer than the
    wake budget and `MAINTD_SMTP_DOT_TIMEOUT` together."""

    keep: Duration = timedelta(days=400)
    """How long runs and mailings that are over are kept, with their deliveries. The newest of each job stays, and so
    does a mailing that is `once_per = "ever"`."""

    statement_timeout: Duration = timedelta(minutes=5)
    """No SQL statement runs longer; on SQLite no single fetch of its rows either."""

    stop_timeout: Duration = timedelta(seconds=30)
    """How long a process may take to stop in order before it is killed."""

    log_level: LogLevel = "info"
    """The least severe events that are logged."""

    log_format: LogFormat = "auto"
    """`plain` for people, `json` for machines; `auto` is plain at a terminal and JSON elsewhere."""

    _came_from: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("lease")
    @classmethod
    def _outlives_three_heartbeats(cls, value: timedelta, info: ValidationInfo) -> timedelta:
        heartbeat = info.data.get("heartbeat", value / 3)
        if value < 3 * heartbeat:
            raise _too_short(value, f"at least three times MAINTD_HEARTBEAT ({format_duration(heartbeat)})")
        return value

    @field_validator("beat_lock")
    @classmethod
    def _outlives_five_ticks(cls, value: timedelta, info: ValidationInfo) -> timedelta:
        tick = info.data.get("tick", value / 5)
        if value < 5 * tick:
            raise _too_short(value, f"at least five times MAINTD_TICK ({format_duration(tick)})")
        return value

    @field_validator("visibility_timeout")
    @classmethod
    def _outlives_a_wake(cls, value: timedelta, info: ValidationInfo) -> timedelta:
        lease, budget, dot = (
            info.data.get(name, timedelta()) for name in ("lease", "wake_budget", "smtp_dot_timeout")
        )
        if value <= lease:
            raise _too_short(value, f"longer than MAINTD_LEASE ({format_duration(lease)})")
        if value <= budget + dot:
            raise _too_short(
                value,
                f"longer than MAINTD_WAKE_BUDGET ({format_duration(budget)}) and MAINTD_SMTP_DOT_TIMEOUT "
                f"({format_duration(dot)}) together",
            )
        return value

    def model_post_init(self, context: Any) -> None:
        """Keeps where the values came from, by variable, if that is given as the context of validation."""
        self._came_from = context or {}

    def with_redis(self, url: str) -> Settings:
        """The same settings with another broker, such as the embedded one."""
        return self.model_copy(update={"redis_url": SecretStr(url)})

    def public(self) -> list[tuple[str, str, str]]:
        """What people may see: variable, value with passwords masked, and where it came from.

        The last is "environment", "credential smtp_url", "maintd.env:12", "default".
        """
        return [
            (variable, _shown(value), self._came_from.get(variable, "default"))
            for variable, value in self._values()
        ]

    def environment(self) -> dict[str, str]:
        """The `MAINTD_*` variables with which a child process loads these very values, and reads no env file.

        It holds the secrets in the clear: pass it as `env=` of a child, after `bare_environment()`, and nowhere else.
        """
        given = {variable: _plain(value) for variable, value in self._values() if value is not None}
        return given | {ENV_FILE: ""}

    def _values(self) -> Iterator[tuple[str, str | SecretStr | None]]:
        """Every setting by its variable, as people write it, the secrets still wrapped."""
        for field, text in self.model_dump(mode="json", exclude=set(FAMILIES)).items():
            value = getattr(self, field)
            keep = value is None or isinstance(value, SecretStr)
            yield variable_of(field), value if keep else str(text)
        for field in FAMILIES:
            for name, value in sorted(getattr(self, field).items()):
                yield variable_of(field, name), value if isinstance(value, SecretStr) else str(value)


def variable_of(field: str, name: str = "<NAME>") -> str:
    """The variable of a field of `Settings`; that of one of the `FAMILIES` has a name in it."""
    return PREFIX + FAMILIES.get(field, field.upper()).replace("<NAME>", name.upper())


def _too_short(value: timedelta, relation: str) -> ValueError:
    return ValueError(f"is {format_duration(value)} and must be {relation}")


def _plain(value: str | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _shown(value: str | SecretStr | None) -> str:
    if value is None:
        return "none"
    return shown_url(value.get_secret_value()) if isinstance(value, SecretStr) else value
