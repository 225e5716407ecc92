"""Invented people with the addresses that real tables hold: plain, odd but valid, written twice, and broken."""

from __future__ import annotations

import random
import unicodedata
from datetime import datetime, timedelta
from typing import NamedTuple

FEWEST = 100  #: fewer people would be all special cases

_OPTED_IN = 0.85
_TWICE = 0.02
_FIRST = (
    "Ada", "Aiko", "Amara", "André", "Anna", "Anoush", "Björn", "Carmen", "Chloé", "Dario", "Elif", "Emre", "Esi",
    "Farah", "Freya", "Giulia", "Hana", "Héctor", "Ines", "Ivan", "Jonas", "José", "Jürgen", "Kwame", "Lena", "Leïla",
    "Mateo", "Mei", "Nadia", "Nils", "Noor", "Olga", "Priya", "Ravi", "Renée", "Sofía", "Tariq", "Yusuf", "Zoë",
)  # fmt: skip
_LAST = (
    "Abara", "Almeida", "Bauer", "Berg", "Castillo", "Chen", "Demir", "Dubois", "Eriksson", "Fischer", "García",
    "Haddad", "Ito", "Jansen", "Kaya", "Keller", "Kim", "Lefèvre", "Mensah", "Moreau", "Müller", "Nakamura", "Novak",
    "Okafor", "Oliveira", "Patel", "Petrov", "Quispe", "Rossi", "Schäfer", "Silva", "Tanaka", "Weber", "Yilmaz",
)  # fmt: skip
# Names that RFC 2606 reserves: nobody's mail can ever arrive there.
_DOMAINS = ("example.com", "example.org", "example.net", "mail.example", "post.example", "inbox.test")

_ODD_BUT_VALID = (
    ("Ida Plus", "ida+films@example.com"),
    ("Ida Plus", "ida+digest+2@example.com"),
    ("Conor O'Brien", "conor.o'brien@example.org"),
    ("Every, Sign", "!#$%&'*+-/=?^_`{|}~@example.com"),
    ("4711", "4711@example.net"),
    ("", "no.name@example.com"),
    ("Käthe Büchner", "kaethe@bücher.example"),
    ("Käthe Büchner", "kaethe@xn--bcher-kva.example"),
    ("山田 太郎", "taro@例え.test"),
    ("Longest Local Part", "l" * 64 + "@example.org"),
    ("Longest Label", "label@" + "d" * 63 + ".example"),
    ("Jörg Umlaut", "jörg@example.org"),
    ("Ольга Петрова", "ольга@example.com"),
    ("🎬 Cinéaste 🍿", "popcorn@example.com"),
    ('Grace "Amazing" Hopper', "grace@example.net"),
    ("Sagan, Carl <not@an.example>", "carl@example.net"),
    ("Tom & Jerry <b>Bold</b>", "tom@example.net"),
    ("{{ name }} %s ${x}", "template@example.net"),
    ("A Name Far Longer Than Any Header Line Should Be, " * 3, "long.name@example.net"),
)
_INVALID = (
    None,
    "",
    "   ",
    "missing-at.example.com",
    "@example.com",
    "nobody@",
    "two words@example.com",
    "two@signs@example.com",
    "double..dot@example.com",
    ".leading@example.com",
    "x" * 65 + "@example.com",
    "hyphen@-start.example",
    "bell\a@example.com",
    "injected@example.com\r\nBcc: everybody@example.com",
)


class Person(NamedTuple):
    """A row of `app_user`."""

    id: int
    email: str | None
    name: str
    wants_digest: bool
    created_at: datetime


def invent_people(draw: random.Random, *, count: int, now: datetime) -> list[Person]:
    """Invents people with ids 1 to `count`; about 85 % want the digest, some appear twice.

    Raises:
        ValueError: `count` is below `FEWEST`.
    """
    if count < FEWEST:
        raise ValueError(f"at least {FEWEST} people are needed, not {count}")
    special = [*_ODD_BUT_VALID, *(("Broken Address", email) for email in _INVALID)]
    twice = int(count * _TWICE)
    ordinary = [_ordinary(draw, number) for number in range(count - twice - len(special))]
    again = [(name, _respelt(draw, email)) for name, email in draw.sample(ordinary, twice)]
    # Whom a special case befalls is always opted in, so that each of them meets the mailing.
    entries = [(name, email, True) for name, email in special]
    entries += [(name, email, draw.random() < _OPTED_IN) for name, email in (*ordinary, *again)]
    draw.shuffle(entries)
    return [
        Person(number, email, name, wants_digest, now - timedelta(days=draw.uniform(1100, 3000)))
        for number, (name, email, wants_digest) in enumerate(entries, start=1)
    ]


def _ordinary(draw: random.Random, number: int) -> tuple[str, str]:
    first, last = draw.choice(_FIRST), draw.choice(_LAST)
    return f"{first} {last}", f"{_ascii(first)}.{_ascii(last)}{number}@{draw.choice(_DOMAINS)}"


def _ascii(name: str) -> str:
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()


def _respelt(draw: random.Random, email: str) -> str:
    return draw.choice((email, email.upper(), email.title()))
