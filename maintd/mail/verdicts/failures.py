"""Why a message was not taken: what a relay's refusal means, and whom it is about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

from maintd.smtp.reply import Reply
from maintd.smtp.session import Phase


class Failure(StrEnum):
    """What kind of failure it was. It decides when the message is tried again, and how often."""

    CONNECT = "connect"  #: connection after connection was lost before the message was handed over
    GREYLIST = "greylist"  #: a stranger is to come again in some minutes (RFC 6647)
    THROTTLE = "throttle"  #: it was too much in too short a time; of the message itself nothing was said
    POLICY = "policy"  #: who sends, or what is sent, is not wanted
    MAILBOX = "mailbox"  #: the recipient's mailbox: there is none, it is full, it may not be written to
    AUTH = "auth"  #: we did not log in, or were not believed, or not without TLS
    TEMPLATE = "template"  #: the message cannot be made
    TEMPORARY = "temporary"  #: refused for now, for any other reason
    PERMANENT = "permanent"  #: refused for good, for any other reason


class About(StrEnum):
    """Of whom a refusal speaks, and so who would be refused next."""

    SENDER = "sender"  #: it fell before there was a recipient: every message would fare alike
    MESSAGE = "message"  #: what is sent; the messages of a campaign are much the same
    RECIPIENT = "recipient"  #: nobody else


def about(failure: str, phase: str | None) -> About:
    """Of whom a refusal for good speaks, by its type and the step at which it fell."""
    if failure == Failure.AUTH or (failure == Failure.POLICY and phase in _BEFORE_RECIPIENT):
        return About.SENDER
    if failure in (Failure.POLICY, Failure.TEMPLATE):
        return About.MESSAGE
    if failure == Failure.PERMANENT and phase != Phase.RCPT:
        return About.MESSAGE
    return About.RECIPIENT


_BEFORE_RECIPIENT = (Phase.CONNECT, Phase.TLS, Phase.AUTH, Phase.MAIL)
_OPENING = (Phase.TLS, Phase.AUTH)
_FROM_RCPT = (Phase.RCPT, Phase.DATA, Phase.DOT)


def failure_of(phase: Phase, reply: Reply, *, first: bool) -> Failure | None:
    """What type of failure a reply is.

    Decided by the step and the two codes, as far as they are clear (RFC 5321 §4.2, RFC 3463 with the registry of
    RFC 5248); then by words, which no standard fixes; then by what the code most often means at that step.

    Args:
        phase: What the relay answered to.
        reply: Its answer.
        first: The message was never refused before: greylisting refuses those that come for the first time.

    Returns:
        None of a reply that refuses nothing.
    """
    if not reply.refused:
        return None
    if phase in _OPENING or reply.code in _LOGIN_CODES:
        return Failure.AUTH
    if reply.code == 421:  # RFC 5321 §3.8: it closes the connection; no word on the message
        return Failure.THROTTLE
    return _by_enhanced(phase, reply) or (
        _temporary(phase, reply, first=first) if reply.transient else _permanent(phase, reply)
    )


#: RFC 4954 §6: authentication required, credentials invalid, mechanism too weak, encryption required for it.
_LOGIN_CODES = frozenset({530, 534, 535, 538})

#: Subject and detail of enhanced status codes whose meaning is clear by themselves, whatever their class.
_MEANINGS: Mapping[str, Failure] = {
    "1.7": Failure.POLICY,  # the sender's mailbox, RFC 3463 §3.2
    "1.8": Failure.POLICY,  # the sender's system
    # Who we are, and whether we said so safely: RFC 4954 §6, RFC 5248 §3.
    **dict.fromkeys((f"7.{detail}" for detail in range(8, 15)), Failure.AUTH),
    "7.17": Failure.MAILBOX,  # it has another owner, RFC 7293
    "7.18": Failure.MAILBOX,  # its domain has
    # DKIM, SPF, reverse DNS (RFC 7372), a sender without MX (RFC 7505), ARC (RFC 8617).
    **dict.fromkeys((f"7.{detail}" for detail in (*range(20, 28), 29)), Failure.POLICY),
}
#: Those that mean something else when they are temporary.
_TEMPORARY_MEANINGS: Mapping[str, Failure] = {
    "4.5": Failure.THROTTLE,  # congestion, RFC 3463 §3.5
    "5.3": Failure.THROTTLE,  # too many recipients, RFC 3463 §3.6
    "7.28": Failure.THROTTLE,  # mail flood
}


def _by_enhanced(phase: Phase, reply: Reply) -> Failure | None:
    if reply.enhanced is None:
        return None
    meaning = reply.enhanced[2:]
    subject, _, detail = meaning.partition(".")
    if reply.transient and meaning in _TEMPORARY_MEANINGS:
        return _TEMPORARY_MEANINGS[meaning]
    if meaning in _MEANINGS:
        return _MEANINGS[meaning]
    if subject in ("1", "2") and detail != "0" and phase in _FROM_RCPT:
        return Failure.MAILBOX
    # 5.7.0 to 5.7.2 say no more than that it is not allowed, be it to this recipient or to this sender.
    if subject == "7" and reply.permanent and not (phase is Phase.RCPT and detail in ("0", "1", "2")):
        return Failure.POLICY
    return None


def _temporary(phase: Phase, reply: Reply, *, first: bool) -> Failure:
    said = _by_words(phase, reply, _TEMPORARY_WORDS)
    if said is not None:
        return said
    if first and phase in _FROM_RCPT and reply.code in (450, 451) and reply.enhanced == "4.7.1":
        return Failure.GREYLIST
    return Failure.THROTTLE if reply.code == 454 else Failure.TEMPORARY


def _permanent(phase: Phase, reply: Reply) -> Failure:
    usually = _USUALLY.get(phase, {}).get(reply.code, Failure.PERMANENT)
    return _by_words(phase, reply, _PERMANENT_WORDS) or usually


def _by_words(phase: Phase, reply: Reply, words: Mapping[Failure, re.Pattern[str]]) -> Failure | None:
    """The first type whose words are there; nothing is said of a recipient before one was named."""
    for failure, pattern in words.items():
        if pattern.search(reply.text) and (phase in _FROM_RCPT or failure not in _OF_RECIPIENT):
            return failure
    return None


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_FULL = r"quota|mailbox (is )?full|mailbox size limit"
_TEMPORARY_WORDS: Mapping[Failure, re.Pattern[str]] = {
    Failure.GREYLIST: _words(r"gr[ae]y-? ?list"),
    Failure.MAILBOX: _words(_FULL),
    Failure.THROTTLE: _words(
        r"throttl",
        r"\brates?\b",
        r"too (many|much|fast|quickly|often)",
        r"slow(ing)? down",
        r"limit (was |is |has been )?(exceeded|reached)",
        r"exceed\w* .{0,40}\blimit",
    ),
}
_PERMANENT_WORDS: Mapping[Failure, re.Pattern[str]] = {
    Failure.POLICY: _words(
        r"\brelay(ing)?\b.{0,20}(denied|prohibited|not (allowed|permitted))",
        r"(unable|not (allowed|permitted)) to relay",
        r"client host|your (ip|host|server|network)\b",
        r"black ?list|block ?list|spamhaus|reputation",
        r"sender (address|domain|verif)",
        r"\b(spf|dkim|dmarc)\b",
        r"\b(spam|virus|malware|phishing|unsolicited)\b",
    ),
    Failure.MAILBOX: _words(
        _FULL,
        r"(unknown|no such|invalid) (user|recipient|mailbox|person|account)",
        r"(user|recipient|mailbox|account) (is |was )?(unknown|not found|unavailable|disabled|inactive)",
        r"(user|recipient|mailbox|account|address) does(n.t| not) exist",
    ),
}
_OF_RECIPIENT = frozenset({Failure.GREYLIST, Failure.MAILBOX})

#: RFC 5321 §4.2.2 and RFC 7504: what a code means at a step when nothing else tells. 550 is "mailbox unavailable" where
#: a mailbox was named and a word on the sender where not; of a whole message 550 and 554 mean what is in it.
_USUALLY: Mapping[Phase, Mapping[int, Failure]] = {
    Phase.CONNECT: dict.fromkeys((521, 550, 554), Failure.POLICY),
    Phase.MAIL: dict.fromkeys((550, 551, 553, 554), Failure.POLICY),
    Phase.RCPT: dict.fromkeys((521, 550, 551, 552, 553, 554, 556), Failure.MAILBOX),
    Phase.DATA: dict.fromkeys((550, 554), Failure.POLICY),
    Phase.DOT: dict.fromkeys((550, 554), Failure.POLICY),
}
