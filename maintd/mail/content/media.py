"""What kind of content a file has, as receivers are told (RFC 2046)."""

from __future__ import annotations

from pathlib import PurePosixPath

_ANY = "application/octet-stream"
# Written down, because what `mimetypes` knows differs from host to host, and each has to make the same mail. Not .eml:
# message/rfc822 must not be in base64 (RFC 2046 §5.2.1).
_BY_SUFFIX = {
    ".csv": "text/csv",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".gif": "image/gif",
    ".gz": "application/gzip",
    ".htm": "text/html",
    ".html": "text/html",
    ".ics": "text/calendar",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".md": "text/markdown",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".rtf": "application/rtf",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".vcf": "text/vcard",
    ".webp": "image/webp",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xml": "application/xml",
    ".zip": "application/zip",
}


def media_type(name: str, content: bytes) -> str:
    """The type that a file's suffix stands for; octets where it is unknown, or stands for a text that is not UTF-8."""
    known = _BY_SUFFIX.get(PurePosixPath(name).suffix.lower(), _ANY)
    return known if not known.startswith("text/") or _is_utf8(content) else _ANY


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
