"""The queues. A message on one of them says only: there may be work here."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy.engine import Connection

from maintd.mail.sending.allowance import Limits, look


class Queue(StrEnum):
    """What kind of work a worker takes."""

    CONTROL = "control"  #: pipelines: quick, opens the way for others
    MAINTENANCE = "maintenance"  #: clean-up, and enrolling audiences
    RATINGS = "ratings"  #: recomputation
    PROGRAMS = "programs"  #: users' own code
    MAIL_URGENT = "mail.urgent"  #: urgent campaigns, their enrolment included
    MAIL_BULK = "mail.bulk"  #: all other campaigns


#: Taken by processes with an event loop of their own.
MAIL_QUEUES = frozenset({Queue.MAIL_URGENT, Queue.MAIL_BULK})
WORK_QUEUES = frozenset(Queue) - MAIL_QUEUES


def mail_queue(*, urgent: bool) -> Queue:
    """The queue of the processes that send campaigns of that urgency."""
    return Queue.MAIL_URGENT if urgent else Queue.MAIL_BULK


def queues_with_mail(connection: Connection, limits: Limits, *, now: datetime) -> set[Queue]:
    """The queues of the campaigns of which something may go out now or in a moment."""
    return {
        mail_queue(urgent=urgent)
        for urgent in (True, False)
        if look(connection, limits, urgent=urgent, now=now).soon
    }
