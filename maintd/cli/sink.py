"""The sink: a mail server to try things out with."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
from pathlib import Path

import click

from maintd.cli.command import Command
from maintd.cli.context import Context, pass_context
from maintd.errors import MaintdError
from maintd.smtp.mailbox import read_index
from maintd.smtp.sink import serve_forever


@click.command(
    cls=Command,
    exits={
        0: "stopped with Ctrl-C or SIGTERM",
        1: "it cannot listen there, or cannot write into the directory",
    },
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=2525, show_default=True, help="0 takes a free one."
)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@pass_context
def sink(context: Context, *, host: str, port: int, directory: Path) -> None:
    """Run a mail server that keeps every mail in a directory and delivers none; for trying out.

    messages/ has each mail as a file, index.jsonl a line for each. Stop it with Ctrl-C.

    \b
    Example: maintd sink /tmp/mail
             MAINTD_SMTP_URL=smtp://127.0.0.1:2525 maintd send-test weekly-digest me@example.org
    """
    if not _is_loopback(host):
        click.echo(f"warning: anybody who reaches {host} can leave mail here", err=True)
    before = sum(1 for _ in read_index(directory))
    try:
        asyncio.run(_serve(context, host, port, directory))
    except OSError as error:
        place = error.filename or f"{host}:{port}"
        raise MaintdError(f"the sink cannot start at {place}: {os.strerror(error.errno or 0)}") from None
    kept = sum(1 for _ in read_index(directory))
    click.echo(f"kept {kept - before:,} messages in {directory}, {kept:,} in all")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _serve(context: Context, host: str, port: int, directory: Path) -> None:
    """Runs the sink until Ctrl-C or SIGTERM."""
    serving = asyncio.create_task(
        serve_forever(
            host=host,
            port=port,
            directory=directory,
            clock=context.clock,
            listening=lambda bound: click.echo(
                f"listening on smtp://{host}:{bound}, keeping mail in {directory}"
            ),
        )
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    await serving
