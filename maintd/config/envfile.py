"""The env file, in the one spelling that systemd and python-dotenv read alike.

The same file is given to systemd as `EnvironmentFile=` and read by maintd when somebody runs it by hand. The two
readers disagree on `export`, inline comments, backslashes, `$` and more; all of that is refused in words.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values

from maintd.errors import Problem


@dataclass(frozen=True, kw_only=True)
class EnvValue:
    """A value of an env file and the line that gives it, counted from 1."""

    text: str = field(repr=False)
    line: int


@dataclass(frozen=True, kw_only=True)
class EnvFile:
    """What an env file says: the lines that can be read and what is wrong with the others."""

    values: dict[str, EnvValue]
    problems: list[Problem]


# A line either matches the first or the second of these or is refused; the list further down only explains why.
_IDLE = re.compile(r"[ \t]*(?:#(?:.*[^\\ \t])?)?[ \t]*")
_ASSIGNMENT = re.compile(
    r"""
    ([A-Z][A-Z0-9_]*)=
    (?: "[^"\\$]*" | '[^'\\$]*' | (?: [^\s"'\\$]+ (?: [ \t]+ (?!\#) [^\s"'\\$]+ )* )? )
    [ \t]*
    """,
    re.VERBOSE,
)

_IN_A_FILE = "name a file that holds the value with NAME_FILE=/path, or percent-encode it in a URL"
_COMMENT = "systemd takes a comment behind a value for a part of it"
_EXPLANATIONS = tuple(
    (re.compile(pattern), what, cure)
    for pattern, what, cure in (
        (r"\s*#", "older systemd continues a comment that ends in a backslash", "remove the backslash"),
        (r"\s*;", "only systemd takes a line that begins with ; for a comment", "begin it with #"),
        (r"\s*export\s", "systemd refuses export", "remove the word export"),
        (r"\s", "the line begins with a space", "remove the space"),
        (r"[^=]*$", "the line has no =", "write NAME=value"),
        (r"[A-Z][A-Z0-9_]*(\s+=|=\s)", "there is a space beside the =", "write NAME=value"),
        (r"(?![A-Z][A-Z0-9_]*=)", "the name is not of A to Z, 0 to 9 and _", "write it in upper case"),
        (r".*\\", "systemd and python-dotenv read a backslash differently", _IN_A_FILE),
        (r".*\$", "python-dotenv expands what follows a $, systemd does not", _IN_A_FILE),
        (r"""[^=]*=(["']).*\1\s*#""", _COMMENT, "give it a line of its own"),
        (
            r".*[\"']",
            "a quote is not around the whole value",
            "put the other kind of quotes around all of it",
        ),
        (r".*\s#", _COMMENT, "give it a line of its own, or put quotes around a value that holds a #"),
    )
)


class _Refused(Exception):
    """A line is not accepted: what is wrong with it and the cure, quoting none of it."""

    def __init__(self, what: str, cure: str) -> None:
        self.what, self.cure = what, cure
        super().__init__(what)


def scan_env_file(path: Path) -> EnvFile:
    """Reads `NAME=value` lines, blank lines and `#` comments.

    Accepted is what `EnvironmentFile=` (systemd.exec(5)) and python-dotenv read to the same names and values:
    upper-case names, given once, no space around `=`, no backslash, no `$`, no comment behind a value, single or double
    quotes only around a whole value, printable UTF-8 characters and tabs, Unix line ends.

    Returns:
        The values by name, in the order of the file, and what is wrong with the rest, or with the file. No text
        repeats a value.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        problem = Problem(
            where=str(path), what=f"the env file cannot be read: {error.strerror}", cure="correct the path"
        )
        return EnvFile(values={}, problems=[problem])
    return parse_env_file(data, name=str(path))


def parse_env_file(data: bytes, *, name: str) -> EnvFile:
    """Like `scan_env_file`, for the bytes of a file called `name`."""
    file = EnvFile(values={}, problems=[])
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            _take(line, number=number, values=file.values)
        except _Refused as refused:
            file.problems.append(Problem(where=f"{name}:{number}", what=refused.what, cure=refused.cure))
    return file


def _take(line: bytes, *, number: int, values: dict[str, EnvValue]) -> None:
    """Adds what a line gives to `values`."""
    text = _decoded(line)
    match = _ASSIGNMENT.fullmatch(text)
    if match is None:
        if not _IDLE.fullmatch(text):
            raise _explained(text)
        return
    name = match[1]
    if name in values:
        raise _Refused(f"{name} is given a second time, after line {values[name].line}", "keep one of them")
    values[name] = EnvValue(text=_unquoted(text, name=name), line=number)


def _decoded(line: bytes) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise _Refused("the line is not UTF-8", "save the file as UTF-8") from None
    if text.endswith("\r"):
        raise _Refused("the line ends in CR LF", "save the file with Unix line ends")
    # What people cannot see the readers may strip (a no-break space), break at or refuse (U+FEFF, noncharacters).
    for character in text.replace("\t", " "):
        if not character.isprintable():
            raise _Refused(f"the line holds the invisible character U+{ord(character):04X}", "remove it")
    return text


def _explained(line: str) -> _Refused:
    for pattern, what, cure in _EXPLANATIONS:
        if pattern.match(line):
            return _Refused(what, cure)
    return _Refused("the line is not NAME=value", "write NAME=value")


def _unquoted(line: str, *, name: str) -> str:
    return dotenv_values(stream=io.StringIO(line), interpolate=False)[name] or ""
