"""Opening the ledger, making its schema, and refusing one that this version does not know."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from maintd.database import Database, sqlite_path
from maintd.errors import MaintdError
from maintd.ledger import tables

SCHEMA = "maintd"
_MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes this ledger this one.

    Attributes:
        ledger_id: Random, given at its creation.
        recipient_key: The key with which addresses are digested.
    """

    ledger_id: str
    recipient_key: bytes


class SchemaUnknown(MaintdError):
    """The ledger's schema is not the one that this version of maintd works with."""


def ledger_database(
    url: str, *, statement_timeout: timedelta | None = None, idle_timeout: timedelta | None = None
) -> Database:
    """The database of the ledger, whatever its schema; nothing is opened yet."""
    return Database(
        url,
        name="ledger",
        owned=True,
        schema=SCHEMA,
        statement_timeout=statement_timeout,
        idle_timeout=idle_timeout,
    )


def open_ledger(
    url: str, *, statement_timeout: timedelta | None = None, idle_timeout: timedelta | None = None
) -> Database:
    """Opens a ledger whose schema is right.

    Args:
        url: Of its database.
        statement_timeout: See `Database`.
        idle_timeout: See `Database`.

    Raises:
        SchemaUnknown: It has none, an older or a newer one; the message names the cure.
        Unavailable: The database does not answer.
    """
    path = sqlite_path(sa.make_url(url)) if url.startswith("sqlite") else None
    if path is not None and not path.exists():
        raise SchemaUnknown(f"there is no ledger at {path}; run `maintd migrate` to make it")
    ledger = ledger_database(url, statement_timeout=statement_timeout, idle_timeout=idle_timeout)
    found, wanted = schema_revision(ledger), head_revision()
    if found != wanted:
        ledger.dispose()
        raise _unknown(ledger, found)
    return ledger


def migrate(url: str) -> tuple[str | None, str]:
    """Brings the ledger to this version's schema, creating it if there is none; all or nothing.

    Returns:
        The revision before (None for a new ledger) and after.

    Raises:
        SchemaUnknown: A newer version of maintd has been there.
        MaintdError: The directory of a SQLite ledger does not exist.
        Unavailable: The database does not answer.
    """
    path = sqlite_path(sa.make_url(url)) if url.startswith("sqlite") else None
    if path is not None and not path.parent.is_dir():
        # Not made: a slip in a path would become a new and empty ledger.
        raise MaintdError(
            f"there is no directory {path.parent} for the ledger; make it, or mend MAINTD_DATABASE_URL"
        )
    database = ledger_database(url)
    try:
        with database.write() as connection:
            if database.dialect == "postgresql":
                # One migrator at a time; the number is arbitrary but fixed.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(4_711_0001)))
                connection.execute(sa.schema.CreateSchema(SCHEMA, if_not_exists=True))
            before = _revision(connection)
            if before is not None and not _knows(before):
                raise _unknown(database, before)
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            _give_identity(connection)
            return before, head_revision()
    finally:
        database.dispose()


def schema_revision(ledger: Database) -> str | None:
    """The revision of the ledger's schema; None when it has none."""
    with ledger.read() as connection:
        return _revision(connection)


def head_revision() -> str:
    """The revision that this version of maintd works with."""
    head = ScriptDirectory(str(_MIGRATIONS)).get_current_head()
    assert head is not None
    return head


def identity(connection: Connection) -> Identity:
    """Reads who this ledger is."""
    rows = connection.execute(sa.select(tables.meta.c.name, tables.meta.c.value)).all()
    values = dict(rows)
    return Identity(ledger_id=values["ledger_id"], recipient_key=bytes.fromhex(values["recipient_key"]))


def _revision(connection: Connection) -> str | None:
    on_postgresql = connection.dialect.name == "postgresql"
    context = MigrationContext.configure(
        connection, opts={"version_table_schema": SCHEMA if on_postgresql else None}
    )
    return context.get_current_revision()


def _unknown(ledger: Database, found: str | None) -> SchemaUnknown:
    cure = "run `maintd migrate`" if found is None or _knows(found) else "use a newer maintd"
    return SchemaUnknown(
        f"the ledger ({ledger.where}) has schema {found or 'none'}, this version works with {head_revision()}; {cure}"
    )


def _knows(revision: str) -> bool:
    return any(script.revision == revision for script in ScriptDirectory(str(_MIGRATIONS)).walk_revisions())


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


def _give_identity(connection: Connection) -> None:
    if connection.execute(sa.select(tables.meta.c.name).limit(1)).first() is None:
        values = {
            "ledger_id": secrets.token_hex(16),
            "recipient_key": secrets.token_hex(16),
            "jobs_stamp": "0",
        }
        connection.execute(
            sa.insert(tables.meta), [{"name": name, "value": value} for name, value in values.items()]
        )
