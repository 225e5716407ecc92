"""The documentation of every setting, taken from the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maintd.config.given import ENV_FILE
from maintd.config.settings import FAMILIES, LOCAL_RELAY, Settings, variable_of


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
    "smtp_url": LOCAL_RELAY,
    "smtp_hello": "the name of the host",
    "schedules_dir": "./schedules",
    "templates_dir": "./templates",
    **dict.fromkeys(FAMILIES, "none"),
}
_ENV_FILE_DOC = SettingDoc(
    name=ENV_FILE,
    type_text="path",
    default_text="./maintd.env if there is one",
    description="The env file to read, given in the environment only; empty: none is read.",
)


def reference() -> list[SettingDoc]:
    """The documentation of every setting, in the order of the model."""
    schemas = Settings.model_json_schema()["properties"]
    defaults = Settings(state_dir=Path("/")).model_dump(mode="json") | _DEFAULT_TEXTS
    return [
        _ENV_FILE_DOC,
        *(_documented(field, schemas[field], defaults[field]) for field in Settings.model_fields),
    ]


def _documented(field: str, schema: dict[str, Any], default: object) -> SettingDoc:
    return SettingDoc(
        name=variable_of(field),
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
        case {"examples": ["14/s", *_]}:
            return "rate"
        case {"examples": _}:
            return "duration"
        case {"title": "rate and domains"}:
            return "rate and domains"
        case _:
            return "text"
