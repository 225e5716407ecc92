"""What maintd's mail is measured against, each in processes of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiosmtplib
import sqlalchemy as sa

from benchmarks.mailing import CONNECTIONS, TEMPLATES, Figures, cpu_s, people
from maintd.mail.address import parse_address
from maintd.mail.content.message import Content, build_message
from maintd.mail.content.skeleton import Skeleton
from maintd.mail.content.templates import Bundle, MailTemplate, compile_bundle
from tests.chaos import plain_celery
from tests.chaos.plain_celery import Plain, make_app

_EDITION = "one"


def rendering(template: str, count: int) -> Figures:
    """The templates alone, in a process of their own."""
    return _apart("rendering", template, str(count))


def plain_aiosmtplib(template: str, count: int, *, port: int) -> Figures:
    """Messages that are made already over as many connections of aiosmtplib as maintd has; nothing is recorded."""
    return _apart("aiosmtplib", template, str(count), str(port))


def plain_celery_mailing(template: str, count: int, *, directory: Path, redis_url: str, port: int) -> Figures:
    """A task a mail, in one worker process; from the first message in the queue to the last flag."""
    database = f"sqlite:///{directory / f'{uuid.uuid4().hex}.db'}"
    templates = directory / f"plain-{template}"
    _write_templates(templates, TEMPLATES[template])
    plain = Plain(
        redis_url=redis_url,
        database_url=database,
        smtp_url=f"smtp://127.0.0.1:{port}",
        templates=str(templates),
    )
    plain_celery.enrol(
        database, ((email, {"name": name, "edition": _EDITION}) for email, name in people(count))
    )
    command = [
        sys.executable,
        "-m",
        "tests.chaos.plain_celery",
        "worker",
        "--pool",
        "solo",
        "--loglevel",
        "error",
    ]
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONWARNINGS": "ignore"} | plain.environment(),
        stdout=subprocess.DEVNULL,
    ) as worker:
        try:
            return _until_all_are_flagged(plain, count, pid=worker.pid)
        finally:
            worker.terminate()


def _until_all_are_flagged(plain: Plain, count: int, *, pid: int) -> Figures:
    app, database = make_app(plain), plain_celery.open_database(plain.database_url)
    flagged = sa.select(sa.func.count(), sa.func.max(plain_celery.mail.c.sent_at)).where(
        plain_celery.mail.c.sent_at.is_not(None)
    )
    # The first one proves that the worker is up; the clock starts with the others.
    app.send_task(plain_celery.SEND, args=[1])
    _wait_for(database, flagged, 1)
    before_s, began_at = cpu_s(pid), datetime.now(UTC)
    app.send_task(plain_celery.SEND_UNSENT)
    ended_at = _wait_for(database, flagged, count).replace(tzinfo=UTC)
    took_s, took_cpu_s = (ended_at - began_at).total_seconds(), cpu_s(pid) - before_s
    app.close()
    database.dispose()
    return Figures(per_s=(count - 1) / took_s, cpu_us=took_cpu_s / (count - 1) * 1e6)


def _wait_for(database: sa.Engine, flagged: sa.Select[tuple[int, datetime]], count: int) -> datetime:
    while True:
        with database.connect() as connection:
            done, last_at = connection.execute(flagged).one()
        if done == count:
            return last_at
        time.sleep(0.1)


def _write_templates(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(exist_ok=True)
    for name in ("subject.txt", "body.txt", "body.html"):
        (directory / name).write_text(files.get(name, "<p>{{ name }}</p>"))


def ceiling(count: int, *, size: int) -> float | None:
    """Messages a second from Postfix's smtp-source to its smtp-sink; None where they are not installed."""
    if not (shutil.which("smtp-source") and shutil.which("smtp-sink")):
        return None
    address = "inet:127.0.0.1:2599"
    user = ["-u", "nobody"] if os.getuid() == 0 else []
    with subprocess.Popen(["smtp-sink", *user, "127.0.0.1:2599", "1000"], stderr=subprocess.DEVNULL) as sink:
        try:
            time.sleep(0.5)
            began_s = time.perf_counter()
            subprocess.run(
                ["smtp-source", "-s", str(CONNECTIONS), "-m", str(count), "-l", str(size), "-f", "a@example.com",
                 "-t", "b@example.com", "-d", address],
                check=True,
            )  # fmt: skip
            return count / (time.perf_counter() - began_s)
        finally:
            sink.terminate()


def size_of(template: str) -> int:
    """Octets of one message."""
    return len(next(_messages(_compiled(template), 1))[1])


def _apart(*arguments: str) -> Figures:
    command = [sys.executable, "-m", "benchmarks.rivals", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Figures(**json.loads(done.stdout))


def _compiled(template: str) -> MailTemplate:
    files = {f"{template}/{name}": text for name, text in TEMPLATES[template].items()}
    return compile_bundle(Bundle(name=template, files=files))


def _render(template: str, count: int) -> Figures:
    compiled = _compiled(template)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for _, name in people(count):
        compiled.render({"name": name, "edition": _EDITION})
    took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return Figures(per_s=count / took_s, cpu_us=took_cpu_s / count * 1e6)


def _messages(template: MailTemplate, count: int) -> Iterator[tuple[str, bytes]]:
    sender, now, skeleton = parse_address("news@acme.example"), datetime.now(UTC), Skeleton(seed="benchmark")
    for email, name in people(count):
        rendered = template.render({"name": name, "edition": _EDITION})
        content = Content(
            from_name="Acme",
            from_address=sender,
            to=parse_address(email),
            message_id=f"<{uuid.uuid4().hex}@acme.example>",
            date=now,
            subject=rendered.subject,
            text=rendered.text,
            html=rendered.html,
        )
        own, ending = build_message(content, skeleton)
        yield email, own.octets + ending.octets


async def _send(template: str, count: int, *, port: int) -> Figures:
    line = iter(list(_messages(_compiled(template), count)))
    clients = [aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) for _ in range(CONNECTIONS)]
    for client in clients:
        await client.connect()

    async def send_its_share(client: aiosmtplib.SMTP) -> None:
        for email, message in line:
            await client.sendmail("news@acme.example", [email], message)

    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(send_its_share, clients))
    took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    for client in clients:
        client.close()
    return Figures(per_s=count / took_s, cpu_us=took_cpu_s / count * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["rendering", "aiosmtplib"])
    parser.add_argument("template", choices=sorted(TEMPLATES))
    parser.add_argument("count", type=int)
    parser.add_argument("port", type=int, nargs="?")
    given = parser.parse_args()
    if given.what == "rendering":
        figures = _render(given.template, given.count)
    else:
        figures = asyncio.run(_send(given.template, given.count, port=given.port))
    print(json.dumps(figures.__dict__))


if __name__ == "__main__":
    main()
