"""From a campaign and a delivery to the very bytes: every attempt at a delivery gives the same."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from maintd.errors import JobFailed
from maintd.ledger.deliveries import Delivery
from maintd.mail.address import Address, parse_address, parse_from
from maintd.mail.campaign import CampaignSpec
from maintd.mail.content.message import Content, build_message, needs_smtputf8
from maintd.mail.content.skeleton import Skeleton
from maintd.mail.content.templates import Bundle, Rendered, compile_bundle
from maintd.smtp.session import Outgoing


class Mailing(Protocol):
    """What all messages of one edition have in common; a campaign of the ledger is one."""

    @property
    def uid(self) -> str:
        """Random; part of every Message-ID."""
        ...

    @property
    def name(self) -> str:
        """What its messages carry as X-Maintd-Campaign."""
        ...

    @property
    def edition(self) -> str:
        """What the template gets as `edition`."""
        ...

    @property
    def spec(self) -> Mapping[str, Any]:
        """The job's keys, as stored."""
        ...

    @property
    def shared(self) -> Mapping[str, Any]:
        """What the template gets for everybody."""
        ...

    @property
    def dated_at(self) -> datetime:
        """The Date of every message."""
        ...


class Composer:
    """Makes the messages of one campaign."""

    def __init__(
        self,
        campaign: Mailing,
        bundle: Bundle,
        *,
        redirect: str | None,
    ) -> None:
        """Compiles the campaign's template and encodes what is enclosed.

        Args:
            campaign: Whose messages to make.
            bundle: Its template, as stored.
            redirect: The address that gets everything, for staging; None in production.

        Raises:
            JobFailed: There is no usable sender.
        """
        self._campaign = campaign
        self._spec = CampaignSpec.model_validate(campaign.spec)
        self._template = compile_bundle(bundle)
        self._skeleton = Skeleton(seed=campaign.uid, inline=bundle.inline, attachments=bundle.attachments)
        self._from_name, self._from = sender_of(self._spec)
        self._reply_to = parse_address(self._spec.reply_to) if self._spec.reply_to else None
        self.redirect = parse_address(redirect) if redirect else None

    def render(self, fields: dict[str, object]) -> Rendered:
        """Renders the template for one recipient.

        Raises:
            RenderFailed: The template cannot be rendered with these fields.
        """
        return self._template.render({**self._campaign.shared, "edition": self._campaign.edition, **fields})

    def message(self, delivery: Delivery) -> Outgoing:
        """The message of a delivery, ready for a relay.

        Raises:
            RenderFailed: The template cannot be rendered with this recipient's fields.
            UnsafeHeader: A header would carry a control character.
        """
        to = parse_address(delivery.address)
        return self.outgoing(self.content(to, key=delivery.recipient_key, fields=delivery.fields))

    def content(self, to: Address, *, key: bytes, fields: dict[str, object]) -> Content:
        """What the mail to one recipient says.

        Args:
            to: The recipient.
            key: The recipient's key, which becomes part of the Message-ID.
            fields: The recipient's own columns.

        Raises:
            RenderFailed: The template cannot be rendered with these fields.
        """
        rendered = self.render(fields)
        return Content(
            from_name=self._from_name,
            from_address=self._from,
            to=to,
            reply_to=self._reply_to,
            message_id=message_id(self._campaign.uid, key, domain=self._from.domain),
            date=self._campaign.dated_at,
            subject=rendered.subject,
            text=rendered.text,
            html=rendered.html,
            headers=(
                ("X-Maintd-Campaign", self._campaign.name),
                ("Auto-Submitted", "auto-generated"),
                *self._spec.headers.items(),
            ),
        )

    def outgoing(self, content: Content) -> Outgoing:
        """A mail in its envelope: to its recipient, or to where all mail is redirected.

        Raises:
            UnsafeHeader: A header would carry a control character.
        """
        envelope = self.redirect or content.to
        own, ending = build_message(content, self._skeleton)
        return Outgoing(
            sender=_path(self._from),
            recipient=_path(envelope),
            content=own,
            ending=ending,
            smtputf8=needs_smtputf8(content) or envelope.ascii_mailbox is None,
        )


def message_id(uid: str, recipient_key: bytes, *, domain: str) -> str:
    """The Message-ID of a delivery, from the record alone, so that every attempt carries the same.

    Args:
        uid: Of the campaign.
        recipient_key: Of the delivery.
        domain: Of the sender's address.
    """
    return f"<{uid}.{recipient_key.hex()}@{domain}>"


def sender_of(spec: CampaignSpec) -> tuple[str, Address]:
    """Display name and address of a campaign's sender.

    Raises:
        JobFailed: It has none.
    """
    if spec.from_ is None:
        raise JobFailed("from: there is no sender; give the job a `from` or set MAINTD_MAIL_FROM")
    return parse_from(spec.from_)


def _path(address: Address) -> str:
    """The form of an address that goes into the envelope: ASCII wherever it has one."""
    return address.ascii_mailbox or address.mailbox
