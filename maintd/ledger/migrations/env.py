"""Run by the ledger's own `migrate`, on the connection it gives; there is no alembic.ini."""

from __future__ import annotations

from alembic import context

from maintd.ledger.engine import SCHEMA
from maintd.ledger.tables import metadata

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    # The schema of a connection of ours is put into statements, but Alembic's ALTER TABLE is no statement of that kind.
    connection.exec_driver_sql(f"SET LOCAL search_path TO {SCHEMA}")
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table_schema=SCHEMA if connection.dialect.name == "postgresql" else None,
    transactional_ddl=True,  # SQLite's DDL is transactional once its driver stops committing behind our back
)
context.run_migrations()
