"""URLs that may hold a password: checked without being repeated, shown without it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

# Up to the *last* @: an unescaped / ? # or @ in a password must not let the rest of it through.
_USER = re.compile(r"(?<=://)([^:/@]*):(.*)@")
_PARAMETER = re.compile(r"([?&][^=&]*(?:pass|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)


# Only before another URL: what an unescaped space cuts in two is one URL, with a password on both sides.
_BETWEEN = re.compile(r"\s+(?=smtp(?:s|[+]starttls)?://)")


def shown_url(urls: str) -> str:
    """The URL, or several between white space, with `***` for passwords and for every secret-looking parameter."""
    shown = (_USER.sub(_masked, url) for url in _BETWEEN.split(urls))
    return " ".join(_PARAMETER.sub(r"\1***", url) for url in shown)


def _masked(user: re.Match[str]) -> str:
    # Some relays take one token as both user and password.
    return "***:***@" if user[1] == user[2] else f"{user[1]}:***@"


def _of_scheme(*schemes: str) -> Callable[[SecretStr], SecretStr]:
    def check(secret: SecretStr) -> SecretStr:
        url = secret.get_secret_value()
        scheme, separator, _ = url.partition("://")
        if not separator or scheme not in schemes:
            raise ValueError(f"must begin with {' or '.join(f'{name}://' for name in schemes)}")
        if _has_wrong_port(url):
            raise ValueError("has a wrong port; it must be a number from 1 to 65535")
        if not _is_sound(url):
            raise ValueError(
                "is not a URL; percent-encode / ? # @ : [ ] in its user and password, a / as %2F"
            )
        return secret

    return check


def _each(check: Callable[[SecretStr], SecretStr]) -> Callable[[SecretStr], SecretStr]:
    def check_each(secret: SecretStr) -> SecretStr:
        for url in secret.get_secret_value().split():
            check(SecretStr(url))
        return secret

    return check_each


def _is_sound(url: str) -> bool:
    try:
        return urlsplit(url).port is None or not _has_wrong_port(url)
    except ValueError:
        return False


def _has_wrong_port(url: str) -> bool:
    """Whether the port is wrong, as against: what stands there is the beginning of an unescaped password."""
    _, _, rest = url.partition("://")
    host, slash, behind = rest.partition("/")
    _, colon, port = host.rpartition("@")[2].rpartition(":")
    # In "[::1]" the last colon is the address's own.
    if not colon or "]" in port or "@" in slash + behind or re.search(r"[?#]", host):
        return False
    return not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) <= 65_535)


DatabaseUrl = Annotated[
    SecretStr, AfterValidator(_of_scheme("sqlite", "postgresql", "postgres", "postgresql+psycopg"))
]
"""A database that maintd can open."""

RedisUrl = Annotated[SecretStr, AfterValidator(_of_scheme("redis", "rediss", "unix"))]
"""A Redis or Valkey server, by TCP, TLS or a local socket (`unix:///path`)."""

RelayUrls = Annotated[SecretStr, AfterValidator(_each(_of_scheme("smtp", "smtp+starttls", "smtps")))]
"""SMTP relays, separated by white space."""
