"""What every session promises, whichever it is and wherever the message stands in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maintd.clock import SystemClock
from maintd.smtp.faults import Action, Moment, Step, Then
from maintd.smtp.mailbox import read_index
from maintd.smtp.session import Outgoing, Phase, Result, Session, Timeouts, Unsendable, Verdict
from maintd.smtp.sink import Sink
from tests.smtp.relaying import (
    CONTENT,
    PATIENT,
    Hanging,
    Kind,
    Once,
    Recording,
    Watching,
    local_relay,
    message,
    open_kind,
    send,
    set_timeouts,
    sink_and_session,
)

STEPS = [(Step.MAIL, Phase.MAIL), (Step.RCPT, Phase.RCPT), (Step.DATA, Phase.DATA)]
ALL_STEPS = [*STEPS, (Step.DOT, Phase.DOT)]
HASTY_AT_DOT = Timeouts(connect_s=30, command_s=30, dot_s=0.2)
HASTY = Timeouts(connect_s=30, command_s=0.2, dot_s=30)


@pytest.fixture(scope="module", params=list(Kind))
def kind(request: pytest.FixtureRequest) -> Kind:
    assert isinstance(request.param, Kind)
    return request.param


async def send_alone(kind: Kind, script: object, *, timeouts: Timeouts = PATIENT) -> tuple[Result, bool, int]:
    """One message to a sink that behaves so: the result, whether the session is usable, how many were accepted."""
    async with sink_and_session(kind=kind, script=script, timeouts=timeouts) as (sink, session):  # type: ignore[arg-type]
        result = await send(session, message())
        return result, session.usable, sink.accepted


def test_an_accepted_message_arrives_as_it_was_written(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        async with sink_and_session(tmp_path, kind=kind) as (_, session):
            held: Session = session
            result = await send(held, message())
            assert (result.verdict, result.phase) == (Verdict.ACCEPTED, Phase.DOT)
            assert str(result.reply) == "250 2.0.0 Kept"
            assert held.usable

    asyncio.run(main())
    (accepted,) = read_index(tmp_path)
    assert (accepted.sender, accepted.recipients) == ("a@example.com", ("b@example.com",))
    assert (tmp_path / "messages" / "1.eml").read_bytes() == CONTENT


@pytest.mark.parametrize(("step", "phase"), ALL_STEPS)
@pytest.mark.parametrize(
    ("reply", "verdict"), [("451 4.3.0 Later", Verdict.DEFERRED), ("550 5.1.1 Never", Verdict.REJECTED)]
)
def test_a_refusal_is_definite_and_the_session_goes_on(
    kind: Kind, step: Step, phase: Phase, reply: str, verdict: Verdict
) -> None:
    async def main() -> None:
        async with sink_and_session(kind=kind, script=Once(step, Action(reply=reply))) as (sink, session):
            refused = await send(session, message())
            assert (refused.verdict, refused.phase, str(refused.reply)) == (verdict, phase, reply)
            assert sink.accepted == 0
            assert session.usable
            following = await send(session, message("c@example.com"))
            assert (following.verdict, sink.accepted) == (Verdict.ACCEPTED, 1)

    asyncio.run(main())


@pytest.mark.parametrize(("step", "phase"), STEPS)
@pytest.mark.parametrize(
    "action",
    [
        Action(then=Then.DROP),
        Action(reply="150 Perhaps"),
        Action(reply="600 More than that"),
        Action(reply="What do you mean?"),
        Action(reply="250-and then", then=Then.DROP),
    ],
)
def test_what_breaks_before_the_dot_was_certainly_not_sent(
    kind: Kind, step: Step, phase: Phase, action: Action
) -> None:
    result, usable, accepted = asyncio.run(send_alone(kind, Once(step, action)))
    assert (result.verdict, result.phase, usable, accepted) == (Verdict.UNSENT, phase, False, 0)
    assert result.detail


@pytest.mark.parametrize(
    ("step", "reply"), [(Step.MAIL, "354 Go on"), (Step.RCPT, "354 Go on"), (Step.DATA, "250 OK")]
)
def test_a_reply_of_another_step_is_no_permission_to_go_on(kind: Kind, step: Step, reply: str) -> None:
    result, usable, accepted = asyncio.run(send_alone(kind, Once(step, Action(reply=reply))))
    assert (result.verdict, usable, accepted) == (Verdict.UNSENT, False, 0)


@pytest.mark.parametrize(
    ("step", "replies"),
    [(Step.MAIL, "250 OK\r\n250 OK"), (Step.RCPT, "250 OK\r\n250 OK"), (Step.DATA, "354 Go on\r\n250 Kept")],
)
def test_a_reply_that_nobody_asked_for_is_never_taken_for_the_next_one(
    kind: Kind, step: Step, replies: str
) -> None:
    result, usable, accepted = asyncio.run(send_alone(kind, Once(step, Action(reply=replies))))
    assert (result.verdict, usable, accepted) == (Verdict.UNSENT, False, 0)


@pytest.mark.parametrize(
    "action",
    [
        Action(then=Then.DROP),
        Action(reply="354 Go on"),
        Action(reply="What do you mean?"),
        Action(reply="250-Kept", then=Then.DROP),
    ],
)
@pytest.mark.parametrize("accept", [True, False])
def test_without_a_reply_to_the_dot_nobody_knows(kind: Kind, action: Action, accept: bool) -> None:
    action = Action(reply=action.reply, then=action.then, accept=accept)
    result, usable, accepted = asyncio.run(send_alone(kind, Once(Step.DOT, action)))
    assert (result.verdict, result.phase, usable) == (Verdict.UNCERTAIN, Phase.DOT, False)
    assert accepted == int(accept)


@pytest.mark.parametrize("accept", [True, False])
def test_a_relay_that_hangs_after_the_dot_leaves_a_doubt(kind: Kind, accept: bool) -> None:
    script = Once(Step.DOT, Action(then=Then.HANG, accept=accept))
    result, usable, accepted = asyncio.run(send_alone(kind, script, timeouts=HASTY_AT_DOT))
    assert (result.verdict, usable, accepted) == (Verdict.UNCERTAIN, False, int(accept))
    assert result.detail == "no answer in time"


def test_a_relay_that_hangs_before_the_dot_leaves_none(kind: Kind) -> None:
    script = Once(Step.MAIL, Action(then=Then.HANG))
    result, usable, accepted = asyncio.run(send_alone(kind, script, timeouts=HASTY))
    assert (result.verdict, result.phase, usable, accepted) == (Verdict.UNSENT, Phase.MAIL, False, 0)


@pytest.mark.parametrize(("step", "phase"), ALL_STEPS)
def test_421_defers_the_message_and_ends_the_session(kind: Kind, step: Step, phase: Phase) -> None:
    result, usable, _ = asyncio.run(send_alone(kind, Once(step, Action(reply="421 4.3.2 Closing"))))
    assert (result.verdict, result.phase, usable) == (Verdict.DEFERRED, phase, False)


@pytest.mark.parametrize(
    "after",
    [
        Action(then=Then.HANG),
        Action(then=Then.DROP),
        Action(reply="500 What?"),
        Action(reply="Eh"),
    ],
)
def test_a_definite_refusal_stands_when_the_reset_after_it_fails(kind: Kind, after: Action) -> None:
    def script(moment: Moment) -> Action | None:
        if moment.step is Step.MAIL:
            set_timeouts(held[0], HASTY)
        return {Step.MAIL: Action(reply="550 5.7.1 Never"), Step.RESET: after}.get(moment.step)

    held: list[Session] = []

    async def main() -> None:
        async with sink_and_session(kind=kind, script=script) as (_, session):
            held.append(session)
            recording = Recording()
            await session.send_all([message(), message("c@example.com")], watcher=recording)
            assert recording.verdicts == [Verdict.REJECTED, Verdict.UNSENT]
            assert (recording.results[0].phase, session.usable) == (Phase.MAIL, False)

    asyncio.run(main())


@pytest.mark.parametrize("step", [Step.MAIL, Step.DOT])
def test_a_second_reply_to_a_refusal_ends_the_session_but_not_the_refusal(kind: Kind, step: Step) -> None:
    result, usable, _ = asyncio.run(send_alone(kind, Once(step, Action(reply="550 No\r\n250 OK"))))
    assert (result.verdict, usable) == (Verdict.REJECTED, False)


def test_a_second_reply_to_the_dot_ends_the_session_but_not_the_acceptance(kind: Kind) -> None:
    script = Once(Step.DOT, Action(reply="250 Kept\r\n250 Kept", accept=True))
    result, usable, _ = asyncio.run(send_alone(kind, script))
    assert (result.verdict, usable) == (Verdict.ACCEPTED, False)


def test_what_may_not_be_sent_any_more_is_not_sent(kind: Kind) -> None:
    async def main() -> None:
        watching = Watching()
        async with sink_and_session(kind=kind, script=watching) as (sink, session):
            asked_after: list[str] = []

            def withdrawn() -> bool:
                asked_after.append(watching.lines[-1])
                return False

            result = await send(session, message(), may_write_dot=withdrawn)
            assert (result.verdict, result.phase) == (Verdict.UNSENT, Phase.DATA)
            assert asked_after == ["DATA"]
            assert (session.usable, sink.accepted) == (False, 0)

    asyncio.run(main())


def test_nothing_written_is_no_doubt(kind: Kind) -> None:
    async def main() -> None:
        async with sink_and_session(kind=kind) as (_, session):

            def dropping() -> bool:
                session.abort()
                return True

            assert (await send(session, message(), may_write_dot=dropping)).verdict is Verdict.UNSENT

    asyncio.run(main())


@pytest.mark.parametrize("step", [Step.MAIL, Step.RCPT, Step.DATA])
def test_permission_is_asked_only_when_nothing_but_the_message_is_missing(kind: Kind, step: Step) -> None:
    def never() -> bool:
        raise AssertionError("asked too early")

    async def main() -> None:
        async with sink_and_session(kind=kind, script=Once(step, Action(reply="550 No"))) as (_, session):
            assert (await send(session, message(), may_write_dot=never)).verdict is Verdict.REJECTED

    asyncio.run(main())


def test_a_cancelled_sending_drops_the_connection(kind: Kind) -> None:
    async def main() -> None:
        hanging = Hanging(Step.DOT)
        async with sink_and_session(kind=kind, script=hanging) as (_, session):
            sending = asyncio.create_task(send(session, message()))
            await hanging.reached.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert not session.usable

    asyncio.run(main())


@pytest.mark.parametrize(
    "outgoing",
    [
        message("b@example.com>\r\nRCPT TO:<c@example.com"),
        message(sender="a@example.com\nRSET"),
        message("b@exämple.com"),
    ],
)
def test_what_could_inject_commands_is_refused_before_anything_is_written(
    kind: Kind, outgoing: object
) -> None:
    async def main() -> None:
        watching = Watching()
        async with sink_and_session(kind=kind, script=watching) as (_, session):
            result = await send(session, outgoing)  # type: ignore[arg-type]
            assert (result.verdict, result.phase, result.reply) == (Verdict.REJECTED, Phase.MAIL, None)
            assert result.detail
            assert session.usable
            assert watching.lines == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("outgoing", "missing"),
    [
        (message(content="ü\r\n".encode()), "8BITMIME"),
        (message("j@exämple.com", smtputf8=True), "SMTPUTF8"),
    ],
)
def test_what_the_relay_cannot_carry_is_rejected_without_asking_it(
    kind: Kind, outgoing: object, missing: str
) -> None:
    async def main() -> None:
        hello = Once(Step.HELLO, Action(reply="250-old.example\r\n250 PIPELINING"))
        async with sink_and_session(kind=kind, opening=hello) as (sink, session):
            result = await send(session, outgoing)  # type: ignore[arg-type]
            assert (result.verdict, result.phase) == (Verdict.REJECTED, Phase.MAIL)
            assert missing in result.detail
            assert (session.usable, sink.transactions) == (True, 0)

    asyncio.run(main())


def test_a_foreign_message_is_announced_to_the_relay(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        watching = Watching()
        async with sink_and_session(tmp_path, kind=kind, script=watching) as (_, session):
            foreign = message("jürgen@exämple.com", content="\r\nü\r\n".encode(), smtputf8=True)
            assert (await send(session, foreign)).verdict is Verdict.ACCEPTED
        assert watching.first("MAIL") == "MAIL FROM:<a@example.com> SIZE=6 BODY=8BITMIME SMTPUTF8"

    asyncio.run(main())
    assert [accepted.recipients for accepted in read_index(tmp_path)] == [("jürgen@exämple.com",)]


class Keeping(Sink):
    """A sink that keeps in memory what it takes."""

    kept: bytes | None = None

    def take(self, message: bytes, *, sender: str, recipients: list[str]) -> None:
        self.kept = message
        super().take(message, sender=sender, recipients=recipients)


DOTTY = st.lists(
    st.one_of(st.sampled_from([b".", b"..", b"\r\n", b".\r\n", b"\0", b"\xff"]), st.binary(max_size=20))
)


@settings(max_examples=60)
@given(DOTTY.map(b"".join).map(lambda raw: b"\r\n".join(raw.replace(b"\r", b"\n").split(b"\n")) + b"\r\n"))
def test_every_message_arrives_octet_for_octet(kind: Kind, content: bytes) -> None:
    async def main() -> None:
        async with sink_and_session(kind=kind, sink_type=Keeping) as (sink, session):
            result = await send(session, message(content=content))
            assert result.verdict is Verdict.ACCEPTED
            assert isinstance(sink, Keeping)
            assert sink.kept == content

    asyncio.run(main())


async def answer_until_data(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, messages: int
) -> None:
    """Takes so many messages and refuses them, and grants the next one."""
    writer.write(b"220 slow\r\n")
    for _ in range(messages + 1):
        while (line := await reader.readline()) != b"DATA\r\n":
            writer.write(b"250-slow\r\n250 PIPELINING\r\n" if line.startswith(b"EHLO") else b"250 OK\r\n")
        writer.write(b"354 Go on\r\n")
        if messages:
            messages -= 1
            await reader.readuntil(b"\r\n.\r\n")
            writer.write(b"554 No\r\n")


async def everything_of(reader: asyncio.StreamReader) -> bytes:
    """Reads until the other side is gone, whichever way it went."""
    read = b""
    with contextlib.suppress(ConnectionResetError):
        while some := await reader.read(2**16):
            read += some
    return read


def test_a_dot_that_was_given_up_is_never_written_later(kind: Kind) -> None:
    """The relay stops reading; the session gives up; then the relay reads on and must not find the dot."""

    async def main() -> None:
        given_up, everything = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def slow_relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answer_until_data(reader, writer, messages=int(kind is Kind.GROUPED))
            await given_up.wait()
            everything.set_result(await everything_of(reader))
            writer.close()

        server = await asyncio.start_server(slow_relay, "127.0.0.1", 0)
        relay = local_relay(server.sockets[0].getsockname()[1])
        session = await open_kind(kind, relay, timeouts=PATIENT)
        if kind is Kind.GROUPED:
            assert (await send(session, message())).verdict is Verdict.REJECTED
        set_timeouts(session, HASTY_AT_DOT)
        large = message(content=(b"y" * 998 + b"\r\n") * 32_000)
        result = await send(session, large)
        assert result.verdict is Verdict.UNCERTAIN
        given_up.set()
        assert not (await everything).endswith(b"\r\n.\r\n")
        server.close()

    asyncio.run(main())


def test_a_session_that_ended_sends_nothing(kind: Kind) -> None:
    async def main() -> None:
        watching = Watching()
        async with sink_and_session(kind=kind, script=watching) as (sink, session):
            await session.close()
            assert watching.lines[-1] == "QUIT"
            assert not session.usable
            assert (await send(session, message())).verdict is Verdict.UNSENT
            assert sink.transactions == 0
            await session.close()

    asyncio.run(main())


def test_a_busy_session_takes_no_second_message_and_no_goodbye(kind: Kind) -> None:
    async def main() -> None:
        hanging = Hanging(Step.MAIL)
        async with sink_and_session(kind=kind, script=hanging) as (_, session):
            sending = asyncio.create_task(send(session, message()))
            await hanging.reached.wait()
            assert not session.usable
            assert (await send(session, message())).verdict is Verdict.UNSENT
            await session.close()
            assert (await sending).verdict is Verdict.UNSENT

    asyncio.run(main())


def test_a_relay_that_left_in_the_meantime_is_noticed(kind: Kind) -> None:
    async def main() -> None:
        async with sink_and_session(kind=kind) as (sink, session):
            await sink.close()
            result = await send(session, message())
            assert (result.verdict, session.usable) == (Verdict.UNSENT, False)

    asyncio.run(main())


def test_many_connections_share_one_relay(kind: Kind, tmp_path: Path) -> None:
    async def main() -> None:
        sink = Sink(tmp_path, clock=SystemClock())
        relay = local_relay(await sink.start())

        async def client(name: int) -> None:
            session = await open_kind(kind, relay, timeouts=PATIENT)
            for number in range(3):
                result = await send(session, message(f"{name}.{number}@example.com"))
                assert result.verdict is Verdict.ACCEPTED
            await session.close()

        await asyncio.gather(*(client(name) for name in range(60)))
        await sink.wait_for(180)
        await sink.close()

    asyncio.run(main())
    index = list(read_index(tmp_path))
    assert [accepted.seq for accepted in index] == list(range(1, 181))
    assert len({accepted.recipients for accepted in index}) == 180


@pytest.mark.parametrize("step", [step for step, _ in ALL_STEPS])
@pytest.mark.parametrize("refusal", ["451 4.3.0 Later", "550 5.1.1 Never"])
def test_a_refused_message_never_goes_to_the_next_recipient_nor_the_next_one_to_it(
    kind: Kind, tmp_path: Path, step: Step, refusal: str
) -> None:
    async def main() -> None:
        script = Once(step, Action(reply=refusal))
        async with sink_and_session(tmp_path, kind=kind, script=script) as (_, session):
            recording = Recording()
            names = ("b", "c", "d")
            await session.send_all([message(f"{name}@example.com") for name in names], watcher=recording)
            refused = Verdict.DEFERRED if refusal.startswith("4") else Verdict.REJECTED
            assert recording.verdicts == [refused, Verdict.ACCEPTED, Verdict.ACCEPTED]
            assert session.usable

    asyncio.run(main())
    assert [each.recipients for each in read_index(tmp_path)] == [("c@example.com",), ("d@example.com",)]


def test_after_a_lost_connection_the_rest_is_unsent(kind: Kind) -> None:
    async def main() -> None:
        script = Once(Step.DOT, Action(then=Then.DROP))
        async with sink_and_session(kind=kind, script=script) as (sink, session):
            recording = Recording()
            await session.send_all([message()] * 3, watcher=recording)
            assert recording.verdicts == [Verdict.UNCERTAIN, Verdict.UNSENT, Verdict.UNSENT]
            assert recording.results[1].detail == recording.results[2].detail == "the connection is closed"
            assert (recording.asked, session.usable, sink.accepted) == ([0], False, 0)

    asyncio.run(main())


def test_a_message_that_cannot_be_sent_is_rejected_in_its_turn(kind: Kind) -> None:
    async def main() -> None:
        async with sink_and_session(kind=kind) as (sink, session):
            recording = Recording()
            bad = message("b@example.com\n")
            await session.send_all([bad, message(), bad, bad, message(), bad], watcher=recording)
            fine, refused = Verdict.ACCEPTED, Verdict.REJECTED
            assert recording.verdicts == [refused, fine, refused, refused, fine, refused]
            assert (recording.asked, sink.accepted, session.usable) == ([1, 4], 2, True)

    asyncio.run(main())


@dataclass
class Workshop:
    """Makes messages when they are asked for, some of them not at all, and remembers how much was decided then."""

    recording: Recording
    count: int
    broken: frozenset[int]
    decided: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Outgoing:
        assert index == len(self.decided)
        self.decided.append(len(self.recording.results))
        if index in self.broken:
            raise Unsendable("no name", phase=Phase.RENDER)
        return message()


def test_a_message_is_made_when_its_turn_comes_and_one_that_cannot_be_made_stops_no_other(kind: Kind) -> None:
    async def main() -> None:
        recording = Recording()
        workshop = Workshop(recording, count=6, broken=frozenset({0, 3}))
        async with sink_and_session(kind=kind) as (_, session):
            await session.send_all(workshop, watcher=recording)
        refused = (Verdict.REJECTED, Phase.RENDER, "no name")
        results = [(result.verdict, result.phase, result.detail) for result in recording.results]
        accepted = (Verdict.ACCEPTED, Phase.DOT, "")
        assert results == [refused, accepted, accepted, refused, accepted, accepted]
        assert workshop.decided[-1] >= 3  # never far ahead of what is on the wire

    asyncio.run(main())


def test_a_withdrawn_message_withdraws_all_later_ones(kind: Kind) -> None:
    async def main() -> None:
        async with sink_and_session(kind=kind) as (sink, session):
            recording = Recording(withheld=frozenset({1}))
            await session.send_all([message()] * 4, watcher=recording)
            assert recording.verdicts == [Verdict.ACCEPTED, *[Verdict.UNSENT] * 3]
            assert (recording.asked, sink.accepted, session.usable) == ([0, 1], 1, False)

    asyncio.run(main())


def test_a_watcher_that_fails_ends_the_session(kind: Kind) -> None:
    class Failing(Recording):
        def result(self, index: int, result: Result) -> None:
            raise RuntimeError("the disk is full")

    async def main() -> None:
        async with sink_and_session(kind=kind) as (_, session):
            with pytest.raises(RuntimeError, match="disk"):
                await session.send_all([message()] * 2, watcher=Failing())
            assert not session.usable

    asyncio.run(main())


def test_nothing_to_send_is_nothing_to_do(kind: Kind) -> None:
    async def main() -> None:
        async with sink_and_session(kind=kind) as (_, session):
            recording = Recording()
            await session.send_all([], watcher=recording)
            assert (recording.results, session.usable) == ([], True)

    asyncio.run(main())


@dataclass
class Counting:
    """Acts at the steps of some messages, and counts what is accepted for whom."""

    actions: dict[tuple[int, Step], Action]

    def __call__(self, moment: Moment) -> Action | None:
        return self.actions.pop((moment.message, moment.step), None)


class Keeper(Sink):
    """A sink that knows what it took for whom."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.taken: Counter[str] = Counter()

    def take(self, message: bytes, *, sender: str, recipients: list[str]) -> None:
        self.taken.update(recipients)
        super().take(message, sender=sender, recipients=recipients)


NEVER_ANSWERED = [Action(), Action(then=Then.HANG), Action(reply=b"250-")]
NO = [Action(reply=f"{code} No") for code in (421, 450, 451, 500, 501, 503, 550, 554)]
BROKEN = [
    Action(then=Then.DROP),
    Action(reply=b"25", then=Then.DROP),
    Action(reply=b"\0\xff\r\n"),
    Action(reply="550 No", then=Then.DROP),
    Action(reply="550 No\r\n250 OK"),
]
BEFORE_DOT = [
    *NO,
    *BROKEN,
    Action(reply="250 OK"),
    Action(reply="354 Go on"),
    Action(reply="250 OK\r\n250 OK"),
    Action(reply="354 Go on\r\n250 OK"),
]
AT_DOT = [
    *NO,
    *BROKEN,
    Action(reply="250 Kept", accept=True, then=Then.DROP),
    Action(reply="250 Kept\r\n250 Kept", accept=True),
    Action(reply=b"250-Kept\r\n25", accept=True, then=Then.DROP),
    Action(accept=True, then=Then.DROP),
]
FAULTS = st.dictionaries(
    st.tuples(st.integers(1, 6), st.sampled_from([Step.MAIL, Step.RCPT, Step.DATA, Step.RESET])),
    st.sampled_from(BEFORE_DOT),
    max_size=4,
)
FAULTS_AT_DOT = st.dictionaries(
    st.tuples(st.integers(1, 6), st.just(Step.DOT)), st.sampled_from(AT_DOT), max_size=2
)
SILENCES = st.one_of(
    st.just({}),
    st.dictionaries(
        st.tuples(st.integers(1, 6), st.sampled_from([Step.MAIL, Step.RCPT, Step.DATA, Step.RESET])),
        st.sampled_from(NEVER_ANSWERED),
        max_size=1,
    ),
    # A relay that answers what is behind a dot and not the dot itself cannot be told from one that answers the dot.
    st.builds(lambda number: {(number, Step.DOT): Action(then=Then.HANG)}, st.integers(1, 6)),
)
KNOWN = {Verdict.ACCEPTED: {1}, Verdict.UNCERTAIN: {0, 1}}


@settings(max_examples=80, deadline=None)
@given(FAULTS, FAULTS_AT_DOT, SILENCES, st.integers(0, 6))
def test_whatever_the_relay_does_no_verdict_says_more_than_is_true(
    kind: Kind,
    faults: dict[tuple[int, Step], Action],
    at_dot: dict[tuple[int, Step], Action],
    silences: dict[tuple[int, Step], Action],
    cut: int,
) -> None:
    async def main() -> None:
        script = Counting({**faults, **at_dot, **silences})
        hasty = Timeouts(connect_s=30, command_s=0.05, dot_s=0.05)
        async with sink_and_session(kind=kind, sink_type=Keeper, timeouts=PATIENT) as (sink, session):
            assert isinstance(sink, Keeper)
            sink.script = script
            set_timeouts(session, hasty if silences else PATIENT)
            messages = [message(f"{index}@example.com") for index in range(6)]
            first, second = Recording(), Recording()
            await session.send_all(messages[:cut], watcher=first)
            await session.send_all(messages[cut:], watcher=second)
            verdicts = first.verdicts + second.verdicts
            assert len(verdicts) == 6
            for each, verdict in zip(messages, verdicts, strict=True):
                assert sink.taken[each.recipient] in KNOWN.get(verdict, {0})
            asked = [*first.asked, *(cut + index for index in second.asked)]
            dotted = {index for index, verdict in enumerate(verdicts) if verdict in KNOWN}
            assert asked == sorted(set(asked))
            assert dotted <= set(asked)

    asyncio.run(main())
