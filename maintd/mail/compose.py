"""From a campaign and a delivery to the very bytes: every attempt at a delivery gives the same."""

from __future__ import annotations

from maintd.errors import JobFailed
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery
from maintd.mail.address import Address, parse_address, parse_from
from maintd.mail.campaign import CampaignSpec
from maintd.mail.message import Content, build_message, needs_smtputf8
from maintd.mail.templates import Bundle, Rendered, compile_bundle
from maintd.smtp.session import Outgoing


class Composer:
    """Makes the messages of one campaign."""

    def __init__(
        self,
        campaign: Campaign,
        bundle: Bundle,
        *,
        default_from: str | None,
        redirect: str | None,
    ) -> None:
        """Compiles the campaign's template.

        Args:
            campaign: Whose messages to make.
            bundle: Its template, as stored.
            default_from: The sender of jobs that name none.
            redirect: The address that gets everything, for staging; None in production.

        Raises:
            JobFailed: There is no usable sender.
        """
        self._campaign = campaign
        self._spec = CampaignSpec.model_validate(campaign.spec)
        self._template = compile_bundle(bundle)
        self._from_name, self._from = sender_of(self._spec, default_from=default_from)
        self._reply_to = parse_address(self._spec.reply_to) if self._spec.reply_to else None
        self._redirect = parse_address(redirect) if redirect else None

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
        rendered = self.render(delivery.fields)
        to = parse_address(delivery.address)
        content = Content(
            from_name=self._from_name,
            from_address=self._from,
            to=to,
            reply_to=self._reply_to,
            message_id=f"<{self._campaign.uid}.{delivery.recipient_key.hex()}@{self._from.domain}>",
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
        envelope = self._redirect or to
        return Outgoing(
            sender=_path(self._from),
            recipient=_path(envelope),
            content=build_message(content),
            smtputf8=needs_smtputf8(content) or envelope.ascii_mailbox is None,
        )


def sender_of(spec: CampaignSpec, *, default_from: str | None) -> tuple[str, Address]:
    """Display name and address of a campaign's sender.

    Raises:
        JobFailed: Neither the job nor the settings name one.
    """
    text = spec.from_ or default_from
    if text is None:
        raise JobFailed("from: there is no sender; give the job a `from` or set MAINTD_MAIL_FROM")
    return parse_from(text)


def _path(address: Address) -> str:
    """The form of an address that goes into the envelope: ASCII wherever it has one."""
    return address.ascii_mailbox or address.mailbox
