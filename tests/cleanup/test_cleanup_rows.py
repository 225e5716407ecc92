"""Clean-up of rows: what goes, what stays, what stops it. On SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from maintd.cleanup.rows import Cleaned, RowsSpec, clean, dry_run, examine, next_size
from maintd.database import Database
from maintd.errors import CapReached, Interrupted, JobFailed, Unavailable

CUTOFF = datetime(2026, 1, 5, 12, 0, 0, 250_000, tzinfo=UTC)
OLD = CUTOFF - timedelta(days=3)
YOUNG = CUTOFF + timedelta(days=3)
MS = timedelta(milliseconds=1)
SLOW_S, QUICK_S = 1.0, 0.0


class StepClock:
    """Every look at it is so many seconds after the one before: a batch takes exactly that long."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._now_s = 0.0

    def now(self) -> datetime:
        return CUTOFF

    def monotonic_s(self) -> float:
        self._now_s += self._step_s
        return self._now_s


@pytest.fixture
def source(database_url: str) -> Iterator[Database]:
    database = Database(database_url, name="source app")
    yield database
    database.dispose()


def spec(**stop_at: Any) -> RowsSpec:
    return RowsSpec.model_validate(
        {
            "source": "app",
            "table": "session",
            "older_than": {"column": "expires", "age": "1 day"},
            "stop_at": {"fraction": 1, **stop_at},
        }
    )


def session_table(*extra: Any, kind: Any = sa.DateTime, key: bool = True) -> sa.Table:
    return sa.Table(
        "session",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=key, autoincrement=False),
        sa.Column("expires", kind),
        *extra,
    )


def fill(source: Database, table: sa.Table, rows: list[dict[str, Any]]) -> sa.Table:
    table.metadata.create_all(source.engine)
    if rows:
        with source.write() as connection:
            connection.execute(sa.insert(table), rows)
    return table


def sessions(source: Database, *instants: datetime | None) -> sa.Table:
    rows = [{"id": number, "expires": at and at.replace(tzinfo=None)} for number, at in enumerate(instants)]
    return fill(source, session_table(), rows)


def kept(source: Database) -> list[int]:
    with source.read() as connection:
        return list(connection.scalars(sa.text("SELECT id FROM session ORDER BY id")))


def run(
    source: Database,
    job: RowsSpec | None = None,
    *,
    step_s: float = SLOW_S,
    stopping: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda _removed: None,
    pause: Callable[[float], None] = lambda _seconds: None,
    cutoff_at: datetime = CUTOFF,
) -> Cleaned:
    return clean(
        job or spec(), source, cutoff_at=cutoff_at,
        clock=StepClock(step_s), stopping=stopping, progress=progress, pause=pause,
    )  # fmt: skip


# -- which rows go ---------------------------------------------------------------------------------------------------


def epoch(at: datetime) -> float:
    return at.timestamp()


def naive(at: datetime) -> datetime:
    return at.replace(tzinfo=None)


@pytest.mark.parametrize(
    ("kind", "older", "equal_or_younger"),
    [
        (sa.DateTime(), [naive(CUTOFF - MS)], [naive(CUTOFF), naive(CUTOFF + MS)]),
        (sa.DateTime(timezone=True), [CUTOFF - MS], [CUTOFF, CUTOFF + MS]),
        (sa.Date(), [date(2026, 1, 4)], [date(2026, 1, 5), date(2026, 1, 6)]),
        (sa.Integer(), [int(epoch(CUTOFF))], [int(epoch(CUTOFF)) + 1]),
        (sa.BigInteger(), [int(epoch(CUTOFF))], [int(epoch(CUTOFF)) + 1]),
        (sa.Double(), [epoch(CUTOFF - MS)], [epoch(CUTOFF), epoch(CUTOFF + MS)]),
        (sa.Numeric(20, 3), [epoch(CUTOFF - MS)], [epoch(CUTOFF), epoch(CUTOFF + MS)]),
    ],
    ids=["naive", "aware", "date", "integer", "bigint", "double", "numeric"],
)
def test_only_what_is_strictly_older_than_the_cutoff_goes(
    source: Database, kind: Any, older: list[Any], equal_or_younger: list[Any]
) -> None:
    values = [*older, *equal_or_younger, None]
    rows = [{"id": number, "expires": value} for number, value in enumerate(values)]
    fill(source, session_table(kind=kind), rows)

    assert run(source).removed == len(older)
    assert kept(source) == list(range(len(older), len(values)))


def test_a_whole_second_of_the_epoch_equal_to_the_cutoff_stays(source: Database) -> None:
    second = int(CUTOFF.timestamp())
    rows = [{"id": 0, "expires": second - 1}, {"id": 1, "expires": second}]
    fill(source, session_table(kind=sa.Integer()), rows)
    run(source, cutoff_at=CUTOFF.replace(microsecond=0))

    assert kept(source) == [1]


def test_an_aware_cutoff_of_another_zone_is_the_same_instant(source: Database) -> None:
    sessions(source, CUTOFF - MS, CUTOFF)
    elsewhere = CUTOFF.astimezone(ZoneInfo("Asia/Tokyo"))

    assert dry_run(spec(), source, cutoff_at=elsewhere).matching == 1


def test_a_row_without_an_age_is_never_touched(source: Database) -> None:
    sessions(source, None, OLD, None)

    assert run(source) == Cleaned(removed=1, batches=1, matching=1, total=3)
    assert kept(source) == [0, 2]


@pytest.mark.parametrize(
    ("stored", "goes"),
    [
        ("2026-01-05 12:00:00", True),
        ("2026-01-05 12:00:00.249", True),
        ("2026-01-05 12:00:00.25", False),
        ("2026-01-05 12:00:00.250000", False),
        ("2026-01-05T12:00:00", True),
        ("2026-01-05T12:00:01Z", False),
        ("2026-01-05 13:30:00+02:00", True),
        ("2026-01-05 11:30:00-02:00", False),
        ("2026-01-06 01:00:00+14:00", True),
        ("2026-01-05", True),
        ("", False),
        ("never", False),
        ("07:30", False),
        (5, False),
        (1_000_000_000, False),
        (b"2020-01-01", False),
    ],
)
def test_sqlite_text_is_compared_as_the_instant_it_means(sqlite_url: str, stored: object, goes: bool) -> None:
    source = Database(sqlite_url, name="source app")
    with source.write() as connection:
        connection.exec_driver_sql("CREATE TABLE session (id INTEGER PRIMARY KEY, expires DATETIME)")
        connection.exec_driver_sql("INSERT INTO session VALUES (1, ?)", (stored,))

    assert run(source).removed == goes
    assert kept(source) == ([] if goes else [1])


def test_infinity_is_not_an_age(postgresql_url: str) -> None:
    source = Database(postgresql_url, name="source app")
    with source.write() as connection:
        connection.exec_driver_sql("CREATE TABLE session (id int PRIMARY KEY, expires timestamptz)")
        connection.exec_driver_sql(
            "INSERT INTO session VALUES (1, '-infinity'), (2, 'infinity'), (3, '2020-01-01'), (4, '0044-03-15 BC')"
        )
        connection.exec_driver_sql("CREATE INDEX ON session (expires)")

    assert run(source).removed == 1
    assert kept(source) == [1, 2, 4]
    source.dispose()


def test_every_part_of_a_composite_key_tells_rows_apart(source: Database) -> None:
    table = sa.Table(
        "session",
        sa.MetaData(),
        sa.Column("shard", sa.String(8), primary_key=True),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("expires", sa.DateTime),
    )
    rows = [
        {"shard": shard, "id": number, "expires": naive(OLD if (shard, number % 2) != ("b", 0) else YOUNG)}
        for shard in "abc"
        for number in range(80)
    ]
    fill(source, table, rows)

    assert run(source) == Cleaned(removed=200, batches=2, matching=200, total=240)
    assert kept(source) == list(range(0, 80, 2))


def test_the_age_may_be_part_of_the_key(source: Database) -> None:
    table = sa.Table(
        "session",
        sa.MetaData(),
        sa.Column("expires", sa.DateTime, primary_key=True),
        sa.Column("id", sa.Integer, primary_key=True),
    )
    fill(source, table, [{"id": n, "expires": naive(OLD + n * MS)} for n in range(250)])

    plan = dry_run(spec(), source, cutoff_at=CUTOFF)
    assert plan.order == ("expires", "id")
    assert set(plan.samples[0]) == {"expires", "id"}
    assert run(source).removed == 250


def test_a_key_that_sqlite_stores_in_a_form_of_its_own_is_found_again(sqlite_url: str) -> None:
    source = Database(sqlite_url, name="source app")
    with source.write() as connection:
        connection.exec_driver_sql("CREATE TABLE session (id INTEGER, expires DATETIME PRIMARY KEY)")
        connection.exec_driver_sql(
            "INSERT INTO session VALUES (1, '2020-01-01T00:00:00Z'), (2, '2020-01-01 00:00:00'), (3, NULL)"
        )

    assert run(source).removed == 2
    assert kept(source) == [3]


def test_a_row_whose_key_is_null_does_not_end_the_pass(sqlite_url: str) -> None:
    source = Database(sqlite_url, name="source app")
    with source.write() as connection:
        connection.exec_driver_sql("CREATE TABLE session (id TEXT PRIMARY KEY, expires DATETIME)")
        connection.exec_driver_sql(
            "INSERT INTO session VALUES (NULL, '2020-01-01'), ('a', '2020-01-01'), (NULL, '2020-01-01')"
        )

    assert run(source) == Cleaned(removed=1, batches=1, matching=1, total=3)


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indexed", [True, False])
def test_batches_leave_nothing_behind(source: Database, indexed: bool) -> None:
    table = session_table(*([sa.Index("by_age", "expires")] if indexed else []))
    # Many rows of one age: the key decides where a batch ends.
    fill(source, table, [{"id": n, "expires": naive((YOUNG, OLD, OLD)[n % 3])} for n in range(600)])
    told: list[int] = []

    plan = dry_run(spec(), source, cutoff_at=CUTOFF)
    cleaned = run(source, progress=told.append)

    assert plan.order == (("expires", "id") if indexed else ("id",))
    assert cleaned == Cleaned(removed=400, batches=4, matching=400, total=600)
    assert told == [100, 200, 300, 400]
    assert kept(source) == list(range(0, 600, 3))


def test_an_index_that_holds_only_some_rows_is_not_walked(source: Database) -> None:
    condition = sa.text("id > 5")
    index = sa.Index("by_age", "expires", postgresql_where=condition, sqlite_where=condition)
    fill(source, session_table(index), [])

    assert dry_run(spec(), source, cutoff_at=CUTOFF).order == ("id",)


def test_a_unique_constraint_is_an_index_too(source: Database) -> None:
    fill(source, session_table(sa.UniqueConstraint("expires", "id")), [])

    assert dry_run(spec(), source, cutoff_at=CUTOFF).order == ("expires", "id")


def test_quick_batches_grow(source: Database) -> None:
    sessions(source, *[OLD] * 700)
    told: list[int] = []
    run(source, step_s=QUICK_S, progress=told.append)

    assert told == [100, 300, 700]


def test_sqlite_pauses_between_batches_and_postgresql_does_not(source: Database) -> None:
    sessions(source, *[OLD] * 250)
    pauses: list[float] = []
    run(source, pause=pauses.append)

    assert len(pauses) == (2 if source.dialect == "sqlite" else 0)


@given(size=st.integers(100, 10_000), took_s=st.floats(0, 3600), most=st.integers(100, 30_000))
def test_a_batch_size_stays_within_its_bounds(size: int, took_s: float, most: int) -> None:
    following = next_size(size, took_s=took_s, most=most)

    assert 100 <= following <= min(most, 10_000, size * 2)
    assert took_s <= 0.1 or following <= size or following == 100


def test_a_wide_key_keeps_a_statement_within_the_parameters_of_its_database(sqlite_url: str) -> None:
    source = Database(sqlite_url, name="source app")

    @sa.event.listens_for(source.engine, "connect")
    def as_sqlite_is_by_default(connection: sqlite3.Connection, _record: object) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766)

    parts = [sa.Column(f"k{number}", sa.Integer, primary_key=True) for number in range(30)]
    table = sa.Table("session", sa.MetaData(), *parts, sa.Column("expires", sa.DateTime))
    same = {part.name: 0 for part in parts} | {"expires": naive(OLD)}
    fill(source, table, [same | {"k0": number} for number in range(3_100)])

    assert run(source, step_s=QUICK_S).removed == 3_100


REFUSE = {
    "sqlite": ["CREATE TRIGGER refuse BEFORE DELETE ON session BEGIN SELECT RAISE(IGNORE); END"],
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER refuse BEFORE DELETE ON session FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
}


def test_rows_that_the_application_will_not_let_go_do_not_hold_a_run_up(source: Database) -> None:
    sessions(source, *[OLD] * 200)
    with source.write() as connection:
        for statement in REFUSE[source.dialect]:
            connection.exec_driver_sql(statement)

    passes = 1 if source.dialect == "sqlite" else 2
    assert run(source) == Cleaned(removed=0, batches=2 * passes, matching=200, total=200)
    assert len(kept(source)) == 200


# -- what stops it ---------------------------------------------------------------------------------------------------


def test_the_row_cap_stops_before_anything_is_removed(source: Database) -> None:
    sessions(source, OLD, OLD, OLD, YOUNG)

    with pytest.raises(
        CapReached, match=r'table "session": 3 of 4 rows .* stop_at\.rows = 2 allows 2.*Nothing'
    ) as stop:
        run(source, spec(rows=2))
    assert "dry run" in str(stop.value)
    assert kept(source) == [0, 1, 2, 3]
    assert run(source, spec(rows=3)).removed == 3


def test_the_fraction_is_of_the_whole_table(source: Database) -> None:
    sessions(source, *[OLD] * 120, *[YOUNG] * 80)

    with pytest.raises(CapReached, match=r"120 of 200 rows .* stop_at\.fraction = 0\.59 allows 118"):
        run(source, spec(fraction=0.59))
    assert len(kept(source)) == 200
    assert run(source, spec(fraction=0.6)).removed == 120


def test_a_fraction_says_nothing_about_fewer_than_a_hundred_rows(source: Database) -> None:
    sessions(source, *[OLD] * 99)

    assert run(source, spec(fraction=0.01)).removed == 99


def test_a_hundred_rows_are_subject_to_the_fraction(source: Database) -> None:
    sessions(source, *[OLD] * 100)

    with pytest.raises(CapReached, match="allows 99"):
        run(source, spec(fraction=0.99))


@pytest.mark.parametrize("share", [0.07, 0.29, 0.57, 0.58])
def test_a_fraction_is_exact(source: Database, share: float) -> None:
    due = round(share * 10_000)
    sessions(source, *[OLD] * due, *[YOUNG] * (10_000 - due))

    assert dry_run(spec(fraction=share), source, cutoff_at=CUTOFF).would_stop == ""
    assert dry_run(spec(fraction=share - 0.0001), source, cutoff_at=CUTOFF).would_stop != ""


def test_rows_that_appear_meanwhile_do_not_lift_the_cap(source: Database) -> None:
    table = sessions(source, *[OLD] * 150)
    appeared = [{"id": 1000 + n, "expires": naive(OLD)} for n in range(300)]

    def appear(removed: int) -> None:
        if removed == 100:
            with source.write() as connection:
                connection.execute(sa.insert(table), appeared)

    with pytest.raises(CapReached, match=r"100 rows are removed.*stop_at\.rows = 150"):
        run(source, spec(rows=150), progress=appear)
    assert 450 - len(kept(source)) == 100


def test_without_a_cap_rows_that_appear_meanwhile_go_too(source: Database) -> None:
    table = sessions(source, *[OLD] * 101)

    def appear(removed: int) -> None:
        if removed == 100:
            with source.write() as connection:
                connection.execute(
                    sa.insert(table), [{"id": 1000 + n, "expires": naive(OLD)} for n in range(9)]
                )

    assert run(source, spec(fraction=1), progress=appear).removed == 110


def test_exactly_the_cap_may_go(source: Database) -> None:
    sessions(source, *[OLD] * 200)

    assert run(source, spec(rows=200)).removed == 200


def test_an_interrupted_run_resumes_and_ends_with_the_same_result(source: Database) -> None:
    sessions(source, *[OLD] * 250, YOUNG, None)
    asked = iter([False, False, True])

    with pytest.raises(Interrupted, match="stopped after 200 rows"):
        run(source, stopping=lambda: next(asked))
    assert len(kept(source)) == 52
    assert run(source) == Cleaned(removed=50, batches=1, matching=50, total=52)
    assert kept(source) == [250, 251]


# -- other people's transactions -------------------------------------------------------------------------------------


def test_a_row_that_is_refreshed_between_choice_and_deletion_is_kept(source: Database) -> None:
    table = sessions(source, OLD, OLD, OLD)
    refresh = sa.update(table).where(table.c.id == 1).values(expires=naive(YOUNG))

    @sa.event.listens_for(source.engine, "before_cursor_execute")
    def before(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("DELETE"):
            connection.execute(refresh)

    assert run(source).removed == 2
    assert kept(source) == [1]


def test_rows_locked_for_a_moment_are_taken_in_the_end(postgresql_url: str) -> None:
    source = Database(postgresql_url, name="source app")
    table = sessions(source, *[OLD] * 150)
    with source.engine.connect() as other:
        other.execute(sa.select(table).where(table.c.id < 3).with_for_update())

        def release(removed: int) -> None:
            if removed == 147:
                other.rollback()

        assert run(source, progress=release) == Cleaned(removed=150, batches=3, matching=150, total=150)
    source.dispose()


def test_rows_that_stay_locked_are_left_and_counted(postgresql_url: str) -> None:
    source = Database(postgresql_url, name="source app", statement_timeout=timedelta(seconds=5))
    table = sessions(source, OLD, OLD, OLD, YOUNG)
    with source.engine.connect() as other:
        other.execute(sa.select(table).where(table.c.id == 1).with_for_update())

        assert run(source) == Cleaned(removed=2, batches=1, matching=3, total=4, left=1)
        assert kept(source) == [1, 3]
    source.dispose()


def test_what_a_deadlock_leaves_is_worth_another_try(postgresql_url: str) -> None:
    source = Database(postgresql_url, name="source app")
    sessions(source, OLD)

    @sa.event.listens_for(source.engine, "before_cursor_execute")
    def before(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("DELETE"):
            connection.exec_driver_sql("DO $$ BEGIN RAISE deadlock_detected; END $$")

    with pytest.raises(Unavailable, match="can be tried again"):
        run(source)
    source.dispose()


# -- what cannot succeed ---------------------------------------------------------------------------------------------


def test_a_row_that_others_refer_to_fails_the_job_by_name(source: Database) -> None:
    table = session_table()
    note = sa.Table(
        "note", table.metadata, sa.Column("session", sa.ForeignKey("session.id"), primary_key=True)
    )
    fill(source, table, [{"id": 1, "expires": naive(OLD)}])
    with source.write() as connection:
        connection.execute(sa.insert(note), [{"session": 1}])

    with pytest.raises(JobFailed, match=r'(?i)^table "session": .*foreign key.*clean them up first$'):
        run(source)
    assert kept(source) == [1]


def test_a_statement_that_takes_too_long_fails_the_job(postgresql_url: str) -> None:
    source = Database(postgresql_url, name="source app", statement_timeout=timedelta(milliseconds=100))
    sessions(source, OLD)
    other = sa.create_engine(sa.make_url(postgresql_url).set(drivername="postgresql+psycopg"))
    with other.connect() as connection:
        connection.exec_driver_sql("LOCK TABLE session IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(JobFailed, match="statement timeout; an index"):
            run(source)
    other.dispose()
    source.dispose()


def test_a_missing_permission_is_named(postgresql_url: str) -> None:
    owner = Database(postgresql_url, name="source app")
    sessions(owner, OLD)
    role = f"r{uuid.uuid4().hex[:12]}"
    with owner.write() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        connection.exec_driver_sql(f"GRANT SELECT, DELETE ON session TO {role}")
    url = sa.make_url(postgresql_url).set(username=role).render_as_string(hide_password=False)
    source = Database(url, name="source app")
    try:
        with pytest.raises(
            JobFailed, match=r"permission denied for table session; its role needs SELECT, UPDATE"
        ):
            run(source)
    finally:
        source.dispose()
        with owner.write() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")
        owner.dispose()


def test_a_source_that_is_away_is_not_a_failed_job(tmp_path: Any) -> None:
    with pytest.raises(Unavailable, match="source app"):
        run(Database(f"sqlite:///{tmp_path}/missing/app.db", name="source app"))


def test_an_unknown_table_or_column_suggests_the_nearest(source: Database) -> None:
    sessions(source)
    wrong_table = spec().model_copy(update={"table": "sesion"})
    wrong_column = RowsSpec.model_validate(
        {"source": "app", "table": "session", "older_than": {"column": "expire", "age": "1 day"}}
    )

    with pytest.raises(JobFailed, match=r'^table: .*"sesion"; did you mean "session"\?'):
        examine(wrong_table, source)
    with pytest.raises(JobFailed, match=r'^older_than\.column: .*"expire"; did you mean "expires"\?'):
        examine(wrong_column, source)


def test_a_table_without_a_primary_key_is_refused(source: Database) -> None:
    fill(source, session_table(key=False), [])

    with pytest.raises(JobFailed, match='"session" has no primary key'):
        examine(spec(), source)


@pytest.mark.parametrize("kind", [sa.String(20), sa.Boolean(), sa.Time(), sa.LargeBinary()])
def test_a_column_that_is_no_time_is_refused(source: Database, kind: Any) -> None:
    fill(source, session_table(kind=kind), [])

    with pytest.raises(JobFailed, match=r'"session\.expires" is of type .* cannot be compared with a time'):
        examine(spec(), source)


def test_a_sound_job_passes_its_examination(source: Database) -> None:
    sessions(source, OLD)
    examine(spec(), source)

    assert kept(source) == [0]


@pytest.mark.parametrize("stop_at", [{"rows": 0}, {"fraction": 0}, {"fraction": 1.5}, {"row": 5}])
def test_caps_that_make_no_sense_are_refused(stop_at: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        spec(**stop_at)


# -- the dry run -----------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_keys_and_ages_and_nothing_else(source: Database) -> None:
    table = session_table(sa.Column("secret", sa.String))
    fill(source, table, [{"id": n, "expires": naive(OLD), "secret": "s3cret"} for n in range(7)])
    plan = dry_run(spec(rows=6), source, cutoff_at=CUTOFF)

    assert (plan.matching, plan.total, plan.cutoff_at) == (7, 7, CUTOFF)
    assert [sample["id"] for sample in plan.samples] == ["0", "1", "2", "3", "4"]
    assert plan.samples[0]["expires"].startswith("2026-01-02 12:00:00.25")
    assert "stop_at.rows = 6" in plan.would_stop
    assert "s3cret" not in repr(plan)


def test_a_dry_run_writes_nothing(source: Database) -> None:
    sessions(source, OLD, YOUNG, None)
    statements: list[str] = []

    @sa.event.listens_for(source.engine, "before_cursor_execute")
    def before(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement.split()[0].upper())

    dry_run(spec(), source, cutoff_at=CUTOFF)

    assert statements
    assert not {"DELETE", "UPDATE", "INSERT"} & set(statements)
    assert kept(source) == [0, 1, 2]


AGES = st.none() | st.integers(-5, 5).map(lambda n: n * MS) | st.timedeltas(timedelta(-900), timedelta(900))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ages=st.lists(AGES, max_size=30), times=st.sampled_from([1, 11]), indexed=st.booleans())
def test_a_dry_run_counts_what_a_run_removes(
    sqlite_url: str, ages: list[timedelta | None], times: int, indexed: bool
) -> None:
    source = Database(sqlite_url, name="source app")
    table = session_table(*([sa.Index("by_age", "expires")] if indexed else []))
    ages = ages * times
    instants = [
        None if age is None else naive(CUTOFF + age).replace(microsecond=0) + 250 * MS for age in ages
    ]
    fill(source, table, [{"id": n, "expires": at} for n, at in enumerate(instants)])
    expected = [n for n, at in enumerate(instants) if at is None or at >= naive(CUTOFF)]
    try:
        plan = dry_run(spec(), source, cutoff_at=CUTOFF)
        cleaned = run(source)

        assert plan.matching == cleaned.removed == cleaned.matching == len(ages) - len(expected)
        assert plan.total == cleaned.total == len(ages)
        assert kept(source) == expected
    finally:
        table.metadata.drop_all(source.engine)
        source.dispose()
