"""Mails from their template to the mailbox of a relay."""

from __future__ import annotations

import asyncio
import email
from base64 import b64encode
from collections.abc import Callable
from email import policy
from email.message import EmailMessage
from pathlib import Path

import pytest
import sqlalchemy as sa

from maintd.database import Database
from maintd.ledger import deliveries, tables
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery
from maintd.ledger.states import DeliveryState
from maintd.mail.compose import Composer
from maintd.mail.content.templates import Bundle
from maintd.smtp.faults import Action, Moment, Step
from maintd.smtp.mailbox import read_index
from maintd.smtp.session import Verdict
from tests.ledgers import HandClock, add_campaign, tallied
from tests.mail.test_pump import pump_of, run
from tests.sinks import SinkThread
from tests.smtp.relaying import Kind, Watching, send, sink_and_session

PDF, PNG = bytes(range(256)) * 4000, b"\x89PNG"
DOTS = ".\n..\n.a\n\n.\nQUIT\n"
ILLUSTRATED = Bundle(
    name="hello",
    files={
        "hello/subject.txt": "Hello {{ name }}",
        "hello/body.txt": f"Dear {{{{ name }}}},\n{DOTS}",
        "hello/body.html": f'<p>Dear {{{{ name }}}}<img src="cid:logo.png">\n{DOTS}',
        "hello/attachments/terms & conditions – 2026.pdf": b64encode(PDF).decode(),
        "hello/inline/logo.png": b64encode(PNG).decode(),
    },
)
JÜRGEN = "jürgen@example.org"


@pytest.fixture
def illustrated(ledger: Database) -> Campaign:
    """A campaign with two recipients, the second one's address not in ASCII."""
    campaign = add_campaign(ledger, recipients=2, bundle=ILLUSTRATED)
    with ledger.write() as connection:
        second = tables.deliveries.c.ordinal == 1
        connection.execute(sa.update(tables.deliveries).where(second).values(address=JÜRGEN))
    return campaign


def deliveries_of(ledger: Database, campaign: Campaign) -> list[Delivery]:
    with ledger.read() as connection:
        return deliveries.of_campaign(connection, campaign.id, state=None, limit=10)


def mail(ledger: Database, url: str) -> None:
    run(pump_of(ledger, url, HandClock(), connections=1, depth=4))


def offering(*extensions: str) -> Callable[[Moment], Action | None]:
    """A relay that offers these and no others."""
    offer = Action(
        reply="\r\n".join(["250-old.example", *(f"250-{each}" for each in extensions), "250 HELP"])
    )
    return lambda moment: offer if moment.step is Step.HELLO else None


@pytest.mark.parametrize("kind", Kind)
def test_a_mail_arrives_octet_by_octet(
    ledger: Database, illustrated: Campaign, kind: Kind, tmp_path: Path
) -> None:
    delivery = deliveries_of(ledger, illustrated)[0]
    outgoing = Composer(illustrated, ILLUSTRATED, redirect=None).message(delivery)
    assert b"\r\n.\r\n" in outgoing.content.octets
    watching = Watching()

    async def main() -> None:
        async with sink_and_session(tmp_path, kind=kind, script=watching) as (_, session):
            assert (await send(session, outgoing)).verdict is Verdict.ACCEPTED

    asyncio.run(main())
    [accepted] = read_index(tmp_path)
    assert (tmp_path / f"messages/{accepted.seq}.eml").read_bytes() == outgoing.octets
    assert watching.first("MAIL") == f"MAIL FROM:<news@acme.example> SIZE={len(outgoing.octets)}"


def test_everybody_gets_what_is_enclosed(ledger: Database, illustrated: Campaign, tmp_path: Path) -> None:
    with SinkThread(tmp_path) as relay:
        mail(ledger, relay.url)
    assert tallied(ledger, illustrated.id) == {DeliveryState.SENT: 2}
    for accepted in read_index(tmp_path):
        octets = (tmp_path / f"messages/{accepted.seq}.eml").read_bytes()
        message = email.message_from_bytes(octets, policy=policy.default)
        assert isinstance(message, EmailMessage)
        [terms] = message.iter_attachments()
        assert (terms.get_filename(), terms.get_content()) == ("terms & conditions – 2026.pdf", PDF)
        logo = next(part for part in message.walk() if part["content-id"])
        assert logo.get_payload(decode=True) == PNG
        html = message.get_body(("html",))
        assert html is not None
        assert f"cid:{logo['content-id'][1:-1]}" in html.get_content()
        assert html.get_content().endswith(DOTS.replace("\n", "\r\n"))


def test_an_international_address_is_announced_to_a_relay_that_can_carry_it(
    ledger: Database, illustrated: Campaign, tmp_path: Path
) -> None:
    watching = Watching()
    with SinkThread(tmp_path, script=watching) as relay:
        mail(ledger, relay.url)
    [first, second] = [line for line in watching.lines if line.startswith("MAIL")]
    assert not first.endswith("SMTPUTF8")
    assert second.endswith(" BODY=8BITMIME SMTPUTF8")
    assert [accepted.recipients for accepted in read_index(tmp_path)][1] == (JÜRGEN,)


def test_an_international_address_is_rejected_with_the_reason_where_the_relay_cannot_carry_it(
    ledger: Database, illustrated: Campaign, tmp_path: Path
) -> None:
    with SinkThread(tmp_path, script=offering("PIPELINING", "8BITMIME")) as relay:
        mail(ledger, relay.url)
    assert tallied(ledger, illustrated.id) == {DeliveryState.SENT: 1, DeliveryState.REJECTED: 1}
    rejected = deliveries_of(ledger, illustrated)[1]
    assert rejected.state is DeliveryState.REJECTED
    assert "the relay does not offer SMTPUTF8" in (rejected.detail or "")
    assert len(list(read_index(tmp_path))) == 1
