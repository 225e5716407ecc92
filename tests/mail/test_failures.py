"""What a refusal means: examples as relays write them, and what holds whatever they write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.mail.verdicts.failures import About, Failure, about, failure_of
from maintd.smtp.reply import Reply
from maintd.smtp.session import Phase

CONNECT, TLS, AUTH, MAIL = Phase.CONNECT, Phase.TLS, Phase.AUTH, Phase.MAIL
RCPT, DATA, DOT = Phase.RCPT, Phase.DATA, Phase.DOT


def reply_of(line: str) -> Reply:
    code, _, text = line.partition(" ")
    return Reply.parse(int(code), text)


@pytest.mark.parametrize(
    ("phase", "line", "failure"),
    [
        (RCPT, "450 4.2.0 Recipient address rejected: Greylisted, see http://example.org", Failure.GREYLIST),
        (RCPT, "451 Graylisting in action, please come back later", Failure.GREYLIST),
        (RCPT, "450 4.7.1 Please try again later", Failure.GREYLIST),
        (RCPT, "451 4.7.1 Received too many messages from a new or untrusted IP", Failure.THROTTLE),
        (MAIL, "421 4.7.0 Try again later, closing connection", Failure.THROTTLE),
        (DOT, "421 4.7.28 unusual rate of unsolicited mail", Failure.THROTTLE),
        (MAIL, "454 Throttling failure: Maximum sending rate exceeded", Failure.THROTTLE),
        (MAIL, "452 4.3.2 Connection rate limit exceeded", Failure.THROTTLE),
        (RCPT, "452 4.5.3 Too many recipients", Failure.THROTTLE),
        (RCPT, "450 4.2.1 The user is receiving mail too quickly", Failure.MAILBOX),
        (RCPT, "452 4.2.2 Mailbox full", Failure.MAILBOX),
        (RCPT, "452 The user is over quota", Failure.MAILBOX),
        (RCPT, "550 5.1.1 No such user", Failure.MAILBOX),
        (DOT, "550 5.1.1 No such user", Failure.MAILBOX),
        (RCPT, "550 User unknown", Failure.MAILBOX),
        (DOT, "550 User unknown", Failure.MAILBOX),
        (RCPT, "550 5.7.1 Recipient address rejected: Access denied", Failure.MAILBOX),
        (RCPT, "556 5.1.10 Recipient has a null MX", Failure.MAILBOX),
        (RCPT, "554 5.7.1 Relay access denied", Failure.POLICY),
        (RCPT, "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked", Failure.POLICY),
        (RCPT, "550 relaying denied", Failure.POLICY),
        (MAIL, "550 5.1.8 Sender's domain does not exist", Failure.POLICY),
        (MAIL, "553 You may not send as that", Failure.POLICY),
        (DOT, "554 5.7.1 Message looks like spam", Failure.POLICY),
        (DOT, "550 5.7.26 Unauthenticated mail", Failure.POLICY),
        (DOT, "550 5.7.515 Access denied", Failure.POLICY),
        (DOT, "554 Transaction failed", Failure.POLICY),
        (CONNECT, "554 No SMTP service here", Failure.POLICY),
        (MAIL, "530 5.7.0 Authentication required", Failure.AUTH),
        (AUTH, "535 5.7.8 User or password is wrong", Failure.AUTH),
        (AUTH, "454 4.7.0 Temporary authentication failure", Failure.AUTH),
        (TLS, "454 4.7.0 TLS not available", Failure.AUTH),
        (DATA, "451 4.3.0 Later", Failure.TEMPORARY),
        (RCPT, "450 Busy", Failure.TEMPORARY),
        (MAIL, "452 4.3.1 Insufficient system storage", Failure.TEMPORARY),
        (DOT, "552 5.3.4 Message too big", Failure.PERMANENT),
        (MAIL, "555 Parameters not recognised", Failure.PERMANENT),
    ],
)
def test_a_refusal_is_read_as_it_is_meant(phase: Phase, line: str, failure: Failure) -> None:
    assert failure_of(phase, reply_of(line), first=True) is failure


def test_a_list_that_greets_everybody_alike_is_taken_for_one_at_the_first_try_only() -> None:
    reply = reply_of("450 4.7.1 Please try again later")
    assert failure_of(RCPT, reply, first=True) is Failure.GREYLIST
    assert failure_of(RCPT, reply, first=False) is Failure.TEMPORARY


@pytest.mark.parametrize(
    ("failure", "phase", "whom"),
    [
        (Failure.AUTH, MAIL, About.SENDER),
        (Failure.POLICY, MAIL, About.SENDER),
        (Failure.POLICY, RCPT, About.MESSAGE),
        (Failure.POLICY, DOT, About.MESSAGE),
        (Failure.TEMPLATE, None, About.MESSAGE),
        (Failure.PERMANENT, DOT, About.MESSAGE),
        (Failure.PERMANENT, RCPT, About.RECIPIENT),
        (Failure.MAILBOX, RCPT, About.RECIPIENT),
        (Failure.MAILBOX, DOT, About.RECIPIENT),
    ],
)
def test_a_refusal_is_about_the_sender_the_message_or_the_recipient(
    failure: Failure, phase: Phase | None, whom: About
) -> None:
    assert about(failure, phase) is whom


WORDS = (
    "greylisted",
    "rate",
    "too many",
    "mailbox full",
    "user unknown",
    "spam",
    "relaying denied",
    "quota",
    "",
)
enhanced = st.none() | st.builds("{}.{}".format, st.integers(0, 8), st.integers(0, 30) | st.integers(0, 999))


@st.composite
def replies(draw: st.DrawFn, *, classes: tuple[int, ...]) -> Reply:
    code = draw(st.sampled_from(classes)) * 100 + draw(st.integers(0, 99))
    status = draw(enhanced)
    text = draw(st.sampled_from(WORDS) | st.text(max_size=40))
    return Reply.parse(code, text if status is None else f"{code // 100}.{status} {text}")


phases = st.sampled_from(Phase)


@given(phases, replies(classes=(4, 5)), st.booleans())
def test_every_refusal_has_one_type_and_it_is_one_that_its_class_allows(
    phase: Phase, reply: Reply, first: bool
) -> None:
    failure = failure_of(phase, reply, first=first)
    both = {Failure.POLICY, Failure.MAILBOX, Failure.AUTH}
    # 421 says "for now" of a connection; there is no 5yz that does.
    assert failure in both | (
        {Failure.GREYLIST, Failure.THROTTLE, Failure.TEMPORARY} if reply.transient else {Failure.PERMANENT}
    )


@given(phases, replies(classes=(2, 3)), st.booleans())
def test_what_refuses_nothing_is_no_failure(phase: Phase, reply: Reply, first: bool) -> None:
    assert failure_of(phase, reply, first=first) is None


@given(st.sampled_from([CONNECT, MAIL]), replies(classes=(4, 5)), st.booleans())
def test_nothing_is_said_of_a_recipient_before_one_was_named(phase: Phase, reply: Reply, first: bool) -> None:
    failure = failure_of(phase, reply, first=first)
    owners = reply.enhanced is not None and reply.enhanced[2:] in ("7.17", "7.18")
    assert owners or failure not in (Failure.GREYLIST, Failure.MAILBOX)


@given(phases, replies(classes=(4, 5)), st.text(max_size=30), st.booleans())
def test_words_never_outweigh_a_code_that_is_clear(
    phase: Phase, reply: Reply, words: str, first: bool
) -> None:
    clear = reply.enhanced is not None and reply.enhanced[2:] in ("1.7", "1.8", "7.8", "7.26", "7.17")
    if clear:
        other = Reply(code=reply.code, enhanced=reply.enhanced, text=words)
        assert failure_of(phase, reply, first=first) is failure_of(phase, other, first=first)
