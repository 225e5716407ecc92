"""Writing to a terminal whose encoding lacks some characters: plainer ones take their place."""

from __future__ import annotations

import codecs
import io
import sys

_PLAIN = "maintd-plain"
_PLAINER = {"–": "-", "…": "...", "•": "*", "·": "|", "█": "#"}


def write_anything() -> None:
    """Lets standard output and standard error take every text, whatever their encoding."""
    codecs.register_error(_PLAIN, _plainer)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN)


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAINER.get(character, "?") for character in lacking), error.end
