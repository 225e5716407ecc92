"""Every setting of maintd: its type, its default, what it means, and where its value came from."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from maintd.config.given import ENV_FILE, PREFIX, Given, Names, gather
from maintd.config.secret_url import DatabaseUrl, RedisUrl, RelayUrl, SourceUrl, shown_url
from maintd.errors import Problem, Problems
from maintd.log import LogFormat
from maintd.spec import Duration
from maintd.units import format_duration

_SOURCES = "source_urls"
_LOCAL_RELAY = "smtp://127.0.0.1:25"
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

    database_url: DatabaseUrl = Field(
        default_factory=lambda known: SecretStr(f"sqlite:///{known['state_dir']}/ledger.db")
    )
    """The ledger: `sqlite:////path/to/file.db` for one host, `postgresql://user@host/name` for any number."""

    redis_url: RedisUrl | None = None
    """The broker: `redis://`, `rediss://` or `unix:///path`. Without it `maintd up` starts an embedded server."""

    source_urls: Mapping[str, SourceUrl] = {}
    """An application's database or Redis; `MAINTD_SOURCE_APP_URL` is `source = "app"` in job files."""

    smtp_url: RelayUrl = SecretStr(_LOCAL_RELAY)
    """The relay that takes the mail: `smtp://`, `smtp+starttls://` or `smtps://`."""

    smtp_hello: Annotated[str, AfterValidator(_hello)] = Field(
        default_factory=lambda: platform.node() or "localhost"
    )
    """The name given to the relay with EHLO."""

    smtp_connections: Annotated[int, Field(ge=1, le=100)] = 8
    """Connections to the relay that one mail process keeps open."""

    smtp_connect_timeout: Duration = timedelta(seconds=30)
    """How long connecting to the relay, TLS and authentication may take."""

    smtp_command_timeout: Duration = timedelta(minutes=5)
    """How long the relay may take to answer a command (RFC 5321 §4.5.3.2)."""

    smtp_dot_timeout: Duration = timedelta(minutes=10)
    """How long the relay may take to answer a whole message (RFC 5321 §4.5.3.2.6)."""

    mail_from: Annotated[str, AfterValidator(_sender)] | None = None
    """The sender of jobs that name none: `Acme <news@acme.example>`."""

    mail_redirect: Annotated[str, AfterValidator(_address)] | None = None
    """All mail goes to this address instead of its recipients; for staging."""

    mail_batch: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Deliveries that a mail process claims at once."""

    mail_processes: Processes = 1
    """Mail processes that `maintd up` starts."""

    worker_processes: Processes = 1
    """Worker processes that `maintd up` starts for everything but mail."""

    schedules_dir: Directory = Path("schedules")
    """The directory of the job files, `*.toml`."""

    templates_dir: Directory = Path("templates")
    """The directory of the mail templates, one subdirectory a mail."""

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

    visibility_timeout: Duration = timedelta(minutes=10)
    """When Redis delivers a wake-up message again that nobody acknowledged; longer than the wake budget."""

    statement_timeout: Duration = timedelta(minutes=5)
    """No SQL statement on PostgreSQL runs longer."""

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
        budget = info.data.get("wake_budget", value / 2)
        if value <= budget:
            raise _too_short(value, f"longer than MAINTD_WAKE_BUDGET ({format_duration(budget)})")
        return value

    @property
    def came_from(self) -> Mapping[str, str]:
        """Where each value came from, by variable: "environment", "credential smtp_url", "maintd.env:12", "default"."""
        return self._came_from

    def with_redis(self, url: str) -> Settings:
        """The same settings with another broker, such as the embedded one."""
        changed = self.model_copy(update={"redis_url": SecretStr(url)})
        changed._came_from = self._came_from
        return changed

    def public(self) -> list[tuple[str, str, str]]:
        """What people may see: variable, value with passwords masked, and where it came from."""
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
        for field, text in self.model_dump(mode="json", exclude={_SOURCES}).items():
            value = getattr(self, field)
            keep = value is None or isinstance(value, SecretStr)
            yield _variable(field), value if keep else str(text)
        for name, url in sorted(self.source_urls.items()):
            yield _variable(_SOURCES, name), url


@dataclass(frozen=True, kw_only=True)
class SettingDoc:
    """One entry of the reference of settings."""

    name: str
    type_text: str
    default_text: str
    description: str


# The defaults that depend on the host or the settings, or are secrets by their type.
_DEFAULT_TEXTS = {
    "state_dir": "`$STATE_DIRECTORY`, else `$XDG_STATE_HOME/maintd`, else `~/.local/state/maintd`",
    "database_url": "`sqlite:///` and `ledger.db` in the state directory",
    "smtp_url": _LOCAL_RELAY,
    "smtp_hello": "the name of the host",
    "schedules_dir": "./schedules",
    "templates_dir": "./templates",
    _SOURCES: "none",
}
_ENV_FILE_DOC = SettingDoc(
    name=ENV_FILE,
    type_text="path",
    default_text="./maintd.env if there is one",
    description="The env file to read, given in the environment only; empty: none is read.",
)


def load_settings(*, environ: Mapping[str, str], env_file: Path | None) -> Settings:
    """Makes the settings of this process.

    For each setting the first that gives it wins: the environment, then credentials (files of `$CREDENTIALS_DIRECTORY`
    named like the setting), then the env file, then the default. Environment and env file may give `X_FILE=/path`
    instead of X.

    Args:
        environ: The process environment.
        env_file: The env file; None for `MAINTD_ENV_FILE` (empty: none), else `./maintd.env` if it exists.

    Raises:
        Problems: Everything wrong with all of it, at once; no text repeats a URL.
    """
    given, problems = gather(environ=environ, env_file=env_file, names=_NAMES)
    state_dir = _default_state_dir(environ)
    given = ({_variable("state_dir"): state_dir} if state_dir else {}) | given
    settings, wrong = _validated(given)
    if settings is None or problems:
        raise Problems([*problems, *wrong])
    settings._came_from = {
        variable: given[variable].came_from if variable in given else "default"
        for variable, _ in settings._values()
    }
    return settings


def from_process(*, env_file: Path | None = None) -> Settings:
    """`load_settings` with the environment of this process.

    Raises:
        Problems: Everything wrong with the settings, at once.
    """
    return load_settings(environ=os.environ, env_file=env_file)


def bare_environment() -> dict[str, str]:
    """The environment of this process without maintd's own variables: what a child of it may inherit."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def reference() -> list[SettingDoc]:
    """The documentation of every setting, in the order of the model."""
    schemas = Settings.model_json_schema()["properties"]
    defaults = Settings(state_dir=Path("/")).model_dump(mode="json") | _DEFAULT_TEXTS
    return [
        _ENV_FILE_DOC,
        *(_documented(field, schemas[field], defaults[field]) for field in Settings.model_fields),
    ]


def _variable(field: str, source: str = "<NAME>") -> str:
    return f"{PREFIX}SOURCE_{source.upper()}_URL" if field == _SOURCES else PREFIX + field.upper()


_NAMES = Names([_variable(field) for field in Settings.model_fields])


def _validated(given: Mapping[str, Given]) -> tuple[Settings | None, list[Problem]]:
    try:
        return Settings.model_validate(_fields(given)), []
    except ValidationError as error:
        # pydantic keeps the input in its error: nothing of that may hang on to ours.
        details = error.errors(include_url=False, include_context=False, include_input=False)
    return None, [
        _problem(detail, given) for detail in details if detail["type"] != "default_factory_not_called"
    ]


def _fields(given: Mapping[str, Given]) -> dict[str, object]:
    fields: dict[str, object] = {
        field: given[_variable(field)].text for field in Settings.model_fields if _variable(field) in given
    }
    source = re.compile(_variable(_SOURCES, "(.+)"))
    urls = {
        match[1].lower(): found.text for name, found in given.items() if (match := source.fullmatch(name))
    }
    return fields | {_SOURCES: urls}


def _problem(detail: ErrorDetails, given: Mapping[str, Given]) -> Problem:
    variable = _variable(*(str(part) for part in detail["loc"][:2]))
    place = given[variable].came_from if variable in given else "default"
    what = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if detail["type"] == "missing":
        what = "neither it nor STATE_DIRECTORY, XDG_STATE_HOME or HOME is set; give a path"
    return Problem(where=f"{variable} ({place})", what=what)


def _default_state_dir(environ: Mapping[str, str]) -> Given | None:
    """systemd's `StateDirectory=` (systemd.exec(5)), else the XDG Base Directory Specification's place."""
    if of_unit := environ.get("STATE_DIRECTORY"):
        return Given(text=of_unit.split(":")[0], came_from="STATE_DIRECTORY")
    state_home = environ.get("XDG_STATE_HOME", "")
    if not Path(state_home).is_absolute():  # the specification has relative ones ignored
        state_home = f"{environ['HOME']}/.local/state" if environ.get("HOME") else ""
    return Given(text=f"{state_home}/maintd", came_from="default") if state_home else None


def _too_short(value: timedelta, relation: str) -> ValueError:
    return ValueError(f"is {format_duration(value)} and must be {relation}")


def _plain(value: str | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _shown(value: str | SecretStr | None) -> str:
    if value is None:
        return "none"
    return shown_url(value.get_secret_value()) if isinstance(value, SecretStr) else value


def _documented(field: str, schema: dict[str, Any], default: object) -> SettingDoc:
    return SettingDoc(
        name=_variable(field),
        type_text=_type_text(schema),
        default_text="none" if default is None else str(default),
        description=schema["description"],
    )


def _type_text(schema: dict[str, Any]) -> str:
    match schema:
        case {"anyOf": [inner, *_]} | {"additionalProperties": inner}:
            return _type_text(inner)
        case {"enum": values}:
            return " | ".join(values)
        case {"minimum": least, "maximum": most}:
            return f"number, {least} to {most}"
        case {"format": "password"}:
            return "URL"
        case {"format": "path"}:
            return "path"
        case {"examples": _}:
            return "duration"
        case _:
            return "text"
