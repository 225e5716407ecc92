"""A ledger that stands before what a host has seen of it is held; nothing else is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from maintd.database import Database
from maintd.errors import Unavailable
from maintd.ledger.tables import meta, metadata
from maintd.ledger.tables import timeline as rows
from maintd.ledger.timeline import LedgerHeld, Standing, Timeline, hold, standing
from maintd.ledger.witness import Point, Witness, WitnessDamaged
from tests.ledgers import race

LEDGER = "1ed9e2" * 5 + "aa"


def at(sequence: int, *, epoch: int = 0, ledger_id: str = LEDGER) -> Point:
    return Point(ledger_id=ledger_id, epoch=epoch, sequence=sequence)


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "state" / "witness")


@pytest.fixture
def timeline(ledger: Database, witness: Witness) -> Timeline:
    return Timeline(ledger, witness=witness, host="here")


def forward(timeline: Timeline) -> None:
    with timeline.forward():
        pass


def where(ledger: Database) -> Standing:
    with ledger.read() as connection:
        return standing(connection)


def put_back(ledger: Database, *, to: int, epoch: int = 0) -> None:
    """As a backup does that stood there."""
    with ledger.write() as connection:
        connection.execute(sa.update(rows).values(sequence=to, epoch=epoch, held=None))


# ── the witness ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_witness_that_saw_nothing_says_so(witness: Witness) -> None:
    assert witness.seen() is None


def test_a_witness_never_goes_back(witness: Witness) -> None:
    for seen in (at(5), at(4), at(7), at(6), at(1, epoch=1), at(99)):
        witness.advance(seen)
    assert witness.seen() == at(1, epoch=1)


def test_a_witness_stays_with_its_ledger_until_told_otherwise(witness: Witness) -> None:
    witness.advance(at(5))
    witness.advance(at(9, ledger_id="another"))
    assert witness.seen() == at(5)
    witness.accept(at(1, ledger_id="another"))
    assert witness.seen() == at(1, ledger_id="another")


def test_of_witnesses_that_race_the_latest_point_stays(witness: Witness) -> None:
    race(8, lambda number: witness.advance(at(number)))
    assert witness.seen() == at(7)


def test_no_altered_byte_is_believed(witness: Witness) -> None:
    witness.advance(at(1234))
    whole = witness.path.read_bytes()
    for place in range(len(whole)):
        witness.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(WitnessDamaged):
            witness.seen()
        witness.path.write_bytes(whole[: place or 1])
        with pytest.raises(WitnessDamaged):
            witness.advance(at(9999))


def test_a_witness_has_the_same_size_whatever_it_saw(witness: Witness) -> None:
    witness.advance(at(0))
    size = witness.path.stat().st_size
    witness.advance(at(2**63 - 1, epoch=2**31 - 1))
    assert witness.path.stat().st_size == size


def test_a_witness_that_cannot_be_kept_is_told_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(Unavailable, match="nothing is mailed from here until it can"):
        Witness(tmp_path / "state" / "witness").advance(at(1))


# ── the timeline ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_lets_something_happen_outside_moves_the_sequence_and_the_witness_has_seen_it(
    ledger: Database, timeline: Timeline, witness: Witness
) -> None:
    forward(timeline)
    forward(timeline)
    assert where(ledger).point.sequence == 2
    assert witness.seen() == where(ledger).point


def test_a_transaction_that_fails_moves_nothing(
    ledger: Database, timeline: Timeline, witness: Witness
) -> None:
    with pytest.raises(ZeroDivisionError), timeline.forward():
        _ = 1 / 0
    assert where(ledger).point.sequence == 0
    assert witness.seen() is None


@pytest.mark.parametrize("way", ["write", "forward", "look"])
def test_an_older_ledger_is_held_before_anything_is_written(
    ledger: Database, timeline: Timeline, witness: Witness, way: str
) -> None:
    for _ in range(3):
        forward(timeline)
    put_back(ledger, to=2)
    with pytest.raises(
        LedgerHeld, match=r"stands at 2 of epoch 0, and here has seen it at 3 .*ledger accept"
    ):
        use(timeline, way)
    assert "went back" in (where(ledger).held or "")
    assert where(ledger).point.sequence == 2


def use(timeline: Timeline, way: str) -> None:
    if way == "look":
        timeline.look()
        return
    with timeline.write() if way == "write" else timeline.forward() as connection:
        connection.execute(sa.delete(meta))


def test_a_hold_that_others_wrote_stops_every_host(ledger: Database, timeline: Timeline) -> None:
    with ledger.write() as connection:
        hold(connection, "a drill")
        hold(connection, "another reason")
    for way in ("write", "forward", "look"):
        with pytest.raises(LedgerHeld, match="a drill"):
            use(timeline, way)
        with pytest.raises(LedgerHeld, match="a drill"):
            use(Timeline(ledger), way)


def test_a_hold_that_comes_while_a_transaction_is_open_stops_its_commit(
    ledger: Database, timeline: Timeline
) -> None:
    with pytest.raises(LedgerHeld, match="just now"), timeline.forward() as connection:
        hold(connection, "just now")
    assert where(ledger) == Standing(point=where(ledger).point, held=None)


def test_an_idle_host_notices_too(ledger: Database, timeline: Timeline, tmp_path: Path) -> None:
    idle = Timeline(ledger, witness=Witness(tmp_path / "another host"), host="there")
    forward(timeline)
    idle.look()
    put_back(ledger, to=0)
    with pytest.raises(LedgerHeld, match="there has seen it"):
        idle.look()


def test_another_ledger_in_the_same_state_directory_is_held(
    ledger: Database, timeline: Timeline, witness: Witness
) -> None:
    witness.advance(at(0))
    with pytest.raises(LedgerHeld, match="belongs to another ledger"):
        timeline.look()


def test_where_the_witness_is_damaged_the_ledger_is_held(
    ledger: Database, timeline: Timeline, witness: Witness
) -> None:
    forward(timeline)
    witness.path.write_bytes(b"nonsense")
    assert "is damaged" in (timeline.trouble() or "")
    assert where(ledger).held is None
    with pytest.raises(LedgerHeld, match="is damaged"):
        timeline.look()


def test_an_accepted_ledger_goes_on_in_an_epoch_that_every_host_takes_for_later(
    ledger: Database, timeline: Timeline, tmp_path: Path
) -> None:
    there = Timeline(ledger, witness=Witness(tmp_path / "another host"), host="there")
    for _ in range(5):
        forward(timeline)
    there.look()
    put_back(ledger, to=1)
    with pytest.raises(LedgerHeld):
        timeline.look()
    assert timeline.accept(where(ledger)) == Point(
        ledger_id=where(ledger).point.ledger_id, epoch=1, sequence=1
    )
    for host in (there, timeline, Timeline(ledger)):
        forward(host)
        host.look()
    assert where(ledger) == Standing(point=where(ledger).point, held=None)


def test_a_ledger_from_before_it_was_accepted_is_held_again(ledger: Database, timeline: Timeline) -> None:
    forward(timeline)
    timeline.accept(where(ledger))
    put_back(ledger, to=100)
    assert "went back" in (timeline.trouble() or "")
    accepted = timeline.accept(where(ledger))
    assert accepted is not None
    assert accepted.epoch == 2


def test_of_two_who_accept_one_does(ledger: Database, timeline: Timeline) -> None:
    was = where(ledger)
    assert sum(timeline.accept(was) is not None for _ in range(2)) == 1


def test_hosts_that_go_forward_together_hold_nobody(ledger: Database, tmp_path: Path) -> None:
    hosts = [Timeline(ledger, witness=Witness(tmp_path / str(number % 2))) for number in range(6)]

    def work(number: int) -> None:
        for _ in range(10):
            forward(hosts[number])
            hosts[number].look()

    race(6, work)
    assert where(ledger) == Standing(point=where(ledger).point, held=None)
    assert where(ledger).point.sequence == 60


class Restores(RuleBasedStateMachine):
    """Three hosts work on a ledger that is put back to any of its backups, however often."""

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        directory = Path(self.directory.name)
        self.ledger = Database(f"sqlite:///{directory / 'ledger.db'}", name="ledger")
        with self.ledger.write() as connection:
            metadata.create_all(connection, tables=[meta, rows])
            connection.execute(sa.insert(meta).values(name="ledger_id", value=LEDGER))
            connection.execute(sa.insert(rows).values(id=1, epoch=0, sequence=0))
        self.witnesses = [Witness(directory / f"witness{host}") for host in range(3)]
        self.hosts = [Timeline(self.ledger, witness=witness) for witness in self.witnesses]
        self.seen = [(0, 0)] * 3
        self.backups = [where(self.ledger)]

    def teardown(self) -> None:
        self.ledger.dispose()
        self.directory.cleanup()

    def stands(self) -> tuple[int, int]:
        point = where(self.ledger).point
        return point.epoch, point.sequence

    def may_act(self, host: int) -> bool:
        return where(self.ledger).held is None and self.stands() >= self.seen[host]

    @rule(host=st.integers(0, 2), way=st.sampled_from([forward, Timeline.look]))
    def act(self, host: int, way: Callable[[Timeline], None]) -> None:
        allowed = self.may_act(host)
        try:
            way(self.hosts[host])
        except LedgerHeld:
            assert not allowed
            assert where(self.ledger).held is not None
        else:
            assert allowed
            self.seen[host] = self.stands()

    @rule()
    def back_up(self) -> None:
        self.backups.append(where(self.ledger))

    @rule(choice=st.integers(0, 100))
    def restore(self, choice: int) -> None:
        backup = self.backups[choice % len(self.backups)]
        with self.ledger.write() as connection:
            values = {"epoch": backup.point.epoch, "sequence": backup.point.sequence, "held": backup.held}
            connection.execute(sa.update(rows).values(values))

    @rule(host=st.integers(0, 2))
    def accept(self, host: int) -> None:
        assert self.hosts[host].accept(where(self.ledger)) is not None
        assert self.hosts[host].trouble() is None
        self.seen[host] = self.stands()

    @invariant()
    def no_witness_goes_back(self) -> None:
        for seen, witness in zip(self.seen, self.witnesses, strict=True):
            point = witness.seen()
            assert seen == (0, 0) if point is None else (point.epoch, point.sequence) == seen


def test_whatever_is_restored_it_is_noticed_and_no_witness_goes_back() -> None:
    run_state_machine_as_test(Restores, settings=settings(max_examples=20, stateful_step_count=25))
