"""How HTML refers to the images that are enclosed: `cid:logo.png` in a template, an identifier of its own in a mail."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from maintd.errors import Problem, did_you_mean
from maintd.mail.content.enclosures import ATTACHMENTS, INLINE, Enclosure

# Where a URL can begin: behind a space, quote, bracket or equals sign, behind `&quot;`, in the list of a srcset.
_CID = re.compile(r"""(?<![^\s"'(=;,])cid:(?!\s)([^\s"'()<>,;&]*)""", re.IGNORECASE)


def image_problems(
    texts: Mapping[str, str], images: Iterable[Enclosure], *, directory: Path, template: str
) -> Iterator[Problem]:
    """What does not fit between images and the HTML that shows them.

    Args:
        texts: The sources of the HTML, by path relative to the templates directory.
        images: What is enclosed.
        directory: The templates directory.
        template: The template's own directory in it.
    """
    unseen = {image.name for image in images}
    names = frozenset(unseen)
    for where, name in _references(texts):
        unseen.discard(name)
        if not name or "{" in name:
            cure = "write a file's name as plain text, and choose with {% if %}"
            yield Problem(
                where=f"{directory}/{where}", what="what cid: refers to depends on a variable", cure=cure
            )
        elif name not in names:
            cure = did_you_mean(name, names) or f"put it into {directory}/{template}/{INLINE}"
            yield Problem(where=f"{directory}/{where}", what=f'there is no inline image "{name}"', cure=cure)
    for name in sorted(unseen):
        cure = f'write src="cid:{name}", or move it to {ATTACHMENTS}'
        yield Problem(where=f"{directory}/{template}/{INLINE}/{name}", what="no HTML shows it", cure=cure)


def _references(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Everything that is referred to by `cid:`: file and line, and the name."""
    for path, text in texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            for reference in _CID.finditer(line):
                yield f"{path}:{number}", reference[1]


def with_content_ids(text: str, images: Iterable[Enclosure]) -> str:
    """A source of HTML that refers to images by their identifiers."""
    ids = {image.name: image.content_id for image in images}
    return _CID.sub(lambda reference: f"cid:{ids.get(reference[1], reference[1])}", text)


def with_data_urls(html: str, images: Iterable[Enclosure]) -> str:
    """The HTML of a mail as a page that holds its images (RFC 2397)."""
    for image in images:
        data = b64encode(image.content).decode()
        html = html.replace(f"cid:{image.content_id}", f"data:{image.media_type};base64,{data}")
    return html
