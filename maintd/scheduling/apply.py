"""Bringing job files into the ledger: what differs, and making it so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.ledger import jobs, runs
from maintd.ledger.jobs import ListedJob
from maintd.scheduling.calendar import next_occurrence
from maintd.scheduling.files import dump
from maintd.scheduling.job import Job


class Move(StrEnum):
    """What applying does to a job."""

    ADD = "add"  #: it is not in the ledger
    CHANGE = "change"  #: it, or a text it depends on, differs
    SAME = "same"  #: nothing differs
    REMOVE = "remove"  #: it is in the ledger and in no file; only done when pruning


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job that was read, with the texts it depends on."""

    job: Job
    files: Mapping[str, str]

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Its stored form."""
        return dump(self.job)

    @cached_property
    def digest(self) -> str:
        """Of spec and files."""
        text = json.dumps([self.spec, dict(self.files)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Change:
    """One line of a plan.

    Attributes:
        job: Its name.
        move: What would be done.
        keys: What differs: keys of the job (`older_than.age`) and names of files.
    """

    job: str
    move: Move
    keys: tuple[str, ...] = ()


def plan(connection: Connection, prepared: Sequence[Prepared]) -> list[Change]:
    """Compares files and ledger, job by job, in the order of names."""
    stored = {job.name: job for job in jobs.every(connection)}
    given = {one.job.name: one for one in prepared}
    return [
        _change(connection, name, given.get(name), stored.get(name))
        for name in sorted(given.keys() | stored.keys())
    ]


def apply(ledger: Database, prepared: Sequence[Prepared], *, prune: bool, now: datetime) -> list[Change]:
    """Makes the ledger as the files are, all or nothing.

    A new job, one with a new rule and one enabled again count from now: nothing before is ever caught up.

    Args:
        ledger: Where the jobs go.
        prepared: All jobs of all files.
        prune: Remove the jobs that are in no file. Their queued runs are cancelled, their history stays.
        now: The present instant.

    Returns:
        What differed, removals included; without `prune` these were left alone.
    """
    with ledger.write() as connection:
        stored = {job.name: job for job in jobs.every(connection)}
        given = {one.job.name: one for one in prepared}
        changes = plan(connection, prepared)
        added = [given[change.job] for change in changes if change.move is Move.ADD]
        jobs.insert(connection, [_row(one, None, now=now) for one in added])
        for change in changes:
            if change.move is Move.CHANGE:
                row = _row(given[change.job], stored[change.job], now=now)
                jobs.update(connection, change.job, row)
            elif change.move is Move.REMOVE and prune:
                jobs.remove(connection, change.job)
                runs.cancel_queued(connection, change.job, now=now, reason="the job was removed")
        if any(change.move is not Move.SAME for change in changes):
            jobs.move_stamp(connection)
    return changes


def _change(connection: Connection, name: str, given: Prepared | None, stored: ListedJob | None) -> Change:
    if given is None:
        return Change(job=name, move=Move.REMOVE)
    if stored is None:
        return Change(job=name, move=Move.ADD)
    if given.digest == stored.digest:
        return Change(job=name, move=Move.SAME)
    files = jobs.require(connection, name).files
    keys = [*_differing(stored.spec, given.spec), *_differing(files, dict(given.files))]
    return Change(job=name, move=Move.CHANGE, keys=tuple(keys))


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            keys += _differing(before, after, prefix=f"{prefix}{key}.")
        elif before != after:
            keys.append(prefix + key)
    return keys


def _row(given: Prepared, stored: ListedJob | None, *, now: datetime) -> dict[str, Any]:
    header = given.job.header
    keeps_cursor = (
        stored is not None and stored.enabled == header.enabled and stored.spec["when"] == given.spec["when"]
    )
    row: dict[str, Any] = {
        "name": given.job.name,
        "kind": header.kind,
        "revision": stored.revision + 1 if stored else 1,
        "spec": given.spec,
        "files": dict(given.files),
        "digest": given.digest,
        "enabled": header.enabled,
        "applied_at": now,
    }
    if not keeps_cursor:
        following = next_occurrence(header.when, after=now) if header.when else None
        row |= {"cursor_at": now, "next_at": following.at if following else None}
    return row
