"""What is particular to a session that pipelines: a message and the opening of the next one are on the wire at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from maintd.smtp.faults import Action, Moment, Script, Step, Then
from maintd.smtp.session import Phase, Session, Timeouts, Verdict
from tests.smtp.relaying import (
    PATIENT,
    Kind,
    Recording,
    local_relay,
    message,
    open_kind,
    sink_and_session,
)

COUNT = 5
VICTIM = 2  # its opening is on the wire with the message before, and has the next one's behind its own dot
HASTY = Timeouts(connect_s=30, command_s=0.2, dot_s=0.2)
PHASES = {Step.MAIL: Phase.MAIL, Step.RCPT: Phase.RCPT, Step.DATA: Phase.DATA, Step.DOT: Phase.DOT}
OPENING = [Step.MAIL, Step.RCPT, Step.DATA]
MESSAGES = [message(f"{index}@example.com") for index in range(COUNT)]


@dataclass
class At:
    """Acts at certain steps of one message, and remembers the commands of all."""

    actions: dict[Step, Action]
    index: int = VICTIM
    lines: list[str] = field(default_factory=list)
    done: set[Step] = field(default_factory=set)

    def __call__(self, moment: Moment) -> Action | None:
        self.lines.append(moment.line.split(" SIZE", maxsplit=1)[0] or ".")
        if moment.message != self.index + 1 or moment.step in self.done:
            return None
        self.done.add(moment.step)
        return self.actions.get(moment.step)


async def send_all(script: Script, *, timeouts: Timeouts = PATIENT) -> tuple[Recording, bool, int]:
    """All messages to a sink that behaves so: what was heard, whether the session is usable, how many were accepted."""
    async with sink_and_session(kind=Kind.FIRST, script=script, timeouts=timeouts) as (sink, session):
        recording = Recording()
        await session.send_all(MESSAGES, watcher=recording)
        return recording, session.usable, sink.accepted


def expected(verdict: Verdict, *, goes_on: bool) -> list[Verdict]:
    after = Verdict.ACCEPTED if goes_on else Verdict.UNSENT
    return [*[Verdict.ACCEPTED] * VICTIM, verdict, *[after] * (COUNT - VICTIM - 1)]


def check(
    step: Step, action: Action, verdict: Verdict, *, goes_on: bool, timeouts: Timeouts = PATIENT
) -> None:
    recording, usable, accepted = asyncio.run(send_all(At({step: action}), timeouts=timeouts))
    assert recording.verdicts == expected(verdict, goes_on=goes_on)
    assert recording.results[VICTIM].phase is PHASES[step]
    assert usable == goes_on
    assert accepted == recording.verdicts.count(Verdict.ACCEPTED)
    asked = range(COUNT) if goes_on else range(VICTIM + (step is Step.DOT))
    assert recording.asked == [index for index in asked if index != VICTIM or step is Step.DOT]


REFUSALS = [
    ("451 4.3.0 Later", Verdict.DEFERRED),
    ("550 5.1.1 Never", Verdict.REJECTED),
    ("501 5.1.3 Bad address", Verdict.REJECTED),
    ("504 5.5.2 Need a whole name", Verdict.REJECTED),
    ("550-5.1.1 Not\r\n550 5.1.1 here", Verdict.REJECTED),
    (b"550 5.1.1 Empf\xe4nger\0 unbekannt\r\n", Verdict.REJECTED),
]


@pytest.mark.parametrize("step", PHASES)
@pytest.mark.parametrize(("reply", "verdict"), REFUSALS)
def test_a_refusal_is_its_own_messages_only(step: Step, reply: str | bytes, verdict: Verdict) -> None:
    check(step, Action(reply=reply), verdict, goes_on=True)


@pytest.mark.parametrize("step", PHASES)
def test_421_defers_its_message_and_leaves_the_rest_unsent(step: Step) -> None:
    check(step, Action(reply="421 4.3.2 Closing"), Verdict.DEFERRED, goes_on=False)
    check(step, Action(reply="421 4.3.2 Closing", then=Then.DROP), Verdict.DEFERRED, goes_on=False)


BREAKS = [
    Action(then=Then.DROP),
    Action(reply=b"2", then=Then.DROP),
    Action(reply=b"250-OK\r\n25", then=Then.DROP),
    Action(reply="250-OK\r\n251 OK"),
    Action(reply="150 Perhaps"),
    Action(reply="600 More than that"),
    Action(reply=b"\0\xff\xfe\r\n"),
    Action(reply=b"\r\n"),
    Action(reply="250 " + "x" * 9_000),
    Action(reply=b"250-and so on\r\n" * 3_000),
]


@pytest.mark.parametrize("step", OPENING)
@pytest.mark.parametrize("action", BREAKS)
def test_what_breaks_before_its_dot_was_certainly_not_sent(step: Step, action: Action) -> None:
    check(step, action, Verdict.UNSENT, goes_on=False)


@pytest.mark.parametrize("action", BREAKS)
def test_what_breaks_at_its_dot_is_one_doubt_and_not_more(action: Action) -> None:
    check(Step.DOT, action, Verdict.UNCERTAIN, goes_on=False)


@pytest.mark.parametrize("step", OPENING)
@pytest.mark.parametrize("reply", ["500 What?", "502 Not here", "503 Not now"])
def test_a_relay_that_does_not_follow_says_nothing_about_the_message(step: Step, reply: str) -> None:
    check(step, Action(reply=reply), Verdict.UNSENT, goes_on=False)


@pytest.mark.parametrize("reply", ["500 What?", "502 Not here", "503 Not now"])
def test_a_relay_that_does_not_follow_at_the_dot_has_refused_it(reply: str) -> None:
    check(Step.DOT, Action(reply=reply), Verdict.REJECTED, goes_on=False)


@pytest.mark.parametrize(
    ("step", "reply"), [(Step.MAIL, "354 Go on"), (Step.RCPT, "354 Go on"), (Step.DATA, "250 OK")]
)
def test_a_reply_of_another_step_is_no_permission_to_go_on(step: Step, reply: str) -> None:
    check(step, Action(reply=reply), Verdict.UNSENT, goes_on=False)


@pytest.mark.parametrize(
    ("step", "replies", "verdict"),
    [
        (Step.MAIL, "250 OK\r\n250 OK", Verdict.UNSENT),
        (Step.RCPT, "250 OK\r\n250 OK", Verdict.UNSENT),
        (Step.DATA, "354 Go on\r\n250 Kept", Verdict.UNSENT),
        (Step.DATA, b"354 Go on\r\n250-Ke", Verdict.UNSENT),
        (Step.MAIL, "550 No\r\n250 OK", Verdict.REJECTED),
        (Step.RCPT, "550 No\r\n250 OK", Verdict.REJECTED),
        (Step.DATA, "550 No\r\n354 Go on", Verdict.REJECTED),
        (Step.DOT, "451 Later\r\n250 Kept", Verdict.DEFERRED),
    ],
)
def test_a_reply_that_nobody_asked_for_ends_the_session(
    step: Step, replies: str | bytes, verdict: Verdict
) -> None:
    recording, usable, accepted = asyncio.run(send_all(At({step: Action(reply=replies)})))
    assert recording.verdicts == expected(verdict, goes_on=False)
    assert (usable, accepted) == (False, VICTIM)


@pytest.mark.parametrize("step", OPENING)
@pytest.mark.parametrize("action", [Action(then=Then.HANG), Action(), Action(reply=b"250-and ")])
def test_a_relay_that_never_answers_an_opening_leaves_no_doubt(step: Step, action: Action) -> None:
    """`Action()` swallows the reply to the victim's command and answers those behind it."""
    recording, usable, accepted = asyncio.run(send_all(At({step: action}), timeouts=HASTY))
    assert recording.verdicts == expected(Verdict.UNSENT, goes_on=False)
    assert (usable, accepted) == (False, VICTIM)


def test_a_whole_group_that_is_never_answered_leaves_no_doubt_about_the_dot_before() -> None:
    recording, _, accepted = asyncio.run(send_all(At({Step.MAIL: Action(then=Then.HANG)}), timeouts=HASTY))
    assert recording.verdicts == expected(Verdict.UNSENT, goes_on=False)
    assert (recording.results[VICTIM].detail, accepted) == ("no answer in time", VICTIM)


@pytest.mark.parametrize("accept", [True, False])
@pytest.mark.parametrize("reply", [None, b"2", b"250-Kept\r\n"])
def test_a_dot_that_is_never_answered_is_one_doubt(accept: bool, reply: bytes | None) -> None:
    action = Action(reply=reply, accept=accept, then=Then.HANG)
    recording, usable, accepted = asyncio.run(send_all(At({Step.DOT: action}), timeouts=HASTY))
    assert recording.verdicts == expected(Verdict.UNCERTAIN, goes_on=False)
    assert (recording.results[VICTIM].detail, usable) == ("no answer in time", False)
    assert accepted == VICTIM + accept


@pytest.mark.parametrize("accept", [True, False])
def test_an_answer_to_mail_is_not_taken_for_that_of_the_dot_before(accept: bool) -> None:
    recording, usable, accepted = asyncio.run(send_all(At({Step.DOT: Action(accept=accept)})))
    assert recording.verdicts == expected(Verdict.UNCERTAIN, goes_on=False)
    assert (usable, accepted) == (False, VICTIM + accept)


def test_a_relay_that_answers_every_dot_as_if_it_were_an_address_is_believed() -> None:
    def script(moment: Moment) -> Action | None:
        return Action(reply="250 2.1.5 Kept", accept=True) if moment.step is Step.DOT else None

    recording, usable, _ = asyncio.run(send_all(script))
    assert (recording.verdicts, usable) == ([Verdict.ACCEPTED] * COUNT, True)


def test_what_was_accepted_before_the_end_is_accepted() -> None:
    action = Action(reply="250 Kept", accept=True, then=Then.DROP)
    check(Step.DOT, action, Verdict.ACCEPTED, goes_on=False)


def test_a_refused_transaction_is_reset_at_the_head_of_the_next_group() -> None:
    script = At({Step.RCPT: Action(reply="550 5.1.1 Never")})
    recording, usable, accepted = asyncio.run(send_all(script))
    assert recording.verdicts == expected(Verdict.REJECTED, goes_on=True)
    assert (usable, accepted) == (True, COUNT - 1)
    opening = [[f"MAIL FROM:<{each.sender}>", f"RCPT TO:<{each.recipient}>", "DATA"] for each in MESSAGES]
    assert script.lines == [
        *[*opening[0], ".", *opening[1], ".", *opening[2]],
        *["RSET", *opening[3], ".", *opening[4], "."],
    ]


@pytest.mark.parametrize("index", range(COUNT))
@pytest.mark.parametrize("step", OPENING)
def test_a_refusal_anywhere_costs_nobody_else_the_mail(index: int, step: Step) -> None:
    recording, usable, accepted = asyncio.run(
        send_all(At({step: Action(reply="550 5.1.1 Never")}, index=index))
    )
    assert [verdict is Verdict.REJECTED for verdict in recording.verdicts] == [
        n == index for n in range(COUNT)
    ]
    assert (usable, accepted) == (True, COUNT - 1)


@pytest.mark.parametrize(
    ("reply", "goes_on"),
    [
        (Action(reply="250 Empty, but why not"), True),
        (Action(reply="554 5.5.1 No valid recipients"), True),
        (Action(reply="421 4.3.2 Closing"), False),
        (Action(then=Then.DROP), False),
        (Action(reply="Hm"), False),
        (Action(reply="354 Go on"), True),
    ],
)
def test_data_that_is_granted_without_a_recipient_is_ended_by_a_lone_dot(
    reply: Action, goes_on: bool
) -> None:
    script = At(
        {
            Step.RCPT: Action(reply="550 5.1.1 Never"),
            Step.DATA: Action(reply="354 Go on"),
            Step.DOT: reply,
        }
    )
    recording, usable, accepted = asyncio.run(send_all(script))
    assert recording.verdicts == expected(Verdict.REJECTED, goes_on=goes_on)
    refused = recording.results[VICTIM]
    assert (refused.phase, str(refused.reply)) == (Phase.RCPT, "550 5.1.1 Never")
    assert VICTIM not in recording.asked
    assert (usable, accepted) == (goes_on, recording.verdicts.count(Verdict.ACCEPTED))


@pytest.mark.parametrize(
    "more",
    [
        {Step.DATA: Action(reply="421 4.3.2 Closing")},
        {Step.DATA: Action(reply="250 OK")},
        {Step.DATA: Action(then=Then.DROP)},
        {Step.RESET: Action(reply="250 OK")},  # nothing wrong with this one
    ],
)
def test_a_refusal_stands_whatever_comes_behind_it(more: dict[Step, Action]) -> None:
    script = At({Step.RCPT: Action(reply="450 4.2.1 Full"), **more})
    recording, usable, _ = asyncio.run(send_all(script))
    assert recording.verdicts == expected(Verdict.DEFERRED, goes_on=Step.RESET in more)
    assert (recording.results[VICTIM].phase, usable) == (Phase.RCPT, Step.RESET in more)


@pytest.mark.parametrize(
    "answer", [Action(reply="421 4.3.2 Closing"), Action(reply="500 What?"), Action(then=Then.DROP)]
)
def test_without_a_reset_nothing_follows_a_refusal(answer: Action) -> None:
    script = At({Step.RCPT: Action(reply="550 5.1.1 Never"), Step.RESET: answer})
    recording, usable, accepted = asyncio.run(send_all(script))
    assert recording.verdicts == expected(Verdict.REJECTED, goes_on=False)
    assert (usable, accepted) == (False, VICTIM)


def test_the_next_call_resets_what_the_last_one_left() -> None:
    async def main() -> None:
        script = At({Step.RCPT: Action(reply="550 5.1.1 Never")}, index=1)
        async with sink_and_session(kind=Kind.FIRST, script=script) as (sink, session):
            for messages in (MESSAGES[:2], MESSAGES[2:4], MESSAGES[4:]):
                await session.send_all(messages, watcher=Recording())
            assert (session.usable, sink.accepted) == (True, 4)
            assert script.lines.count("RSET") == 1

    asyncio.run(main())


def test_one_dot_is_open_at_most() -> None:
    """The relay answers each dot only when it is told to; until then no other message comes."""

    async def main() -> None:
        reached, answer = [asyncio.Event() for _ in MESSAGES], [asyncio.Event() for _ in MESSAGES]
        numbers = itertools.count()

        def script(moment: Moment) -> Action | None:
            if moment.step is not Step.DOT:
                return None
            number = next(numbers)
            reached[number].set()
            return Action(reply="250 Kept", accept=True, after=answer[number])

        async with sink_and_session(kind=Kind.FIRST, script=script) as (_, session):
            recording = Recording()
            sending = asyncio.create_task(session.send_all(MESSAGES, watcher=recording))
            for index in range(COUNT):
                await reached[index].wait()
                assert recording.asked == list(range(index + 1))
                assert len(recording.results) == index
                answer[index].set()
            await sending
            assert recording.verdicts == [Verdict.ACCEPTED] * COUNT

    asyncio.run(main())


def test_a_slow_relay_is_waited_for() -> None:
    async def main() -> None:
        reached, go_on = asyncio.Event(), asyncio.Event()

        def script(moment: Moment) -> Action | None:
            if (moment.step, moment.message) != (Step.RCPT, 3):
                return None
            reached.set()
            return Action(reply="250 At last", after=go_on)

        async with sink_and_session(kind=Kind.FIRST, script=script) as (_, session):
            recording = Recording()
            sending = asyncio.create_task(session.send_all(MESSAGES, watcher=recording))
            await reached.wait()
            assert not session.usable
            go_on.set()
            await sending
            assert recording.verdicts == [Verdict.ACCEPTED] * COUNT

    asyncio.run(main())


def test_a_cancelled_sending_tells_what_it_knows_and_drops_the_connection() -> None:
    async def main() -> None:
        reached = asyncio.Event()

        def script(moment: Moment) -> Action | None:
            if (moment.step, moment.message) != (Step.DOT, 3):
                return None
            reached.set()
            return Action(then=Then.HANG)

        async with sink_and_session(kind=Kind.FIRST, script=script) as (_, session):
            recording = Recording()
            sending = asyncio.create_task(session.send_all(MESSAGES, watcher=recording))
            await reached.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert recording.verdicts == [Verdict.ACCEPTED] * 2
            assert (recording.asked, session.usable) == ([0, 1, 2], False)

    asyncio.run(main())


Serving = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def session_with(serve: Serving) -> AsyncIterator[Session]:
    """A pipelined session with a relay that is written by hand; it begins after EHLO."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 relay.example\r\n")
        await reader.readline()
        writer.write(b"250-relay.example\r\n250 PIPELINING\r\n")
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    session = await open_kind(Kind.GROUPED, local_relay(server.sockets[0].getsockname()[1]), timeouts=PATIENT)
    try:
        yield session
    finally:
        session.abort()
        server.close()


async def take_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for reply in (b"250 OK\r\n", b"250 OK\r\n", b"354 Go on\r\n"):
        await reader.readline()
        writer.write(reply)
    await reader.readuntil(b"\r\n.\r\n")
    writer.write(b"250 Kept\r\n")


def test_the_next_message_is_opened_before_the_dot_is_answered() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take_first(reader, writer)
        await reader.readuntil(b"DATA\r\n")
        for _ in range(2):
            writer.write(b"250 OK\r\n250 OK\r\n354 Go on\r\n")
            await reader.readuntil(b"\r\n.\r\n")
            assert (await reader.readline()).startswith(b"MAIL FROM:")  # the dot has no answer yet
            await reader.readuntil(b"DATA\r\n")
            writer.write(b"250 Kept\r\n")
        writer.write(b"250 OK\r\n250 OK\r\n354 Go on\r\n")
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(b"250 Kept\r\n")
        await reader.read()

    async def main() -> None:
        async with session_with(serve) as session:
            recording = Recording()
            await session.send_all(MESSAGES[:4], watcher=recording)
            assert recording.verdicts == [Verdict.ACCEPTED] * 4

    asyncio.run(main())


def test_the_first_message_goes_step_by_step_and_alone() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in (b"250 OK\r\n", b"250 OK\r\n", b"354 Go on\r\n"):
            assert (await reader.read(4096)).count(b"\r\n") == 1
            writer.write(reply)
        assert (await reader.read(4096)).endswith(b"\r\n.\r\n")
        writer.write(b"250 Kept\r\n")
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"250 OK\r\n250 OK\r\n354 Go on\r\n")
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(b"250 Kept\r\n")
        await reader.read()

    async def main() -> None:
        async with session_with(serve) as session:
            recording = Recording()
            await session.send_all(MESSAGES[:2], watcher=recording)
            assert recording.verdicts == [Verdict.ACCEPTED] * 2

    asyncio.run(main())


def test_to_a_relay_that_hung_up_the_dot_is_not_written_in_the_background() -> None:
    async def main() -> None:
        everything = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_first(reader, writer)
            await reader.readuntil(b"DATA\r\n")
            writer.write(b"250 OK\r\n250 OK\r\n354 Go on\r\n")
            writer.write_eof()
            everything.set_result(await reader.read())

        async with session_with(serve) as session:
            recording = Recording()
            large = message(content=(b"y" * 998 + b"\r\n") * 32_000)
            await session.send_all([message(), large], watcher=recording)
            assert recording.verdicts[1] in (Verdict.UNCERTAIN, Verdict.UNSENT)
            assert not (await everything).endswith(b"\r\n.\r\n")

    asyncio.run(main())


def test_a_relay_that_answers_what_it_has_not_read_is_left() -> None:
    async def main() -> None:
        over = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_first(reader, writer)
            await reader.readuntil(b"DATA\r\n")
            writer.write(b"250 OK\r\n250 OK\r\n354 Go on\r\n")
            await reader.read(1)
            writer.write(b"552 5.3.4 Too large\r\n250 OK\r\n250 OK\r\n354 Go on\r\n")
            await over.wait()

        async with session_with(serve) as session:
            recording = Recording()
            large = message(content=(b"y" * 998 + b"\r\n") * 32_000)
            await session.send_all([message(), large, message()], watcher=recording)
            assert recording.verdicts == [Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNSENT]
            assert recording.results[2].detail == "the relay answers what it has not read"
            over.set()

    asyncio.run(main())


@pytest.mark.parametrize("said", [b"421 4.4.2 You are too slow\r\n", b"4", b""])
def test_an_idle_session_notices_that_the_relay_left(said: bytes) -> None:
    async def main() -> None:
        leave = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_first(reader, writer)
            await leave.wait()
            writer.write(said)
            if not said:
                writer.write_eof()
            assert await reader.read() == b""  # hung up, without another word
            left.set()

        left = asyncio.Event()
        async with session_with(serve) as session:
            await session.send_all(MESSAGES[:1], watcher=Recording())
            assert session.usable
            leave.set()
            await left.wait()
            assert not session.usable
            recording = Recording()
            await session.send_all(MESSAGES[1:], watcher=recording)
            assert (recording.verdicts, recording.asked) == ([Verdict.UNSENT] * 4, [])

    asyncio.run(main())
