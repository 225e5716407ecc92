"""The files that go with every mail of an edition: attachments, and the images that its HTML shows.

A template's directory holds them in `attachments` and in `inline`; a file whose name begins with a dot is left out.
They are frozen with the template's texts, in base64.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from maintd.errors import Problem, Problems, did_you_mean
from maintd.mail.content.media import media_type
from maintd.units import format_size

ATTACHMENTS, INLINE = "attachments", "inline"
#: Octets that a template may enclose. Base64 adds a third, and there are receivers that refuse 10 MB.
MOST_OCTETS = 5 * 2**20

_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, kw_only=True)
class Enclosure:
    """One file.

    Attributes:
        name: Of the file, for the receiver too.
        content: Its octets.
    """

    name: str
    content: bytes

    @cached_property
    def media_type(self) -> str:
        """What kind of content it is: "application/pdf"."""
        return media_type(self.name, self.content)

    @cached_property
    def content_id(self) -> str:
        """What HTML calls it behind `cid:`: like no other image in the world (RFC 2045 §7, RFC 2392)."""
        return f"{self.name}@{sha256(self.content).hexdigest()[:32]}"


def read_enclosures(directory: Path, template: str, *, texts: Collection[str] = ()) -> dict[str, str]:
    """Reads what a template encloses.

    Args:
        directory: The templates directory.
        template: The template's own directory in it.
        texts: Paths of the texts that it is made of: where these are, nothing is meant to be enclosed.

    Returns:
        Contents in base64 by path relative to the templates directory: "digest/attachments/terms.pdf".

    Raises:
        Problems: Files that cannot be enclosed, all at once.
    """
    try:
        files = [*_files(directory / template / ATTACHMENTS), *_files(directory / template / INLINE)]
        problems = [*_misspelt(directory, template, texts)]
        problems += [problem for file in files for problem in _problems(file, directory)]
        problems = problems or list(_size_problems(directory / template, files))
        if not problems:
            return {file.relative_to(directory).as_posix(): _read(file) for file in files}
    except OSError as error:
        problems = [Problem(where=str(error.filename), what=f"cannot be read: {error.strerror}")]
    raise Problems(problems)


def _files(folder: Path) -> list[Path]:
    if not folder.exists():
        return []
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))


def _misspelt(directory: Path, template: str, texts: Collection[str]) -> Iterator[Problem]:
    for folder in sorted(path for path in (directory / template).iterdir() if path.is_dir()):
        used = any(text.startswith(f"{template}/{folder.name}/") for text in texts)
        meant = did_you_mean(folder.name.lower(), (ATTACHMENTS, INLINE), listing=False)
        if meant and not used and folder.name not in (ATTACHMENTS, INLINE):
            yield Problem(where=str(folder), what="nothing in it goes with the mail", cure=meant)


def _problems(file: Path, directory: Path) -> Iterator[Problem]:
    if not file.name.isprintable():
        what = f"the name {file.name!a} has a character that cannot be printed"
        yield Problem(where=str(file.parent), what=what, cure="rename it")
    elif not file.resolve().is_relative_to(directory.resolve()):
        yield Problem(where=str(file), what=f"leads out of {directory}", cure="copy the file itself")
    elif not file.is_file():
        yield Problem(where=str(file), what=f"is no file, and only files can be in {file.parent.name}")
    elif file.parent.name == INLINE and not _SAFE_NAME.fullmatch(file.name):
        cure = "use A to Z, digits, hyphens and underscores, with single dots between them"
        yield Problem(where=str(file), what="its name cannot stand behind cid:", cure=cure)


def _size_problems(where: Path, files: Sequence[Path]) -> Iterator[Problem]:
    size = sum(file.stat().st_size for file in files)
    if size > MOST_OCTETS:
        what = f"{format_size(size)} in {ATTACHMENTS} and {INLINE}; {format_size(MOST_OCTETS)} may go with a mail"
        yield Problem(where=str(where), what=what, cure="link to large files instead")


def _read(file: Path) -> str:
    return b64encode(file.read_bytes()).decode()


def is_enclosed(path: str, *, template: str) -> bool:
    """Whether a path of a bundle's files is that of an enclosure."""
    return path.startswith((f"{template}/{ATTACHMENTS}/", f"{template}/{INLINE}/"))


def enclosures(files: Mapping[str, str], *, template: str, folder: str) -> tuple[Enclosure, ...]:
    """What a bundle's files hold of one folder, by name."""
    prefix = f"{template}/{folder}/"
    return tuple(
        Enclosure(name=path.removeprefix(prefix), content=b64decode(files[path]))
        for path in sorted(files)
        if path.startswith(prefix)
    )
