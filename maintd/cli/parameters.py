"""Arguments and options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from maintd.errors import ExitCode, MaintdError
from maintd.mail.address import Address, InvalidAddress, parse_address
from maintd.mail.control import BY_HAND

_F = TypeVar("_F", bound=Callable[..., Any])


class _AddressType(click.ParamType[Address]):
    """An address, in whatever spelling: it means whoever it is the same as for a campaign."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return parse_address(str(value))
        except InvalidAddress as error:
            self.fail(f'"{value}": {error}', param, ctx)


ADDRESS = _AddressType()


class NotConfirmed(MaintdError):
    """There was nobody to answer a question."""

    exit_code = ExitCode.INTERRUPTED


def confirm(question: str) -> None:
    """Asks, and goes on only after a yes.

    Raises:
        click.Abort: The answer was no, or Ctrl-C.
        NotConfirmed: Standard input has ended.
    """
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort as error:
        if isinstance(error.__context__, EOFError):
            raise NotConfirmed("not confirmed; use --yes") from None
        raise


def json_option(command: _F) -> _F:
    """Adds `--json`, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


def limit_option(default: int) -> Callable[[_F], _F]:
    """Adds `--limit`."""
    return click.option(
        "--limit", type=click.IntRange(min=1), default=default, show_default=True, help="At most so many."
    )


def reason_option(command: _F) -> _F:
    """Adds `--reason`, which need not be given."""
    return click.option("--reason", default=BY_HAND, show_default=True, help="Kept and shown.")(command)
