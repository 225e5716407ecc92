"""One mail of a campaign job as its files would make it now; nothing is written and nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from maintd.database import Database
from maintd.errors import JobFailed
from maintd.mail.address import Address, InvalidAddress, parse_address, recipient_key
from maintd.mail.campaign import SQL_PREFIX, CampaignSpec, bundle_of, columns_used, edition_of
from maintd.mail.compose import Composer
from maintd.mail.content.enclosures import Enclosure
from maintd.mail.content.images import with_data_urls
from maintd.mail.content.message import Content
from maintd.mail.content.templates import MailTemplate, compile_bundle
from maintd.mail.enrolling.audience import Row, ask_shared, open_audience
from maintd.mail.enrolling.enrol import check_columns
from maintd.smtp.session import Outgoing

#: Makes the Message-ID of a preview. No secret: a preview shows the address itself.
_KEY = b"preview"


class NobodyThere(JobFailed):
    """The audience has nobody to make a mail for."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A campaign job that need not be applied.

    Attributes:
        job: Its name.
        spec: Its keys.
        files: The texts it depends on.
        timezone: By whose calendar its periods are named.
        uid: Becomes part of the Message-ID.
        now: The Date of the mail, and the instant that names the edition.
    """

    job: str
    spec: CampaignSpec
    files: Mapping[str, str]
    timezone: str
    uid: str
    now: datetime


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One recipient's mail.

    Attributes:
        content: What it says.
        composer: Puts it, or a variation of it, into an envelope.
        attachments: The files that go with it.
        inline: The images that its HTML shows.
    """

    content: Content
    composer: Composer
    attachments: tuple[Enclosure, ...]
    inline: tuple[Enclosure, ...]

    @property
    def message(self) -> Outgoing:
        """As it would go to the relay."""
        return self.composer.outgoing(self.content)

    def files(self) -> dict[str, bytes]:
        """What a person may want to open, by file name; the HTML is a page that shows its images by itself."""
        texts = {"subject.txt": f"{self.content.subject}\n", "body.txt": self.content.text}
        if self.content.html is not None:
            texts["body.html"] = with_data_urls(self.content.html, self.inline)
        return {name: text.encode() for name, text in texts.items()} | {"message.eml": self.message.octets}


@dataclass(frozen=True, kw_only=True)
class _Occasion:
    """What a composer has to know; of a campaign that is enrolled, the ledger knows it."""

    uid: str
    name: str
    edition: str
    spec: Mapping[str, Any]
    shared: Mapping[str, Any]
    dated_at: datetime


def preview(
    draft: Draft,
    *,
    source: Database,
    recipient: Address | None,
    redirect: str | None,
) -> Preview:
    """Makes the mail of one person of the audience.

    Args:
        draft: The job.
        source: The database that its audience comes from.
        recipient: Who; without it the first row of the audience that has a valid address.
        redirect: The address that gets everything, for staging.

    Raises:
        JobFailed: Bad SQL, missing columns, no sender.
        NobodyThere: The audience has no such person, or nobody with a valid address.
        RenderFailed: The template cannot be rendered with that person's fields.
        Unavailable: The source does not answer.
    """
    bundle = bundle_of(draft.spec, draft.files)
    template = compile_bundle(bundle)
    to, row = _person(draft, template, source=source, recipient=recipient)
    occasion = _occasion(draft, source=source)
    composer = Composer(occasion, bundle, redirect=redirect)
    used = columns_used(draft.spec, template)
    content = composer.content(
        to, key=recipient_key(to.canonical, key=_KEY), fields={name: row[name] for name in used}
    )
    return Preview(content=content, composer=composer, attachments=bundle.attachments, inline=bundle.inline)


def _occasion(draft: Draft, *, source: Database) -> _Occasion:
    edition = edition_of(
        draft.spec.once_per,
        nominal_at=draft.now,
        occurrence=f"{draft.now:%Y-%m-%dT%H:%M:%S}[UTC]",
        timezone=draft.timezone,
    )
    shared = ask_shared(source, draft.spec, draft.files)
    return _Occasion(
        uid=draft.uid,
        name=f"{draft.job}/{edition}",
        edition=edition,
        spec=draft.spec.model_dump(mode="json", by_alias=True),
        shared=shared,
        dated_at=draft.now,
    )


def _person(
    draft: Draft, template: MailTemplate, *, source: Database, recipient: Address | None
) -> tuple[Address, Row]:
    """The first row of the audience that fits, and its address."""
    audience = draft.spec.audience
    sql = draft.files[SQL_PREFIX + audience.sql]
    read = 0
    with open_audience(source, sql, key=f"audience.sql ({audience.sql})") as (columns, chunks):
        check_columns(draft.spec, template, columns)
        for chunk in chunks:
            for row in chunk:
                address = _address(row[audience.address])
                if address and (recipient is None or address.canonical == recipient.canonical):
                    return address, row
            read += len(chunk)
    if recipient is not None:
        raise NobodyThere(
            f"{recipient.mailbox} is not among the {read:,} rows of the audience of {draft.job}"
        )
    raise NobodyThere(
        f"the audience of {draft.job} has {read:,} rows and nobody with a valid address in them"
    )


def _address(text: object) -> Address | None:
    try:
        return parse_address(None if text is None else str(text))
    except InvalidAddress:
        return None
