from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maintd.clock import SystemClock
from maintd.smtp.faults import Action, Step, Then
from maintd.smtp.mailbox import read_index
from maintd.smtp.plain import open_session
from maintd.smtp.session import Phase, Result, Session, Timeouts, Verdict
from maintd.smtp.sink import Sink
from tests.smtp.relaying import (
    CONTENT,
    PATIENT,
    Always,
    Hanging,
    Once,
    Watching,
    always,
    local_relay,
    message,
    sink_and_session,
)

STEPS = [(Step.MAIL, Phase.MAIL), (Step.RCPT, Phase.RCPT), (Step.DATA, Phase.DATA)]
ALL_STEPS = [*STEPS, (Step.DOT, Phase.DOT)]
HASTY_AT_DOT = Timeouts(connect_s=30, command_s=30, dot_s=0.2)
HASTY = Timeouts(connect_s=30, command_s=0.5, dot_s=30)


async def send_one(script: object, *, timeouts: Timeouts = PATIENT) -> tuple[Result, bool, int]:
    """One message to a sink that behaves so: the result, whether the session is usable, how many were accepted."""
    async with sink_and_session(script=script, timeouts=timeouts) as (sink, session):  # type: ignore[arg-type]
        result = await session.send(message(), may_send=always)
        return result, session.usable, sink.accepted


def test_an_accepted_message_arrives_as_it_was_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with sink_and_session(tmp_path) as (_, session):
            held: Session = session
            result = await held.send(message(), may_send=always)
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
    step: Step, phase: Phase, reply: str, verdict: Verdict
) -> None:
    async def main() -> None:
        async with sink_and_session(script=Once(step, Action(reply=reply))) as (sink, session):
            refused = await session.send(message(), may_send=always)
            assert (refused.verdict, refused.phase, str(refused.reply)) == (verdict, phase, reply)
            assert sink.accepted == 0
            assert session.usable
            following = await session.send(message("c@example.com"), may_send=always)
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
def test_what_breaks_before_the_dot_was_certainly_not_sent(step: Step, phase: Phase, action: Action) -> None:
    result, usable, accepted = asyncio.run(send_one(Once(step, action)))
    assert (result.verdict, result.phase, usable, accepted) == (Verdict.UNSENT, phase, False, 0)
    assert result.detail


@pytest.mark.parametrize(
    ("step", "reply"), [(Step.MAIL, "354 Go on"), (Step.RCPT, "354 Go on"), (Step.DATA, "250 OK")]
)
def test_a_reply_of_another_step_is_no_permission_to_go_on(step: Step, reply: str) -> None:
    result, usable, accepted = asyncio.run(send_one(Once(step, Action(reply=reply))))
    assert (result.verdict, usable, accepted) == (Verdict.UNSENT, False, 0)


@pytest.mark.parametrize(
    ("step", "replies"),
    [(Step.MAIL, "250 OK\r\n250 OK"), (Step.RCPT, "250 OK\r\n250 OK"), (Step.DATA, "354 Go on\r\n250 Kept")],
)
def test_a_reply_that_nobody_asked_for_is_never_taken_for_the_next_one(step: Step, replies: str) -> None:
    result, usable, accepted = asyncio.run(send_one(Once(step, Action(reply=replies))))
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
def test_without_a_reply_to_the_dot_nobody_knows(action: Action, accept: bool) -> None:
    action = Action(reply=action.reply, then=action.then, accept=accept)
    result, usable, accepted = asyncio.run(send_one(Once(Step.DOT, action)))
    assert (result.verdict, result.phase, usable) == (Verdict.UNCERTAIN, Phase.DOT, False)
    assert accepted == int(accept)


@pytest.mark.parametrize("accept", [True, False])
def test_a_relay_that_hangs_after_the_dot_leaves_a_doubt(accept: bool) -> None:
    script = Once(Step.DOT, Action(then=Then.HANG, accept=accept))
    result, usable, accepted = asyncio.run(send_one(script, timeouts=HASTY_AT_DOT))
    assert (result.verdict, usable, accepted) == (Verdict.UNCERTAIN, False, int(accept))
    assert result.detail == "no answer in time"


def test_a_relay_that_hangs_before_the_dot_leaves_none() -> None:
    script = Once(Step.MAIL, Action(then=Then.HANG))
    result, usable, accepted = asyncio.run(send_one(script, timeouts=HASTY))
    assert (result.verdict, result.phase, usable, accepted) == (Verdict.UNSENT, Phase.MAIL, False, 0)


@pytest.mark.parametrize(("step", "phase"), ALL_STEPS)
def test_421_defers_the_message_and_ends_the_session(step: Step, phase: Phase) -> None:
    result, usable, _ = asyncio.run(send_one(Once(step, Action(reply="421 4.3.2 Closing"))))
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
def test_a_definite_refusal_stands_when_the_reset_after_it_fails(after: Action) -> None:
    script = Always({Step.MAIL: Action(reply="550 5.7.1 Never"), Step.RESET: after})
    result, usable, _ = asyncio.run(send_one(script, timeouts=HASTY))
    assert (result.verdict, result.phase, usable) == (Verdict.REJECTED, Phase.MAIL, False)


@pytest.mark.parametrize("step", [Step.MAIL, Step.DOT])
def test_a_second_reply_to_a_refusal_ends_the_session_but_not_the_refusal(step: Step) -> None:
    result, usable, _ = asyncio.run(send_one(Once(step, Action(reply="550 No\r\n250 OK"))))
    assert (result.verdict, usable) == (Verdict.REJECTED, False)


def test_a_second_reply_to_the_dot_ends_the_session_but_not_the_acceptance() -> None:
    script = Once(Step.DOT, Action(reply="250 Kept\r\n250 Kept", accept=True))
    result, usable, _ = asyncio.run(send_one(script))
    assert (result.verdict, usable) == (Verdict.ACCEPTED, False)


def test_what_may_not_be_sent_any_more_is_not_sent() -> None:
    async def main() -> None:
        watching = Watching()
        async with sink_and_session(script=watching) as (sink, session):
            asked_after: list[str] = []

            def withdrawn() -> bool:
                asked_after.append(watching.lines[-1])
                return False

            result = await session.send(message(), may_send=withdrawn)
            assert (result.verdict, result.phase) == (Verdict.UNSENT, Phase.DATA)
            assert asked_after == ["DATA"]
            assert (session.usable, sink.accepted) == (False, 0)

    asyncio.run(main())


def test_nothing_written_is_no_doubt() -> None:
    async def main() -> None:
        async with sink_and_session() as (_, session):

            def dropping() -> bool:
                session.abort()
                return True

            assert (await session.send(message(), may_send=dropping)).verdict is Verdict.UNSENT

    asyncio.run(main())


@pytest.mark.parametrize("step", [Step.MAIL, Step.RCPT, Step.DATA])
def test_permission_is_asked_only_when_nothing_but_the_message_is_missing(step: Step) -> None:
    def never() -> bool:
        raise AssertionError("asked too early")

    async def main() -> None:
        async with sink_and_session(script=Once(step, Action(reply="550 No"))) as (_, session):
            assert (await session.send(message(), may_send=never)).verdict is Verdict.REJECTED

    asyncio.run(main())


def test_a_cancelled_sending_drops_the_connection() -> None:
    async def main() -> None:
        hanging = Hanging(Step.DOT)
        async with sink_and_session(script=hanging) as (_, session):
            sending = asyncio.create_task(session.send(message(), may_send=always))
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
        message(content=b"a\r\n.\nMAIL FROM:<x@y.z>\r\n"),
    ],
)
def test_what_could_inject_commands_is_refused_before_anything_is_written(outgoing: object) -> None:
    async def main() -> None:
        watching = Watching()
        async with sink_and_session(script=watching) as (_, session):
            result = await session.send(outgoing, may_send=always)  # type: ignore[arg-type]
            assert (result.verdict, result.phase, result.reply) == (Verdict.REJECTED, Phase.MAIL, None)
            assert result.detail
            assert session.usable
            assert watching.lines[-1].startswith("EHLO")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("outgoing", "missing"),
    [
        (message(content="ü\r\n".encode()), "8BITMIME"),
        (message("j@exämple.com", smtputf8=True), "SMTPUTF8"),
    ],
)
def test_what_the_relay_cannot_carry_is_rejected_without_asking_it(outgoing: object, missing: str) -> None:
    async def main() -> None:
        script = Once(Step.HELLO, Action(reply="250-old.example\r\n250 HELP"))
        async with sink_and_session(script=script) as (sink, session):
            result = await session.send(outgoing, may_send=always)  # type: ignore[arg-type]
            assert (result.verdict, result.phase) == (Verdict.REJECTED, Phase.MAIL)
            assert missing in result.detail
            assert (session.usable, sink.transactions) == (True, 0)

    asyncio.run(main())


def test_a_foreign_message_is_announced_to_the_relay(tmp_path: Path) -> None:
    async def main() -> None:
        watching = Watching()
        async with sink_and_session(tmp_path, script=watching) as (_, session):
            foreign = message("jürgen@exämple.com", content="\r\nü\r\n".encode(), smtputf8=True)
            assert (await session.send(foreign, may_send=always)).verdict is Verdict.ACCEPTED
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
def test_every_message_arrives_octet_for_octet(content: bytes) -> None:
    async def main() -> None:
        async with sink_and_session(sink_type=Keeping) as (sink, session):
            result = await session.send(message(content=content), may_send=always)
            assert result.verdict is Verdict.ACCEPTED
            assert isinstance(sink, Keeping)
            assert sink.kept == content

    asyncio.run(main())


def test_a_dot_that_was_given_up_is_never_written_later() -> None:
    """The relay stops reading; the session gives up; then the relay reads on and must not find the dot."""

    async def main() -> None:
        given_up, everything = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def slow_relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 slow\r\n")
            for reply in (b"250 slow", b"250 OK", b"250 OK", b"354 Go on"):
                await reader.readline()
                writer.write(reply + b"\r\n")
            await given_up.wait()
            everything.set_result(await reader.read())
            writer.close()

        server = await asyncio.start_server(slow_relay, "127.0.0.1", 0)
        relay = local_relay(server.sockets[0].getsockname()[1])
        session = await open_session(relay, timeouts=HASTY_AT_DOT, hello="client.example")
        large = message(content=(b"y" * 998 + b"\r\n") * 32_000)
        result = await session.send(large, may_send=always)
        assert result.verdict is Verdict.UNCERTAIN
        given_up.set()
        assert not (await everything).endswith(b"\r\n.\r\n")
        server.close()

    asyncio.run(main())


def test_a_session_that_ended_sends_nothing() -> None:
    async def main() -> None:
        watching = Watching()
        async with sink_and_session(script=watching) as (sink, session):
            await session.close()
            assert watching.lines[-1] == "QUIT"
            assert not session.usable
            assert (await session.send(message(), may_send=always)).verdict is Verdict.UNSENT
            assert sink.transactions == 0
            await session.close()

    asyncio.run(main())


def test_a_busy_session_takes_no_second_message_and_no_goodbye() -> None:
    async def main() -> None:
        hanging = Hanging(Step.MAIL)
        async with sink_and_session(script=hanging) as (_, session):
            sending = asyncio.create_task(session.send(message(), may_send=always))
            await hanging.reached.wait()
            assert not session.usable
            assert (await session.send(message(), may_send=always)).verdict is Verdict.UNSENT
            await session.close()
            assert (await sending).verdict is Verdict.UNSENT

    asyncio.run(main())


def test_a_relay_that_left_in_the_meantime_is_noticed() -> None:
    async def main() -> None:
        async with sink_and_session() as (sink, session):
            await sink.close()
            result = await session.send(message(), may_send=always)
            assert (result.verdict, session.usable) == (Verdict.UNSENT, False)

    asyncio.run(main())


def test_many_connections_share_one_relay(tmp_path: Path) -> None:
    async def main() -> None:
        sink = Sink(tmp_path, clock=SystemClock())
        relay = local_relay(await sink.start())

        async def client(name: int) -> None:
            session = await open_session(relay, timeouts=PATIENT, hello="client.example")
            for number in range(3):
                result = await session.send(message(f"{name}.{number}@example.com"), may_send=always)
                assert result.verdict is Verdict.ACCEPTED
            await session.close()

        await asyncio.gather(*(client(name) for name in range(60)))
        await sink.wait_for(180)
        await sink.close()

    asyncio.run(main())
    index = list(read_index(tmp_path))
    assert [accepted.seq for accepted in index] == list(range(1, 181))
    assert len({accepted.recipients for accepted in index}) == 180
