"""Reading the texts that people write: job files, statements, templates."""

from __future__ import annotations

from pathlib import Path

from maintd.errors import Problem, Problems


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without the mark that some editors put before its first character.

    Raises:
        Problems: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = Problem(where=str(path), what=f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        what = f"is not UTF-8: byte {error.start + 1} is wrong"
        problem = Problem(where=str(path), what=what, cure="save it as UTF-8")
    raise Problems([problem])
