"""Making the settings of a process, or saying everything that is wrong with what was given."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from maintd.config.given import PREFIX, Given, Names, gather
from maintd.config.settings import FAMILIES, Settings, variable_of
from maintd.errors import Problem, Problems

_NAMES = Names([variable_of(field) for field in Settings.model_fields])


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
    given = ({variable_of("state_dir"): state_dir} if state_dir else {}) | given
    settings, wrong = _validated(given)
    if settings is None or problems:
        raise Problems([*problems, *wrong])
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


def _validated(given: Mapping[str, Given]) -> tuple[Settings | None, list[Problem]]:
    try:
        came_from = {variable: found.came_from for variable, found in given.items()}
        return Settings.model_validate(_fields(given), context=came_from), []
    except ValidationError as error:
        # pydantic keeps the input in its error: nothing of that may hang on to ours.
        details = error.errors(include_url=False, include_context=False, include_input=False)
    return None, [
        _problem(detail, given) for detail in details if detail["type"] != "default_factory_not_called"
    ]


def _fields(given: Mapping[str, Given]) -> dict[str, object]:
    variables = {field: variable_of(field) for field in Settings.model_fields}
    fields = {field: given[variable].text for field, variable in variables.items() if variable in given}
    return fields | {field: _members(field, given) for field in FAMILIES}


def _members(field: str, given: Mapping[str, Given]) -> dict[str, str]:
    """The texts of every variable that one of the `FAMILIES` stands for, by the name in it."""
    variable = re.compile(variable_of(field, "(.+)"))
    return {
        match[1].lower(): found.text for name, found in given.items() if (match := variable.fullmatch(name))
    }


def _problem(detail: ErrorDetails, given: Mapping[str, Given]) -> Problem:
    variable = variable_of(*(str(part) for part in detail["loc"][:2]))
    place = given[variable].came_from if variable in given else "default"
    what = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if detail["type"] == "int_parsing":
        what = "must be a whole number"
    if detail["type"] == "missing":
        what = "neither it nor STATE_DIRECTORY, XDG_STATE_HOME or HOME is set; give a path"
    # What is wrong with several together has no one place.
    return Problem(where=variable if "<" in variable else f"{variable} ({place})", what=what)


def _default_state_dir(environ: Mapping[str, str]) -> Given | None:
    """systemd's `StateDirectory=` (systemd.exec(5)), else the XDG Base Directory Specification's place."""
    if of_unit := environ.get("STATE_DIRECTORY"):
        return Given(text=of_unit.split(":")[0], came_from="STATE_DIRECTORY")
    state_home = environ.get("XDG_STATE_HOME", "")
    if not Path(state_home).is_absolute():  # the specification has relative ones ignored
        state_home = f"{environ['HOME']}/.local/state" if environ.get("HOME") else ""
    return Given(text=f"{state_home}/maintd", came_from="default") if state_home else None
