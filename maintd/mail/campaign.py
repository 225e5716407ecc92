"""The keys of a `campaign` job, the texts it depends on, and the name of an edition."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from maintd.errors import Problem, Problems, did_you_mean
from maintd.mail.address import parse_address, parse_from
from maintd.mail.content.message import unsafe_headers
from maintd.mail.content.templates import Bundle, MailTemplate, read_bundle
from maintd.spec import Duration, RateLimit, Spec
from maintd.textfile import read_text

SQL_PREFIX = "sql/"
TEMPLATE_PREFIX = "template/"

#: Names that a template always has, whatever its audience.
GIVEN_NAMES = frozenset({"edition"})


class AudienceSpec(Spec):
    """Who gets the mail."""

    sql: str
    """A file in `MAINTD_SCHEDULES_DIR` holding one whole SELECT. It runs read-only; its columns are what the template
    may use."""
    address: str = "email"
    """The column with the e-mail address."""
    recipient: str | None = None
    """The column with the application's own identifier of the person, kept in each delivery."""


class MailStopAt(Spec):
    """Caps that stop a mailing: the first two before its first message, the last while it is under way."""

    recipients: int | None = Field(default=None, ge=1)
    """More recipients than this: nothing is sent."""
    growth: float | None = Field(default=None, gt=0)
    """More than this many times the recipients of the edition before: nothing is sent."""
    refused: float = Field(default=0.05, ge=0, le=1)
    """More than this share of the last 200 messages refused for good: the campaign is paused. With 1 it never is for
    that."""


class CampaignSpec(Spec):
    """One bulk mailing for each edition: every recipient once, whatever dies meanwhile."""

    once_per: Literal["occurrence", "day", "week", "month", "ever"] = "occurrence"
    """What makes an edition. A second run in the same period goes on with it and mails nobody twice."""
    source: str
    """The database that the audience comes from: `MAINTD_SOURCE_<NAME>_URL`."""
    audience: AudienceSpec
    """Who gets the mail."""
    shared: dict[str, str] = {}
    """Names that the template gets with the rows of a query: `{ top = "top-titles.sql" }`. Asked once an edition, the
    same for every recipient; at most 1,000 rows each."""
    template: str
    """The subdirectory of the mail in the templates directory: `subject.txt`, `body.txt` and, if you like, `body.html`.
    Files in its `attachments` go with every mail; images in its `inline` are shown where the HTML has
    `src="cid:logo.png"`. They may have 5 MiB together."""
    from_: str | None = Field(default=None, alias="from")
    """The sender, such as `Acme <news@acme.example>`; without it `MAINTD_MAIL_FROM`."""
    reply_to: str | None = None
    """Where answers go."""
    headers: dict[str, str] = {}
    """Further headers of every message."""
    uncertain: Literal["never_duplicate", "never_lose"] = "never_duplicate"
    """What to do with a message of which nobody can know whether the relay took it. `never_duplicate` parks it until a
    person decides; `never_lose` sends it again."""
    max_copies: int = Field(default=3, ge=1, le=10)
    """With `never_lose`: how many copies of one message may leave at most."""
    urgent: bool = False
    """Sent by processes of its own (the queue `mail.urgent`), so that it never waits behind a campaign that is not
    urgent; its audience is enrolled there too. For mailings that are small and cannot wait."""
    limit: RateLimit | None = None
    """At most so many messages of an edition go out, all processes and hosts together. `MAINTD_SMTP_LIMIT` and the
    lanes hold besides."""
    expires: Duration | None = None
    """What was not sent this long after the edition began is not sent any more."""
    stop_at: MailStopAt = MailStopAt()
    """Caps that stop the mailing."""

    @field_validator("headers")
    @classmethod
    def _can_be_given(cls, headers: dict[str, str]) -> dict[str, str]:
        wrong = [str(error) for error in unsafe_headers(headers)]
        wrong += [
            f"header {name!a}: it is the same for everybody, and {mark} would go out as it is"
            for name, value in headers.items()
            for mark in ("{{", "{%")
            if mark in value
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return headers

    @field_validator("from_")
    @classmethod
    def _is_a_sender(cls, text: str | None) -> str | None:
        if text is not None:
            parse_from(text)
        return text

    @field_validator("reply_to")
    @classmethod
    def _is_an_address(cls, text: str | None) -> str | None:
        if text is not None:
            parse_address(text)
        return text

    def sent_by(self, default: str | None) -> CampaignSpec:
        """The same with the default sender if it names none, so that an edition keeps the sender it began with."""
        return self if self.from_ is not None else self.model_copy(update={"from_": default})


def read_files(spec: CampaignSpec, *, schedules: Path, templates: Path) -> dict[str, str]:
    """Reads every file that a campaign depends on, to be frozen with its job.

    Returns:
        By name: texts, `sql/digest.sql`, `template/digest/body.html`, and in base64 what goes with every mail,
        `template/digest/attachments/terms.pdf`.

    Raises:
        Problems: Files that are missing or cannot be used, all at once.
    """
    problems: list[Problem] = []
    files: dict[str, str] = {}
    for key, name in [
        ("audience.sql", spec.audience.sql),
        *((f"shared.{n}", f) for n, f in spec.shared.items()),
    ]:
        try:
            files[SQL_PREFIX + name] = _statement(schedules, name, key=key)
        except Problems as error:
            problems.extend(error.problems)
    try:
        bundle = read_bundle(templates, spec.template)
        files |= {TEMPLATE_PREFIX + name: text for name, text in bundle.files.items()}
    except Problems as error:
        problems.extend(error.problems)
    if problems:
        raise Problems(problems)
    return files


def _statement(schedules: Path, name: str, *, key: str) -> str:
    path = schedules / name
    if not path.is_file():
        known = [found.name for found in schedules.glob("*.sql")]
        cure = did_you_mean(name, known)
        raise Problems([Problem(where=key, what=f"there is no file {path}", cure=cure)])
    return read_text(path)


def bundle_of(spec: CampaignSpec, files: Mapping[str, str]) -> Bundle:
    """The template among a job's frozen texts."""
    texts = {
        name.removeprefix(TEMPLATE_PREFIX): text
        for name, text in files.items()
        if name.startswith(TEMPLATE_PREFIX)
    }
    return Bundle(name=spec.template, files=texts)


def columns_used(spec: CampaignSpec, template: MailTemplate) -> frozenset[str]:
    """The columns that a template wants of the audience."""
    return template.variables - GIVEN_NAMES - spec.shared.keys()


def content_digest(spec: CampaignSpec, files: Mapping[str, str]) -> str:
    """Digest of everything that decides what is sent to whom: two runs of one edition must agree on it."""
    content = [spec.model_dump(mode="json", by_alias=True), dict(files)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def edition_of(once_per: str, *, nominal_at: datetime, occurrence: str, timezone: str) -> str:
    """The name of the edition that a run belongs to, by the calendar of its job's zone.

    Weeks are those of ISO 8601, so that the days around New Year belong to one week only.
    """
    local = nominal_at.astimezone(ZoneInfo(timezone))
    week = local.isocalendar()
    return {
        "occurrence": occurrence,
        "day": f"{local:%Y-%m-%d}",
        "week": f"{week.year}-W{week.week:02}",
        "month": f"{local:%Y-%m}",
        "ever": "ever",
    }[once_per]
