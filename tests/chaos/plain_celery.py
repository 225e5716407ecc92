"""A mailing as it is usually built on Celery alone: what maintd is measured against.

A task for each mail, with `acks_late` and `reject_on_worker_lost`. It looks whether the mail was sent, renders it with
Jinja, builds it with `EmailMessage`, sends it over an open smtplib connection, and then sets the flag in SQL. What
fails on the way is tried again. One more task enqueues everybody who has no flag.

    python -m tests.chaos.plain_celery worker [--concurrency 4 …]

is that worker, told by the variables of `Plain` where everything is; what follows `worker` goes to Celery.
"""

from __future__ import annotations

import os
import smtplib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import jinja2
import sqlalchemy as sa
from celery import Celery

SEND = "plain.send"
SEND_UNSENT = "plain.send_unsent"

_PREFIX = "PLAIN_"
_TEMPLATES = {
    "subject.txt": "News for {{ name }}",
    "body.txt": "Dear {{ name }},\n\nthat is all.\n",
    "body.html": "<p>Dear {{ name }},</p><p>that is all.</p>",
}

metadata = sa.MetaData()
mail = sa.Table(
    "mail",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("email", sa.Text, nullable=False),
    sa.Column("fields", sa.JSON, nullable=False, comment="what the templates may use"),
    sa.Column("sent_at", sa.DateTime(timezone=True), comment="the flag"),
)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Where everything is. A field is read from its name in upper case after `PLAIN_`.

    Attributes:
        redis_url: The broker.
        database_url: The table `mail`; a SQLAlchemy URL.
        smtp_url: The relay: `smtp://host:port`.
        sender: Who writes.
        templates: A directory with `subject.txt`, `body.txt` and `body.html`; short ones of its own without it.
        visibility_timeout_s: When Redis delivers again what a killed worker had taken.
        smtp_timeout_s: For each answer of the relay.
        retry_s: How long after a failure a mail is tried again.
    """

    redis_url: str
    database_url: str
    smtp_url: str
    sender: str = "Site <news@site.example>"
    templates: str = ""
    visibility_timeout_s: str = "3600"
    smtp_timeout_s: str = "60"
    retry_s: str = "1"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Plain:
        """Those of a worker process."""
        names = cls.__dataclass_fields__
        return cls(**{name: environ[key] for name in names if (key := _PREFIX + name.upper()) in environ})

    def environment(self) -> dict[str, str]:
        """With these variables a worker process is told the same."""
        return {_PREFIX + name.upper(): value for name, value in asdict(self).items()}


def make_app(plain: Plain) -> Celery:
    """The application with its two tasks, set up as advised where no message may be lost."""
    app = Celery("plain", set_as_current=False)
    app.conf.update(
        broker_url=plain.redis_url.replace("unix://", "redis+socket://"),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": float(plain.visibility_timeout_s)},
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
    )
    outbox = Outbox(plain)
    retry = {"max_retries": 20, "countdown": float(plain.retry_s)}

    @app.task(name=SEND, autoretry_for=(OSError, sa.exc.OperationalError), retry_kwargs=retry)
    def send(mail_id: int) -> None:
        outbox.send(mail_id)

    @app.task(name=SEND_UNSENT)
    def send_unsent() -> None:
        for mail_id in outbox.unsent():
            send.delay(mail_id)

    return app


class Outbox:
    """The table, the templates and the connection of one worker process, each opened when it is first used."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain
        self._smtp: smtplib.SMTP | None = None

    def unsent(self) -> list[int]:
        """Whose flag is not set."""
        with self._database.connect() as connection:
            return list(connection.scalars(sa.select(mail.c.id).where(mail.c.sent_at.is_(None))))

    def send(self, mail_id: int) -> None:
        """Sends one mail and sets its flag; does nothing if that is set.

        Raises:
            OSError: The relay does not take it, or not now.
        """
        with self._database.connect() as connection:
            row = connection.execute(sa.select(mail).where(mail.c.id == mail_id)).one()
        if row.sent_at is not None:
            return
        self._hand_over(self._message(row.email, row.fields))
        with self._database.begin() as connection:
            connection.execute(sa.update(mail).where(mail.c.id == mail_id).values(sent_at=datetime.now(UTC)))

    @cached_property
    def _database(self) -> sa.Engine:
        return open_database(self._plain.database_url)

    @cached_property
    def _jinja(self) -> jinja2.Environment:
        directory = self._plain.templates
        loader = jinja2.FileSystemLoader(directory) if directory else jinja2.DictLoader(_TEMPLATES)
        return jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape())

    def _message(self, to: str, fields: Mapping[str, Any]) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self._plain.sender
        message["To"] = to
        message["Subject"] = self._rendered("subject.txt", fields).strip()
        message["Date"] = formatdate()
        message["Message-ID"] = make_msgid(domain="site.example")
        message.set_content(self._rendered("body.txt", fields))
        message.add_alternative(self._rendered("body.html", fields), subtype="html")
        return message

    def _rendered(self, name: str, fields: Mapping[str, Any]) -> str:
        return self._jinja.get_template(name).render(**fields)

    def _hand_over(self, message: EmailMessage) -> None:
        try:
            self._relay().send_message(message)
        except OSError:  # smtplib's errors are such, too
            self._hang_up()
            raise

    def _relay(self) -> smtplib.SMTP:
        if self._smtp is None:
            url = urlsplit(self._plain.smtp_url)
            timeout_s = float(self._plain.smtp_timeout_s)
            self._smtp = smtplib.SMTP(url.hostname or "", url.port or 25, timeout=timeout_s)
        return self._smtp

    def _hang_up(self) -> None:
        if self._smtp is not None:
            self._smtp.close()
            self._smtp = None


def open_database(url: str) -> sa.Engine:
    """The database of the table; SQLite waits for its lock for half a minute."""
    sqlite = url.startswith("sqlite")
    return sa.create_engine(url, connect_args={"timeout": 30} if sqlite else {}, pool_pre_ping=True)


def enrol(url: str, people: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Makes the table and fills it with addresses and the fields of each."""
    database = open_database(url)
    metadata.create_all(database)
    with database.begin() as connection:
        connection.execute(
            sa.insert(mail), [{"email": email, "fields": dict(fields)} for email, fields in people]
        )
    database.dispose()


if __name__ == "__main__":
    make_app(Plain.from_environment(os.environ)).worker_main(sys.argv[1:])
