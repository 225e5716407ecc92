"""Where mail is handed over: the relays of a setting."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import SplitResult, unquote, urlsplit

from maintd.errors import Problem, Problems, did_you_mean

_CURE = "write it like smtp://localhost, smtp+starttls://user:password@mail.example.com or smtps://mail.example.com:465"
_OPTIONS = {"weight": range(1001), "connections": range(1, 10_001), "messages": range(1, 1_000_001)}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Security(StrEnum):
    """How a connection to a relay is protected. Never opportunistically: that would be strippable."""

    PLAIN = "plain"  #: not at all; for a relay on this machine or in the same trusted network
    STARTTLS = "starttls"  #: upgraded by STARTTLS, or not used
    TLS = "tls"  #: TLS from the first byte (RFC 8314 §3.3)


_SCHEMES = {"smtp": Security.PLAIN, "smtp+starttls": Security.STARTTLS, "smtps": Security.TLS}
_PORTS = {Security.PLAIN: 25, Security.STARTTLS: 587, Security.TLS: 465}


@dataclass(frozen=True, kw_only=True)
class Relay:
    """An SMTP server that takes the mail.

    Attributes:
        host: Name or address; an IPv6 address without brackets.
        port: TCP port.
        security: How the connection is protected.
        username: For AUTH; empty means no AUTH.
        password: For AUTH.
        weight: Its part of the connections, against the others' weights. 0: it stands by until no other takes mail.
        connections: The most connections to it over all processes of all hosts; None: no such cap.
        messages: After how many messages a connection is closed and another one opened; None: never for that.
    """

    host: str
    port: int
    security: Security
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    weight: int = 1
    connections: int | None = None
    messages: int | None = None

    @property
    def where(self) -> str:
        """Its URL for logs and errors: scheme, host and port, nothing secret."""
        scheme = next(name for name, security in _SCHEMES.items() if security == self.security)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @property
    def key(self) -> str:
        """What all processes call this server and user by, nothing secret: 16 hexadecimal digits."""
        return hashlib.sha256(f"{self.host}\n{self.port}\n{self.username}".encode()).hexdigest()[:16]


def parse_relays(text: str, *, where: str) -> list[Relay]:
    """Reads relay URLs that are separated by white space.

    Args:
        text: At least one URL; see `parse_relay_url`.
        where: What errors call it: the name of the setting.

    Raises:
        Problems: Everything wrong with all of them. Their text repeats no part of any URL.
    """
    urls = text.split() or [""]
    relays: list[Relay] = []
    problems: list[Problem] = []
    for number, url in enumerate(urls, 1):
        try:
            relays.append(parse_relay_url(url, where=where if len(urls) == 1 else f"{where}, relay {number}"))
        except Problems as error:
            problems += error.problems
    if len({relay.key for relay in relays}) < len(relays):
        what = "two of its relays have the same host, port and user"
        problems.append(Problem(where=where, what=what, cure="name it once, with a larger weight"))
    if relays and not problems and not any(relay.weight for relay in relays):
        what = "every relay has weight=0: each stands by for another, and there is none"
        problems.append(Problem(where=where, what=what, cure="give one of them a weight"))
    if problems:
        raise Problems(problems)
    return relays


def parse_relay_url(url: str, *, where: str = "relay URL") -> Relay:
    """Reads `smtp://`, `smtp+starttls://` or `smtps://` with `[user:password@]host[:port][?option=number&…]`.

    Default ports are 25, 587 and 465. User and password are percent-encoded. Options are `weight`, `connections` and
    `messages`: see `Relay`.

    Args:
        url: The URL.
        where: What errors call it: the name of the setting.

    Raises:
        Problems: Everything wrong with it. Their text repeats no part of the URL: a password with a stray "/" or "#"
            would make any part of it the password.
    """
    parts = _split(url, where=where)
    security = _SCHEMES[parts.scheme]
    username, password = _unquoted(parts.username), _unquoted(parts.password)
    options = dict(_options(parts))
    wrong = [*_wrong_address(parts), *_wrong_login(username, password), *_wrong_options(parts, options)]
    if username and security is Security.PLAIN and not _is_loopback(parts.hostname or ""):
        wrong.append("the password would go over the network in the clear; use smtp+starttls:// or smtps://")
    if wrong or username is None or password is None:
        raise Problems([Problem(where=where, what=what, cure=_CURE) for what in wrong])
    return Relay(
        host=parts.hostname or "",
        port=_port(parts) or _PORTS[security],
        security=security,
        username=username,
        password=password,
        **options,
    )


def _split(url: str, *, where: str) -> SplitResult:
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise Problems([Problem(where=where, what="it is not a URL", cure=_CURE)]) from None
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise Problems([Problem(where=where, what="it is not the URL of an SMTP relay", cure=_CURE)])
    return parts


def _wrong_address(parts: SplitResult) -> list[str]:
    wrong = []
    if not _is_host(parts.hostname or ""):
        wrong.append("its host is missing or neither a name nor an address")
    if _port(parts) == 0:
        wrong.append("its port is not a number from 1 to 65535")
    if parts.path not in ("", "/") or parts.fragment:
        wrong.append(
            'something follows the host and port; "/", "?" and "#" in a password are written %2F, %3F and %23'
        )
    return wrong


def _wrong_login(username: str | None, password: str | None) -> list[str]:
    if username is None or password is None:
        return ["its user or password is not percent-encoded UTF-8, or has a control character"]
    if bool(username) != bool(password):
        return ["it has a user without a password, or a password without a user"]
    return []


def _options(parts: SplitResult) -> Iterator[tuple[str, int]]:
    """The options that are right."""
    for option in parts.query.split("&"):
        name, _, text = option.partition("=")
        # No option has nine digits, and no number needs to be read that has more.
        if name in _OPTIONS and re.fullmatch(r"[0-9]{1,9}", text) and int(text) in _OPTIONS[name]:
            yield name, int(text)


def _wrong_options(parts: SplitResult, right: Container[str]) -> Iterator[str]:
    names = [option.partition("=")[0] for option in parts.query.split("&")] if parts.query else []
    if len(set(names)) < len(names) or not _OPTIONS.keys() >= set(names):
        known = f'behind "?" there may be {", ".join(_OPTIONS)}, each once'
        yield "; ".join([known, *_meant(names), 'a "?" in a password is written %3F'])
    for name, numbers in _OPTIONS.items():
        if name in names and name not in right:
            yield f"its {name} is not a whole number from {numbers[0]} to {numbers[-1]}"


def _meant(names: Sequence[str]) -> list[str]:
    """The options that are meant, not what was written for them."""
    hints = (did_you_mean(name, _OPTIONS, listing=False) for name in names if name not in _OPTIONS)
    return [*dict.fromkeys(filter(None, hints))]


def _unquoted(text: str | None) -> str | None:
    try:
        plain = unquote(text or "", errors="strict")
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(plain) else plain


def _port(parts: SplitResult) -> int | None:
    """The port that is given, None if there is none, 0 if it is not one."""
    try:
        return parts.port
    except ValueError:
        return 0


def _is_host(host: str) -> bool:
    return _HOST.fullmatch(host) is not None or _address(host) is not None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
