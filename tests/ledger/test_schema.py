from __future__ import annotations

import multiprocessing
import tomllib
from importlib import resources
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from maintd.database import Database
from maintd.errors import MaintdError, Unavailable
from maintd.ledger import engine, tables
from maintd.ledger.engine import (
    SCHEMA,
    SchemaUnknown,
    head_revision,
    identity,
    ledger_database,
    migrate,
    open_ledger,
)
from tests.ledgers import race


def seen_from_inside(url: str) -> sa.Engine:
    """An engine for which the ledger's schema is the default one."""
    given = sa.make_url(url)
    if given.get_backend_name() == "sqlite":
        return sa.create_engine(given)
    return sa.create_engine(
        given.set(drivername="postgresql+psycopg"), connect_args={"options": f"-csearch_path={SCHEMA}"}
    )


def set_revision(url: str, revision: str) -> None:
    database = seen_from_inside(url)
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :to"), {"to": revision})
    database.dispose()


def test_the_migrated_schema_is_the_one_that_the_tables_describe(ledger_url: str) -> None:
    database = seen_from_inside(ledger_url)
    with database.connect() as connection:
        # Of a default that is an empty text Alembic believes on SQLite that it differs from itself.
        defaults = connection.dialect.name == "postgresql"
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": defaults}
        )
        assert compare_metadata(context, tables.metadata) == []
    database.dispose()


def test_the_tables_have_every_constraint_and_index_by_name(ledger_url: str) -> None:
    database = seen_from_inside(ledger_url)
    inspector = sa.inspect(database)
    for table in tables.metadata.sorted_tables:
        found = {index["name"] for index in inspector.get_indexes(table.name)}
        assert {index.name for index in table.indexes} <= found
        primary = inspector.get_pk_constraint(table.name)["constrained_columns"]
        assert primary == [column.name for column in table.primary_key]
    database.dispose()


def test_migrating_makes_a_ledger_and_again_changes_nothing(database_url: str) -> None:
    assert migrate(database_url) == (None, head_revision())
    ledger = open_ledger(database_url)
    with ledger.read() as connection:
        made = identity(connection)
    assert migrate(database_url) == (head_revision(), head_revision())
    with ledger.read() as connection:
        assert identity(connection) == made
    ledger.dispose()
    assert len(made.recipient_key) == 16


def test_no_two_ledgers_are_the_same(tmp_path: Path) -> None:
    identities = []
    for name in ("one", "two"):
        migrate(f"sqlite:///{tmp_path / name}")
        ledger = open_ledger(f"sqlite:///{tmp_path / name}")
        with ledger.read() as connection:
            identities.append(identity(connection))
        ledger.dispose()
    assert identities[0].ledger_id != identities[1].ledger_id
    assert identities[0].recipient_key != identities[1].recipient_key


def test_a_newer_schema_is_not_migrated_but_refused_in_words(database_url: str) -> None:
    migrate(database_url)
    set_revision(database_url, "9999")
    with pytest.raises(SchemaUnknown, match="use a newer maintd"):
        migrate(database_url)


def test_a_slip_in_a_path_makes_no_new_ledger(tmp_path: Path) -> None:
    with pytest.raises(MaintdError, match="there is no directory"):
        migrate(f"sqlite:///{tmp_path / 'slip' / 'ledger.db'}")
    assert list(tmp_path.iterdir()) == []


def test_without_a_schema_the_cure_is_to_migrate(database_url: str) -> None:
    with pytest.raises(SchemaUnknown, match="maintd migrate"):
        open_ledger(database_url)
    ledger_database(database_url).dispose()


def test_looking_for_a_ledger_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(SchemaUnknown, match="maintd migrate"):
        open_ledger(f"sqlite:///{tmp_path / 'no' / 'ledger.db'}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    with pytest.raises(SchemaUnknown, match="none"):
        open_ledger(f"sqlite:///{path}")


def test_a_ledger_of_an_older_version_wants_to_be_migrated(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(database_url)
    monkeypatch.setattr(engine, "head_revision", lambda: "9999")
    with pytest.raises(SchemaUnknown) as refusal:
        open_ledger(database_url)
    assert head_revision() in str(refusal.value)
    assert "maintd migrate" in str(refusal.value)


def test_a_ledger_of_a_newer_version_wants_a_newer_maintd(database_url: str) -> None:
    migrate(database_url)
    set_revision(database_url, "9999")
    with pytest.raises(SchemaUnknown, match="use a newer maintd"):
        open_ledger(database_url)


# A SQLite ledger is a file of its own.
@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_the_ledger_keeps_to_a_schema_of_its_own(ledger: Database) -> None:
    with ledger.read() as connection:
        everything = sa.inspect(connection).get_table_names(schema="public")
    assert everything == []


def test_a_database_that_does_not_answer_is_away_and_not_unmigrated(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        open_ledger(f"postgresql://nobody@/nothing?host={tmp_path}")


def test_threads_that_migrate_at_once_make_one_ledger(database_url: str) -> None:
    before = race(3, lambda _: migrate(database_url)[0])
    assert before.count(None) == 1


def test_processes_that_migrate_at_once_make_one_ledger(database_url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map(migrate, [database_url] * 4, chunksize=1)
    assert [before for before, _ in results].count(None) == 1
    ledger = open_ledger(database_url)
    with ledger.read() as connection:
        rows = connection.execute(sa.select(tables.meta.c.name)).scalars().all()
    ledger.dispose()
    assert sorted(rows) == ["jobs_stamp", "ledger_id", "recipient_key"]


def test_of_many_who_open_a_new_file_at_once_nobody_is_told_that_it_is_locked(tmp_path: Path) -> None:
    def open_it(file: Path) -> None:
        database = ledger_database(f"sqlite:///{file}")
        with database.write():
            pass
        database.dispose()

    for number in range(40):
        race(6, lambda _, file=tmp_path / f"{number}.db": open_it(file))  # type: ignore[misc]


def test_the_migrations_are_inside_the_package_that_a_wheel_is_made_of() -> None:
    versions = resources.files("maintd.ledger.migrations.versions")
    assert any(file.name.startswith(head_revision()) for file in versions.iterdir())
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["maintd"]
