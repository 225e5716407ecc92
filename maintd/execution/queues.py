"""The queues. A message on one of them says only: there may be work here."""

from __future__ import annotations

from enum import StrEnum


class Queue(StrEnum):
    """What kind of work a worker takes."""

    CONTROL = "control"  #: pipelines: quick, opens the way for others
    MAINTENANCE = "maintenance"  #: clean-up, and enrolling audiences
    RATINGS = "ratings"  #: recomputation
    PROGRAMS = "programs"  #: users' own code
    MAIL_URGENT = "mail.urgent"  #: single notices
    MAIL_BULK = "mail.bulk"  #: campaigns


#: Taken by processes with an event loop of their own.
MAIL_QUEUES = frozenset({Queue.MAIL_URGENT, Queue.MAIL_BULK})
WORK_QUEUES = frozenset(Queue) - MAIL_QUEUES
