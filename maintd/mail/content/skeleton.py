"""What the mails of one campaign have around their texts: the structure of their parts, and the enclosed files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import count

from maintd.mail.content.enclosures import Enclosure
from maintd.mail.content.parts import TextPart, attached_part, inline_part, multipart
from maintd.smtp.lines import Lines

# No encoded part has a NUL, so these are found where they were put and nowhere else.
_TEXT, _HTML = b"\0text\0", b"\0html\0"
_HOLE = re.compile(rb"\0(?:text|html)\0")


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A whole mail but its header and its texts.

    Attributes:
        mark: What its boundaries begin with.
        openings: What comes before each text.
        ending: What comes behind the last.
    """

    mark: bytes
    openings: tuple[Lines, ...]
    ending: Lines


class Skeleton:
    """Encodes what is enclosed once, and joins it with the texts of every mail.

    text · alternative(text, html) · alternative(text, related(html, inline…)) · mixed(one of these, attachments…)
    """

    def __init__(
        self, *, seed: str, inline: Sequence[Enclosure] = (), attachments: Sequence[Enclosure] = ()
    ) -> None:
        """Encodes the files.

        Args:
            seed: Makes the boundaries: from the record, so that every attempt has the same.
            inline: Images that the HTML shows; a mail without HTML goes without them.
            attachments: Files beside the texts.
        """
        self._seed = seed
        self._inline = [inline_part(file) for file in inline]
        self._attached = [attached_part(file) for file in attachments]

    def around(self, text: TextPart, html: TextPart | None) -> tuple[tuple[Lines, ...], Lines]:
        """Finds the places of texts.

        Args:
            text: The plain part.
            html: The HTML part, if there is one.

        Returns:
            What to join for the mail from its Content-Type on up to the end of its last text, and what follows that.
        """
        frame = self._text_alone if html is None else self._with_html
        if frame.mark in text.body.octets or (html is not None and frame.mark in html.body.octets):
            frame = self._drawn_again(text, html)
        if html is None:
            return (frame.openings[0], *text), frame.ending
        return (frame.openings[0], *text, frame.openings[1], *html), frame.ending

    @cached_property
    def _text_alone(self) -> _Frame:
        return self._drawn(0, html=False)

    @cached_property
    def _with_html(self) -> _Frame:
        return self._drawn(0, html=True)

    def _drawn_again(self, text: TextPart, html: TextPart | None) -> _Frame:
        frames = (self._drawn(draw, html=html is not None) for draw in count(1))
        octets = text.body.octets + (html.body.octets if html is not None else b"")
        return next(frame for frame in frames if frame.mark not in octets)

    def _drawn(self, draw: int, *, html: bool) -> _Frame:
        mark = f"=_{blake2b(f'{self._seed}:{draw}'.encode(), digest_size=12).hexdigest()}"
        *openings, ending = map(Lines.of, _HOLE.split(self._whole(mark, html=html)))
        return _Frame(mark=mark.encode(), openings=tuple(openings), ending=ending)

    def _whole(self, mark: str, *, html: bool) -> bytes:
        # The mark is looked for in texts only. A line of an enclosed file cannot begin as a boundary does: base64 has
        # neither a hyphen nor an underscore, and a line of a part's head begins with the header's name or a space.
        # No boundary is the beginning of another, which would end a part too early (RFC 2046 §5.1.2).
        whole = _TEXT
        if html:
            shown = _HTML
            if self._inline:
                kind = 'type="text/html"'  # RFC 2387 §3.1
                shown = multipart("related", [_HTML, *self._inline], boundary=f"{mark}.r", parameter=kind)
            whole = multipart("alternative", [_TEXT, shown], boundary=f"{mark}.a")
        if self._attached:
            whole = multipart("mixed", [whole, *self._attached], boundary=f"{mark}.m")
        return whole
