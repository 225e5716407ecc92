from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import DeliveryState
from maintd.mail.recording import recorder as recording_to
from maintd.mail.recording.entries import (
    LONGEST_DETAIL,
    Binding,
    Damaged,
    Header,
    Kind,
    batch_bytes,
    header_bytes,
    intent_bytes,
    read_entries,
    read_header,
    reply_bytes,
)
from maintd.mail.recording.recorder import (
    DAMAGED,
    DONE,
    KEEP,
    Recorder,
    RecorderFailed,
    put_away,
    recording_path,
    this_boot,
    this_machine,
)
from maintd.mail.recording.recordings import Orphan, Recording, adopt, judge, orphans, read_recording
from maintd.mail.verdicts.failures import Failure
from tests.ledgers import NOW, HandClock

SENT, DEFERRED = DeliveryState.SENT, DeliveryState.DEFERRED
REJECTED, UNCERTAIN = DeliveryState.REJECTED, DeliveryState.UNCERTAIN
ANN, BEN, CID = (bytes([letter]) * 16 for letter in b"abc")
BATCH, OTHER_BATCH = 7, 8
UID, BOOT, MACHINE = "5eed" * 8, "2cc00fb6-e772-4ef2-902b-870e562a6fe1", "3d12" * 8
BINDING = Binding(uid="ca" * 16, job="digest", edition="2026-W47")
HEADER = Header(uid=UID, boot_id=BOOT, machine_id=MACHINE, pid=42, created_at=NOW)

#: A dot intent (its recipient), a reply, or whose the batch is; with the batch.
Written = tuple[int, bytes | Outcome | Binding]


def sent(key: bytes) -> Outcome:
    return Outcome(
        recipient_key=key,
        ordinal=7,
        state=SENT,
        fact=True,
        phase="dot",
        code=250,
        enhanced="2.0.0",
        detail="ok",
    )


def deferred(key: bytes) -> Outcome:
    return replace(sent(key), state=DEFERRED, code=451, enhanced="4.7.1", detail="later", due_at=NOW)


def file_of(written: Sequence[Written], header: Header = HEADER) -> bytes:
    data, crc = header_bytes(header)
    for batch_id, what in written:
        if isinstance(what, Outcome):
            entry, crc = reply_bytes(batch_id, what, after=crc)
        elif isinstance(what, Binding):
            entry, crc = batch_bytes(batch_id, what, after=crc)
        else:
            entry, crc = intent_bytes(batch_id, what, after=crc)
        data += entry
    return data


def found_in(data: bytes) -> tuple[list[Written], bool]:
    """What a reader believes of a file, and whether it comes to a clean end."""
    found: list[Written] = []
    try:
        for entry in read_entries(io.BytesIO(data)):
            found.append(
                (entry.batch_id, entry.outcome() if entry.kind is Kind.REPLY else entry.recipient_key)
            )
    except Damaged:
        return found, False
    return found, True


def recording_of(*written: bytes | Outcome, header: Header = HEADER, torn: bool = False) -> Recording:
    data = file_of([(BATCH, what) for what in written], header)
    return read_recording(io.BytesIO(data + b"torn" * torn), batch_id=BATCH)


def new_recorder(directory: Path, uid: str = UID) -> Recorder:
    return Recorder.create(directory, uid=uid, boot_id=BOOT, machine_id=MACHINE, clock=HandClock())


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with contextlib.closing(new_recorder(tmp_path)) as recorder:
        yield recorder


def left_by_the_dead(directory: Path, written: Sequence[Written], uid: str = UID) -> Path:
    path = recording_path(directory, uid)
    path.write_bytes(file_of(written, replace(HEADER, uid=uid)))
    return path


# ── the format ──────────────────────────────────────────────────────────────────────────────────────────────────────

keys = st.binary(min_size=16, max_size=16)
instants = st.integers(1, 2**56).map(lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))


def texts(longest: int) -> st.SearchStrategy[str | None]:
    fitting = st.text(min_size=1, max_size=longest).filter(
        lambda text: len(text.encode(errors="replace")) <= longest and text.isprintable()
    )
    return st.none() | fitting


outcomes = st.builds(
    Outcome,
    recipient_key=keys,
    ordinal=st.integers(0, 2**31 - 1),
    state=st.sampled_from([SENT, DEFERRED, REJECTED, UNCERTAIN]),
    fact=st.just(True),
    failure=st.none() | st.sampled_from(list(Failure)),
    counted=st.booleans(),
    phase=st.sampled_from([None, "mail", "rcpt", "data", "dot"]),
    code=st.none() | st.integers(200, 599),
    enhanced=st.sampled_from([None, "2.0.0", "4.7.1", "5.999.999"]),
    detail=texts(LONGEST_DETAIL),
    due_at=st.none() | instants,
)
entries = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), keys | outcomes), max_size=8)


@given(entries)
def test_what_was_written_is_read_back(written: list[Written]) -> None:
    assert found_in(file_of(written)) == (written, True)


@given(entries.filter(bool), st.data())
def test_a_cut_file_is_read_up_to_the_last_whole_entry(written: list[Written], data: st.DataObject) -> None:
    whole = [len(file_of(written[:number])) for number in range(len(written) + 1)]
    cut = data.draw(st.integers(whole[0], whole[-1]))
    number = sum(size <= cut for size in whole) - 1
    assert found_in(file_of(written)[:cut]) == (written[:number], cut in whole)


def test_no_cut_of_a_file_yields_more_than_was_written_before_it() -> None:
    written: list[Written] = [(BATCH, ANN), (BATCH, sent(ANN)), (OTHER_BATCH, BEN), (BATCH, deferred(CID))]
    whole = [len(file_of(written[:number])) for number in range(len(written) + 1)]
    for cut in range(whole[-1] + 1):
        found, intact = found_in(file_of(written)[:cut])
        assert found == written[: len(found)]
        assert intact == (cut in whole)


def test_a_flipped_bit_never_yields_a_wrong_fact_nor_an_intact_file() -> None:
    written: list[Written] = [(BATCH, ANN), (BATCH, sent(ANN)), (BATCH, BEN), (BATCH, deferred(BEN))]
    data = bytearray(file_of(written))
    starts = [len(file_of(written[:number])) for number in range(len(written) + 1)]
    for place in range(len(data)):
        before = sum(start <= place for start in starts) - 1
        for bit in range(8):
            data[place] ^= 1 << bit
            assert found_in(bytes(data)) == (written[: max(before, 0)], False), f"bit {bit} of byte {place}"
            data[place] ^= 1 << bit


@given(entries.filter(lambda written: len(written) > 1), st.data())
def test_a_lost_a_doubled_or_a_moved_entry_ends_the_file(written: list[Written], data: st.DataObject) -> None:
    starts = [len(file_of(written[:number])) for number in range(len(written) + 1)]
    whole = file_of(written)
    pieces = [whole[lo:hi] for lo, hi in itertools.pairwise(starts)]
    place = data.draw(st.integers(0, len(pieces) - 2))
    here, there = pieces[place : place + 2]
    for instead in ([there], [here, here, there], [there, here]):
        altered = [whole[: starts[0]], *pieces[:place], *instead, *pieces[place + 2 :]]
        assert found_in(b"".join(altered)) == (written[: place + ([here] == instead[:1])], False)


def test_entries_of_another_file_are_not_believed() -> None:
    header, _ = header_bytes(replace(HEADER, uid="another"))
    assert found_in(header + file_of([(BATCH, ANN)])[len(header) :]) == ([], False)


@given(st.text(min_size=1, max_size=400))
def test_a_long_detail_is_cut_at_a_character(detail: str) -> None:
    [(_, found)], intact = found_in(file_of([(BATCH, replace(sent(ANN), detail=detail))]))
    assert intact
    assert isinstance(found, Outcome)
    readable = detail.encode(errors="replace").decode()
    assert readable.startswith(found.detail or "")
    assert len(readable.encode()) <= LONGEST_DETAIL or len((found.detail or "").encode()) > LONGEST_DETAIL - 4


def test_only_what_a_reply_did_is_recorded_as_one() -> None:
    for outcome in (replace(sent(ANN), fact=False), replace(sent(ANN), state=DeliveryState.EXPIRED)):
        with pytest.raises(ValueError, match="not what a reply did"):
            reply_bytes(BATCH, outcome, after=0)


def test_a_key_that_would_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 17"):
        intent_bytes(BATCH, bytes(17), after=0)


def test_a_name_that_would_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        header_bytes(replace(HEADER, uid="x" * 49))


@pytest.mark.parametrize("place", [0, 8])
def test_a_file_of_another_format_is_not_read(place: int) -> None:
    whole = bytearray(file_of([(BATCH, ANN)]))
    whole[place] += 1
    size = len(header_bytes(HEADER)[0])
    whole[size - 4 : size] = zlib.crc32(whole[: size - 4]).to_bytes(4, "little")
    assert read_header(io.BytesIO(whole)) is None
    assert found_in(bytes(whole)) == ([], False)


# ── the recorder ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_recorder_writes_what_its_successor_reads(tmp_path: Path, recorder: Recorder) -> None:
    recorder.begin(BATCH, BINDING)
    recorder.intend(BATCH, ANN)
    recorder.read(BATCH, deferred(ANN))
    recorder.intend(BATCH, BEN)
    recorder.intend(OTHER_BATCH, CID)
    recorder.close()
    with adopt(recording_path(tmp_path, recorder.name)) as orphan:
        assert orphan is not None
        recording = orphan.recording(BATCH)
        assert recording.header == replace(HEADER, pid=os.getpid())
        assert recording.outcomes == {ANN: deferred(ANN)}
        assert recording.unanswered == {BEN}
        assert recording.intact
        assert list(orphan.facts()) == [(BINDING, deferred(ANN))]


def test_the_recording_of_a_living_process_cannot_be_had(tmp_path: Path, recorder: Recorder) -> None:
    with adopt(recording_path(tmp_path, recorder.name)) as orphan:
        assert orphan is None
    assert list(orphans(tmp_path)) == []


def test_a_recorder_that_ends_with_everything_settled_is_put_away(tmp_path: Path, recorder: Recorder) -> None:
    recorder.begin(BATCH, BINDING)
    recorder.intend(BATCH, ANN)
    recorder.settled(BATCH)
    recorder.close()
    assert list(orphans(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == [f"{UID}{DONE}"]


def test_a_recorder_in_which_nothing_was_written_leaves_nothing(tmp_path: Path, recorder: Recorder) -> None:
    recorder.begin(BATCH, BINDING)
    recorder.settled(BATCH)
    recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_a_batch_is_bound_to_its_campaign_before_its_first_intent(tmp_path: Path, recorder: Recorder) -> None:
    recorder.begin(BATCH, BINDING)
    recorder.begin(OTHER_BATCH, replace(BINDING, uid="0b" * 16))
    for key in (ANN, BEN):
        recorder.intend(OTHER_BATCH, key)
    recorder.intend(BATCH, CID)
    recorder.close()
    with adopt(recording_path(tmp_path, UID)) as orphan:
        assert orphan is not None
        kinds = [(entry.batch_id, entry.kind) for entry in orphan.entries()]
        bound = [entry.binding() for entry in orphan.entries() if entry.kind is Kind.BATCH]
    assert kinds == [
        (OTHER_BATCH, Kind.BATCH),
        *[(OTHER_BATCH, Kind.INTENT)] * 2,
        (BATCH, Kind.BATCH),
        (BATCH, Kind.INTENT),
    ]
    assert bound == [replace(BINDING, uid="0b" * 16), BINDING]


def test_what_was_put_away_is_kept_for_its_time(tmp_path: Path) -> None:
    for uid, age in (("old", KEEP + timedelta(seconds=1)), ("young", KEEP - timedelta(seconds=1))):
        for damaged in (True, False):
            put_away(left_by_the_dead(tmp_path, [], uid=uid), damaged=damaged, now=NOW - age)
    left_by_the_dead(tmp_path, [], uid="orphan")
    new_recorder(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {f"young{DONE}", f"young{DAMAGED}", "orphan.rec"}


def test_a_recorder_that_rests_leaves_its_file_to_be_read_and_goes_on(
    tmp_path: Path, recorder: Recorder
) -> None:
    recorder.begin(BATCH, BINDING)
    recorder.intend(BATCH, ANN)
    recorder.rest()
    with adopt(recording_path(tmp_path, UID)) as early:
        assert early is None, "a batch is open"
    recorder.settled(BATCH)
    recorder.rest()
    with pytest.raises(RecorderFailed, match="rests"):
        recorder.intend(OTHER_BATCH, BEN)
    recorder.roll(uid="unused")
    recorder.intend(OTHER_BATCH, BEN)
    assert recorder.name == UID
    assert found_in(recording_path(tmp_path, UID).read_bytes())[1]


def test_a_recorder_whose_file_was_put_away_while_it_rested_begins_another(
    tmp_path: Path, recorder: Recorder
) -> None:
    recorder.rest()
    for orphan in orphans(tmp_path):
        recorder.roll(uid="second")  # somebody reads the first
        recorder.rest()
        orphan.put_away(now=NOW)
    recorder.roll(uid="third")
    assert recorder.name == "second"
    recorder.rest()
    for orphan in orphans(tmp_path):
        orphan.put_away(now=NOW)
    recorder.roll(uid="third")
    recorder.intend(BATCH, ANN)
    assert {path.name for path in tmp_path.iterdir()} == {f"{UID}{DONE}", f"second{DONE}", "third.rec"}


def test_a_damaged_orphan_is_put_away_as_such(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = left_by_the_dead(tmp_path, [(BATCH, BINDING), (BATCH, sent(ANN))])
    with path.open("ab") as file:
        file.write(b"torn")
    for orphan in orphans(tmp_path):
        assert list(orphan.facts()) == [(BINDING, sent(ANN))]
        orphan.put_away(now=NOW)
    assert [path.suffix for path in tmp_path.iterdir()] == [DAMAGED]
    assert "from entry 3 on" in caplog.text


@pytest.mark.parametrize("begun_only", [True, False])
def test_a_recorder_that_ends_with_a_batch_open_leaves_it_to_a_successor(
    tmp_path: Path, recorder: Recorder, begun_only: bool
) -> None:
    if begun_only:
        recorder.begin(BATCH, BINDING)
    else:
        recorder.intend(BATCH, ANN)
    recorder.close()
    assert [orphan.name for orphan in orphans(tmp_path)] == [UID]


def test_nothing_is_written_after_the_end(recorder: Recorder) -> None:
    recorder.close()
    with pytest.raises(RecorderFailed):
        recorder.intend(BATCH, ANN)
    recorder.close()


def test_a_grown_recorder_begins_anew_under_another_name(tmp_path: Path, recorder: Recorder) -> None:
    recorder.intend(BATCH, ANN)
    recorder.settled(BATCH)
    recorder.roll(uid="next", at=1)
    assert recorder.name == "next"
    recorder.intend(OTHER_BATCH, BEN)
    recorder.close()
    [orphan] = tmp_path.glob("*.rec")
    assert orphan == recording_path(tmp_path, "next")
    assert found_in(orphan.read_bytes()) == ([(OTHER_BATCH, BEN)], True)


def test_a_recorder_with_a_batch_open_keeps_its_file(recorder: Recorder) -> None:
    recorder.begin(BATCH, BINDING)
    recorder.roll(uid="next", at=1)
    assert recorder.name == UID


def test_a_small_recorder_keeps_its_file(recorder: Recorder) -> None:
    recorder.roll(uid="next")
    assert recorder.name == UID


def test_a_recorder_that_cannot_begin_anew_goes_on_with_its_file(tmp_path: Path, recorder: Recorder) -> None:
    left_by_the_dead(tmp_path, [], uid="taken")
    with pytest.raises(RecorderFailed, match="already"):
        recorder.roll(uid="taken", at=1)
    recorder.intend(BATCH, ANN)
    assert found_in(recording_path(tmp_path, UID).read_bytes()) == ([(BATCH, ANN)], True)


def test_the_recording_of_another_is_never_overwritten(tmp_path: Path) -> None:
    path = left_by_the_dead(tmp_path, [(BATCH, sent(ANN))])
    before = path.read_bytes()
    with pytest.raises(RecorderFailed, match="already"):
        new_recorder(tmp_path)
    assert path.read_bytes() == before


def test_where_no_recorder_can_be_made_the_reason_is_told(tmp_path: Path) -> None:
    (tmp_path / "recorders").write_text("a file")
    with pytest.raises(RecorderFailed, match=r"File exists.*nothing is mailed"):
        new_recorder(tmp_path / "recorders")


def test_an_entry_that_cannot_be_taken_back_stops_the_recorder_and_keeps_its_lock(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.intend(BATCH, ANN)
    write = os.write
    with monkeypatch.context() as failing:
        failing.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
        failing.setattr(os, "ftruncate", refuse)
        with pytest.raises(RecorderFailed):
            recorder.intend(BATCH, BEN)
    with pytest.raises(RecorderFailed, match="half an entry"):
        recorder.intend(BATCH, CID)
    path = recording_path(tmp_path, UID)
    with adopt(path) as orphan:
        assert orphan is None
    assert found_in(path.read_bytes()) == ([(BATCH, ANN)], False)
    recorder.settled(BATCH)
    recorder.roll(uid="next")
    recorder.intend(BATCH, CID)


def refuse(*arguments: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_this_machine_and_its_boot_have_names_that_fit(tmp_path: Path) -> None:
    assert this_boot() == this_boot()
    assert this_machine() == this_machine() != ""
    header_bytes(replace(HEADER, boot_id=this_boot(), machine_id=this_machine()))


def test_a_system_without_ids_has_no_boot_and_a_machine_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "machine-id").write_text("uninitialized\n")
    monkeypatch.setattr(recording_to, "_BOOT_ID", tmp_path / "none")
    monkeypatch.setattr(recording_to, "_MACHINE_ID", tmp_path / "machine-id")
    assert this_boot() == ""
    assert len(this_machine()) == 32


# ── processes that die ──────────────────────────────────────────────────────────────────────────────────────────────

_CHILD = """
import os, resource, signal, sys
from pathlib import Path
from maintd.clock import SystemClock
from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import DeliveryState
from maintd.mail.recording.entries import Binding
from maintd.mail.recording.recorder import Recorder, RecorderFailed

def create():
    return Recorder.create(Path(sys.argv[1]), uid="child", boot_id="boot", machine_id="m", clock=SystemClock())

def key(number):
    return number.to_bytes(16, "big")
"""


@contextlib.contextmanager
def child(code: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _CHILD + code, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def test_what_a_killed_process_wrote_is_all_there_and_its_lock_is_free(tmp_path: Path) -> None:
    code = """
recorder = create()
for batch in (0, 1):
    recorder.begin(batch, Binding(uid="ca" * 16, job="digest", edition="ever"))
number = 0
while True:
    recorder.intend(number % 2, key(number))
    os.write(1, f"{number}\\n".encode())
    recorder.read(number % 2, Outcome(recipient_key=key(number), ordinal=number, state=DeliveryState.SENT, fact=True))
    number += 1
"""
    with child(code, tmp_path) as process:
        for line in lines(process):
            if int(line) == 500:
                break
        with adopt(recording_path(tmp_path, "child")) as early:
            assert early is None
        process.kill()
        last = max((int(line) for line in lines(process)), default=500)
        process.wait()
    [path] = tmp_path.iterdir()
    with adopt(path) as orphan:
        assert orphan is not None
        of_last = orphan.recording(last % 2)
        before = orphan.recording((last - 1) % 2)
        facts = [int.from_bytes(outcome.recipient_key) for _, outcome in orphan.facts()]
    assert of_last.intact
    # The child may have come a step further than its last word.
    assert facts[:last] == list(range(last))
    assert len(of_last.unanswered | before.unanswered) <= 1
    assert last.to_bytes(16) in of_last.unanswered | of_last.outcomes.keys()


def test_who_is_killed_before_the_file_has_its_name_leaves_no_orphan(tmp_path: Path) -> None:
    code = "Path.rename = lambda *names: os.kill(os.getpid(), signal.SIGKILL)\ncreate()"
    with child(code, tmp_path) as process:
        assert process.wait() == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    assert list(orphans(tmp_path)) == []
    new_recorder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{UID}.rec"]


def test_a_full_disk_refuses_the_dot_and_leaves_the_recording_intact(tmp_path: Path) -> None:
    code = """
recorder = create()
recorder.intend(7, key(1))
size = recorder._file.size
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for room in (10, 0):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
    try:
        recorder.intend(7, key(2))
    except RecorderFailed as error:
        print(error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
recorder.intend(7, key(3))
os.kill(os.getpid(), signal.SIGKILL)
"""
    with child(code, tmp_path) as process:
        short, full = lines(process)
        process.wait()
    assert "room for 10 of the 30 bytes" in short
    assert "File too large" in full
    written = [(7, number.to_bytes(16)) for number in (1, 3)]
    assert found_in(recording_path(tmp_path, "child").read_bytes()) == (written, True)


# ── successors ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_successors_that_race_for_an_orphan_one_gets_it(tmp_path: Path) -> None:
    path = left_by_the_dead(tmp_path, [(BATCH, ANN)])
    successors = 6
    all_tried = threading.Barrier(successors)

    def succeed() -> bool:
        with adopt(path) as orphan:
            all_tried.wait()
            return orphan is not None

    with ThreadPoolExecutor(successors) as pool:
        got = [pool.submit(succeed) for _ in range(successors)]
    assert sum(future.result() for future in got) == 1


def test_an_orphan_that_another_successor_is_done_with_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left_by_the_dead(tmp_path, [(BATCH, ANN)])
    flock = fcntl.flock

    def late(file: IO[bytes], operation: int) -> None:
        put_away(path, damaged=False, now=NOW)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with adopt(path) as orphan:
        assert orphan is None


def test_an_orphan_stays_until_it_is_put_away(tmp_path: Path) -> None:
    path = left_by_the_dead(tmp_path, [(BATCH, ANN)])
    for _ in range(2):
        assert [orphan.path for orphan in orphans(tmp_path)] == [path]
    for orphan in orphans(tmp_path):
        orphan.put_away(now=NOW)
    assert [path.suffix for path in tmp_path.iterdir()] == [DONE]


def test_every_orphan_is_found_and_held_while_it_is_looked_at(tmp_path: Path, recorder: Recorder) -> None:
    for uid in ("one", "two"):
        left_by_the_dead(tmp_path, [], uid=uid)
    (tmp_path / "three.tmp").write_bytes(file_of([]))
    found = []
    for orphan in orphans(tmp_path):
        found.append(orphan.name)
        with adopt(orphan.path) as second:
            assert second is None
    assert found == ["one", "two"]


def test_a_directory_that_is_not_there_has_no_orphans(tmp_path: Path) -> None:
    assert list(orphans(tmp_path / "none")) == []
    with adopt(recording_path(tmp_path, "none")) as orphan:
        assert orphan is None


def test_what_cannot_be_opened_cannot_be_had_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = recording_path(tmp_path, UID)
    path.symlink_to(path)
    with adopt(path) as orphan:
        assert orphan is None
    assert "cannot be read" in caplog.text


def test_facts_before_damage_count(tmp_path: Path) -> None:
    other = replace(BINDING, uid="0b" * 16)
    written: list[Written] = [
        (BATCH, BINDING),
        (BATCH, sent(ANN)),
        (OTHER_BATCH, other),
        (OTHER_BATCH, sent(BEN)),
    ]
    path = left_by_the_dead(tmp_path, written)
    with path.open("ab") as file:
        file.write(b"torn")
    with adopt(path) as orphan:
        assert orphan is not None
        assert list(orphan.facts()) == [(BINDING, sent(ANN)), (other, sent(BEN))]
        assert not orphan.recording(BATCH).intact


def test_a_reply_in_a_batch_that_is_nobodys_is_no_fact(tmp_path: Path) -> None:
    path = left_by_the_dead(tmp_path, [(BATCH, BINDING), (OTHER_BATCH, sent(BEN)), (BATCH, sent(ANN))])
    assert list(Orphan(path).facts()) == [(BINDING, sent(ANN))]


def test_two_readings_of_one_orphan_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = left_by_the_dead(tmp_path, [(BATCH, BINDING), (BATCH, sent(ANN)), (BATCH, sent(BEN))])
    with adopt(path) as orphan:
        assert orphan is not None
        assert [orphan.recording(BATCH).intact for _ in orphan.facts()] == [True, True]


# ── what a recording proves ─────────────────────────────────────────────────────────────────────────────────────────


def judged(
    recording: Recording | None,
    *,
    unsettled: Sequence[bytes] = (ANN, BEN, CID),
    recorder: str | None = UID,
    boot_id: str = BOOT,
    machine_id: str = MACHINE,
) -> tuple[list[Outcome], list[bytes], list[bytes]]:
    judgement = judge(
        recording, recorder=recorder, boot_id=boot_id, machine_id=machine_id, unsettled=unsettled
    )
    return judgement.outcomes, judgement.doubtful, judgement.unsent


def test_a_reply_settles_an_intent_alone_is_doubtful_and_none_means_unsent() -> None:
    assert judged(recording_of(ANN, sent(ANN), BEN)) == ([sent(ANN)], [BEN], [CID])


def test_a_reply_without_an_intent_settles_too() -> None:
    assert judged(recording_of(deferred(ANN))) == ([deferred(ANN)], [], [BEN, CID])


def test_without_the_recording_everything_is_doubtful() -> None:
    assert judged(None) == ([], [ANN, BEN, CID], [])


def test_a_recorder_that_the_batch_does_not_name_proves_no_absence() -> None:
    for named in ("another", None):
        assert judged(recording_of(ANN, sent(ANN)), recorder=named) == ([sent(ANN)], [BEN, CID], [])


def test_after_another_boot_absence_proves_nothing() -> None:
    assert judged(recording_of(ANN, sent(ANN)), boot_id="another") == ([sent(ANN)], [BEN, CID], [])


def test_on_another_machine_absence_proves_nothing() -> None:
    assert judged(recording_of(ANN, sent(ANN)), machine_id="another") == ([sent(ANN)], [BEN, CID], [])


def test_where_boots_have_no_id_absence_proves_nothing() -> None:
    recording = recording_of(ANN, sent(ANN), header=replace(HEADER, boot_id=""))
    assert judged(recording, boot_id="") == ([sent(ANN)], [BEN, CID], [])


def test_in_a_damaged_recording_facts_count_and_absence_does_not() -> None:
    assert judged(recording_of(ANN, sent(ANN), torn=True)) == ([sent(ANN)], [BEN, CID], [])


def test_a_recording_without_a_readable_header_proves_nothing() -> None:
    recording = read_recording(io.BytesIO(b"x" * 1000), batch_id=BATCH)
    assert recording.header is None
    assert judged(recording) == ([], [ANN, BEN, CID], [])


def test_a_second_dot_makes_a_refused_delivery_doubtful_again() -> None:
    assert judged(recording_of(ANN, deferred(ANN), ANN), unsettled=[ANN]) == ([], [ANN], [])


def test_an_acceptance_stays_whatever_comes_after_it() -> None:
    for after in (ANN, deferred(ANN)):
        assert judged(recording_of(ANN, sent(ANN), after), unsettled=[ANN]) == ([sent(ANN)], [], [])


def test_of_what_is_settled_already_only_acceptances_are_told() -> None:
    assert judged(recording_of(sent(ANN), deferred(BEN)), unsettled=[]) == ([sent(ANN)], [], [])


def test_entries_of_another_batch_prove_nothing_for_this_one() -> None:
    data = file_of([(OTHER_BATCH, ANN), (OTHER_BATCH, sent(ANN)), (OTHER_BATCH, BEN)])
    recording = read_recording(io.BytesIO(data), batch_id=BATCH)
    assert judged(recording) == ([], [], [ANN, BEN, CID])


@given(
    written=st.lists(st.sampled_from([ANN, BEN, CID, sent(ANN), deferred(ANN), sent(BEN), deferred(CID)])),
    torn=st.booleans(),
    here=st.booleans(),
)
def test_every_unsettled_delivery_is_judged_once_and_never_unsent_if_its_dot_was_intended(
    written: list[bytes | Outcome], torn: bool, here: bool
) -> None:
    recording = recording_of(*written, torn=torn)
    facts, doubtful, unsent = judged(recording, boot_id=BOOT if here else "another")
    assert sorted([*(fact.recipient_key for fact in facts), *doubtful, *unsent]) == [ANN, BEN, CID]
    assert not any(key in written for key in unsent)
    assert not unsent or (here and not torn)
    assert all(fact in written for fact in facts)
