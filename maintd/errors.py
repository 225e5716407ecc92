"""The errors a person may see, split by what the caller should do about them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

_LISTED = 10
_LONG_NAME = re.compile(r"\[([^\[\]\s]{80})[^\[\]\s]+\]")


class ExitCode(IntEnum):
    """What a `maintd` command's exit status means. Documented and stable."""

    OK = 0
    FAILED = 1  #: it was tried and failed, or something is wrong with what was given
    DIFFERS = 2  #: `plan` only: files and ledger differ
    USAGE = 64  #: the command line itself is wrong
    UNAVAILABLE = 69  #: the ledger, Redis, a source or the relay does not answer; trying later may help
    INTERRUPTED = 130  #: stopped by Ctrl-C


class MaintdError(Exception):
    """Any error whose message is written for a person: what happened, where, and what to do."""

    exit_code: ExitCode = ExitCode.FAILED


class UsageError(MaintdError):
    """The command was called wrongly."""

    exit_code = ExitCode.USAGE


class Unavailable(MaintdError):
    """A service does not answer. Daemons wait and try again; commands say so and exit 69."""

    exit_code = ExitCode.UNAVAILABLE


class JobFailed(MaintdError):
    """A run cannot succeed by being tried again: bad SQL, a missing column, a cap that stopped it."""


class CapReached(JobFailed):
    """A `stop_at` cap stopped a run before it did harm."""


class Interrupted(MaintdError):
    """An orderly stop was asked for; the work done so far stands and the rest resumes later."""


class ClaimLost(MaintdError):
    """Somebody else took over the claimed row: whatever is held must be dropped at once."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with what the user gave.

    Attributes:
        where: File, job and key, or the name of the setting; enough to go there.
        what: What is wrong, in one sentence.
        cure: What to do about it; empty when `what` already says it.
    """

    where: str
    what: str
    cure: str = ""

    def __str__(self) -> str:
        where = _LONG_NAME.sub(r"[\1…]", self.where)
        return f"{where}: {self.what}" + (f"; {self.cure}" if self.cure else "")


class Problems(MaintdError):
    """Everything wrong with a configuration, all at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def did_you_mean(wrong: str, names: Iterable[str], *, listing: bool = True, prefix: str = "") -> str:
    """Returns `did you mean "x"?` for the nearest of `names`, else the first of them, else nothing.

    Args:
        wrong: What was given.
        names: What there is.
        listing: Whether the names are listed where none is near.
        prefix: What all names begin with; having it too makes nothing near.
    """
    known = sorted(names)
    stems = [name.removeprefix(prefix) for name in known]
    near = difflib.get_close_matches(wrong.removeprefix(prefix), stems, n=1)
    if near:
        return f'did you mean "{prefix}{near[0]}"?'
    return f"known: {_listed(known)}" if known and listing else ""


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f", … and {rest:,} more" if rest > 0 else "")
