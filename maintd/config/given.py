"""Which settings are given, where, and which place wins: the environment, then credentials, then the env file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maintd.config.envfile import EnvFile, scan_env_file
from maintd.errors import Problem, did_you_mean

PREFIX = "MAINTD_"
ENV_FILE = "MAINTD_ENV_FILE"
_DEFAULT_ENV_FILE = Path("maintd.env")


@dataclass(frozen=True, kw_only=True)
class Given:
    """The text of a setting and the place that gave it: "environment", "credential smtp_url", "maintd.env:12"."""

    text: str = field(repr=False)
    came_from: str


@dataclass(frozen=True, kw_only=True)
class _Mention:
    """One place where a setting is given: as a text, or by the file that holds the text."""

    variable: str
    place: str
    text: str = field(default="", repr=False)
    file: Path | None = None

    @property
    def where(self) -> str:
        return f"{self.variable} ({self.place})"


class Names:
    """The settings there are. A name may hold `<NAME>`, which stands for any `[A-Z0-9_]+`."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._pattern = re.compile("|".join(name.replace("<NAME>", "[A-Z0-9_]+") for name in names))

    def __contains__(self, name: str) -> bool:
        return self._pattern.fullmatch(name) is not None

    def nearest(self, wrong: str) -> str:
        """A hint at the name that was meant."""
        return did_you_mean(wrong, self._names, prefix=PREFIX)


def gather(
    *, environ: Mapping[str, str], env_file: Path | None, names: Names
) -> tuple[dict[str, Given], list[Problem]]:
    """Finds the winning text of every setting that is given anywhere.

    A setting X is given as `X`, or as `X_FILE` with the path of a file that holds it (one trailing newline is dropped).

    Returns:
        The texts by setting, and everything that is wrong with what was given.
    """
    path = _env_file_path(environ, env_file)
    file = scan_env_file(path) if path else EnvFile(values={}, problems=[])
    problems = list(file.problems)
    winners: dict[str, _Mention] = {}
    for level in (_of_environment(environ), _of_credentials(environ, names), _of_env_file(file, path)):
        winners = _one_each(level, names=names, problems=problems) | winners
    given = {}
    for setting, mention in winners.items():
        try:
            given[setting] = _read(mention, setting=setting)
        except ValueError as error:
            problems.append(Problem(where=mention.where, what=str(error)))
    return given, problems


def _env_file_path(environ: Mapping[str, str], argument: Path | None) -> Path | None:
    if argument is not None:
        return argument
    if ENV_FILE in environ:
        return Path(environ[ENV_FILE]) if environ[ENV_FILE] else None
    return _DEFAULT_ENV_FILE if _DEFAULT_ENV_FILE.exists() else None


def _of_environment(environ: Mapping[str, str]) -> Iterator[_Mention]:
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and variable != ENV_FILE:
            yield _Mention(variable=variable, place="environment", text=text)


def _of_credentials(environ: Mapping[str, str], names: Names) -> Iterator[_Mention]:
    """The files of `$CREDENTIALS_DIRECTORY` that are called like a setting, in any case, with or without its prefix."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    for file in sorted(Path(directory).glob("*")) if directory else ():
        variable = PREFIX + file.name.upper().removeprefix(PREFIX)
        # A unit's other credentials are none of our business, unless they say they are.
        if variable in names or file.name.upper().startswith(PREFIX):
            yield _Mention(variable=variable, place=f"credential {file.name}", file=file)


def _of_env_file(file: EnvFile, path: Path | None) -> Iterator[_Mention]:
    for variable, value in file.values.items():
        yield _Mention(variable=variable, place=f"{path}:{value.line}", text=value.text)


def _one_each(level: Iterable[_Mention], *, names: Names, problems: list[Problem]) -> dict[str, _Mention]:
    found: dict[str, _Mention] = {}
    for mention in level:
        setting = _setting_of(mention.variable, names=names)
        if setting is None:
            hint = names.nearest(mention.variable)
            problems.append(Problem(where=mention.where, what="there is no such setting", cure=hint))
        elif setting in found:
            what = f"it is also given as {found[setting].where}"
            problems.append(Problem(where=mention.where, what=what, cure="keep one of them"))
        else:
            found[setting] = mention
    return found


def _setting_of(variable: str, *, names: Names) -> str | None:
    # The stem first: a name may end in anything, and MAINTD_LANE_GMAIL_FILE is the file of MAINTD_LANE_GMAIL.
    stem = variable.removesuffix("_FILE")
    return next((name for name in (stem, variable) if name in names), None)


def _read(mention: _Mention, *, setting: str) -> Given:
    if mention.file is not None:
        return Given(text=_sound(_content(mention.file)), came_from=mention.place)
    if mention.variable != setting:
        file = Path(mention.text)
        return Given(text=_sound(_content(file)), came_from=f"{file} ({mention.variable}, {mention.place})")
    return Given(text=_sound(mention.text), came_from=mention.place)


def _content(file: Path) -> str:
    # The path is not repeated: a secret put there by mistake would be.
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n")
    except OSError as error:
        raise ValueError(f"the file it names cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("the file it names is not UTF-8 text") from None


def _sound(text: str) -> str:
    """The text itself; what is wrong with it is said without repeating it."""
    if not text:
        raise ValueError("it is empty; give a value, or leave it out for the default")
    if text != text.strip():
        raise ValueError("it begins or ends with a space or an empty line; remove that")
    if not text.isprintable():
        raise ValueError("it holds a line break or another invisible character; remove that")
    return text
