"""What must hold after any performance, whatever befell it: the relay's account against the ledger's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from maintd.execution.worker import DEPTH
from maintd.ledger.deliveries import Delivery
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from tests.chaos.faults import Cause, Fate
from tests.chaos.performance import Evidence
from tests.chaos.scenario import Fault, Policy, Troupe
from tests.chaos.weather import RelayFault

_VANISHED = re.compile(r"its sender \(\S+:(\d+)\) vanished")
_FIRST = 5


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a performance came to.

    Attributes:
        enrolled: Deliveries.
        messages: That the relay accepted.
        duplicates: Messages beyond the first to the same person.
        missing: People without a message whom the ledger does not name either.
        uncertain: Doubts that are left.
        lapsed: Processes that were judged dead although nothing had befallen them: the machine was too busy.
        problems: Everything that must not be; empty if all is well.
    """

    enrolled: int
    messages: int
    duplicates: int
    missing: int
    uncertain: int
    lapsed: int
    problems: tuple[str, ...]


def check(evidence: Evidence) -> Verdict:
    """Compares the two accounts."""
    account = _Account(evidence)
    return Verdict(
        enrolled=len(evidence.deliveries),
        messages=len(evidence.accepted),
        duplicates=sum(account.copies.values()) - len(account.copies),
        missing=len(account.missing()),
        uncertain=len(account.uncertain),
        lapsed=len(account.lapsed()),
        problems=tuple(account.problems()),
    )


class _Account:
    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._scenario = evidence.scenario
        self._toll = evidence.toll
        self._of = {one.address: one for one in evidence.deliveries}
        self.copies = Counter(to for message in evidence.accepted for to in message.recipients)
        self.uncertain = [one for one in evidence.deliveries if one.state is DeliveryState.UNCERTAIN]
        self._recordings = evidence.recordings

    def problems(self) -> Iterator[str]:
        yield from self._unfinished()
        yield from self._too_many_copies()
        yield from _named("missing", self.missing())
        yield from self._foreign()
        yield from self._unfounded()
        yield from self._mailed_against_their_will()
        yield from self._doubts()

    def missing(self) -> list[str]:
        """Without a message, and without a word of the ledger on why."""
        explained = {DeliveryState.UNCERTAIN, DeliveryState.REJECTED, DeliveryState.SUPPRESSED}
        return [
            one.address
            for one in self._evidence.deliveries
            if one.address not in self.copies and one.state not in explained
        ]

    def lapsed(self) -> list[int]:
        """Owners that were judged dead before anything had befallen them."""
        judged = ((_judged(one), one.settled_at) for one in self.uncertain)
        return sorted(
            {pid for pid, at in judged if pid and at and all(at < fate.at for fate in self._fates(pid))}
        )

    def _unfinished(self) -> Iterator[str]:
        campaign, run = self._evidence.campaign, self._evidence.run
        if campaign is None or campaign.state is not CampaignState.FINISHED:
            yield f"the campaign is {campaign.state if campaign else 'not there'}"
        if run is None or run.state is not RunState.SUCCEEDED:
            yield f"its run is {run.state if run else 'not there'}: {run.reason if run else ''}"
        if len(self._evidence.deliveries) != self._scenario.people:
            yield f"{len(self._evidence.deliveries)} of {self._scenario.people} are enrolled"
        if campaign is not None and campaign.enrolled != len(self._evidence.deliveries):
            yield f"the campaign says that {campaign.enrolled} are enrolled"
        yield from _named("recordings of the dead that nobody took over", self._evidence.left)
        if self._toll.unorderly:
            yield f"{self._toll.unorderly} processes did not stop in order"

    def _too_many_copies(self) -> Iterator[str]:
        most = self._scenario.max_copies
        several = {to: count for to, count in self.copies.items() if count > 1}
        above = [to for to, count in several.items() if count > most + self._forgotten(to)]
        yield from _named(f"more than {most} copies", above)
        doubtless = [to for to, count in several.items() if self._copies_of(to) + self._forgotten(to) < count]
        yield from _named("copies that no doubt explains", doubtless)
        yield from _named("mailed although their acceptance was on record", self._mailed_again())

    def _copies_of(self, address: str) -> int:
        one = self._of.get(address)
        return one.copies + 1 if one is not None else 0

    def _forgotten(self, address: str) -> int:
        """Copies that a ledger which went back does not know of: dots without an answer, in recordings."""
        one = self._of.get(address)
        if one is None or self._toll.restored_at is None or self._scenario.policy is Policy.NEVER_DUPLICATE:
            return 0
        return sum(said.unanswered for said in self._recordings.of(one.recipient_key).values())

    def _mailed_again(self) -> set[str]:
        """By whoever began after the ledger went back: it has been made good with what was on record before."""
        again = {key for (pid, key), said in self._recordings.said.items() if said.dots and self._is_new(pid)}
        known = {
            key
            for (pid, key), said in self._recordings.said.items()
            if said.accepted and not self._is_new(pid)
        }
        return {one.address for one in self._evidence.deliveries if one.recipient_key in again & known}

    def _is_new(self, pid: int) -> bool:
        restored_at = self._toll.restored_at
        return restored_at is not None and self._recordings.begun[pid] > restored_at

    def _foreign(self) -> Iterator[str]:
        """Every message is one of this campaign's, and went to its own recipient alone."""
        campaign = self._evidence.campaign
        keys = {one.recipient_key.hex(): one.address for one in self._evidence.deliveries}
        for message in self._evidence.accepted:
            uid, _, rest = message.message_id.strip("<>").partition(".")
            owner = keys.get(rest.partition("@")[0])
            if campaign is None or uid != campaign.uid or message.recipients != (owner,):
                yield f"a message {message.message_id} of {owner} went to {', '.join(message.recipients)}"

    def _unfounded(self) -> Iterator[str]:
        """The ledger says of nobody what the relay does not know, and of whoever is mailed that they may be."""
        states = self._by_state()
        yield from _named("sent, and not accepted", states[DeliveryState.SENT] - self.copies.keys())
        told = states[DeliveryState.SENT] | states[DeliveryState.UNCERTAIN]
        resent = {one.address for one in self._evidence.deliveries if one.copies}
        yield from _named("accepted, and neither sent nor uncertain", self.copies.keys() - told - resent)
        yield from _named("rejected, and nobody refused", states[DeliveryState.REJECTED] - self._refused())
        if self._scenario.policy is Policy.NEVER_LOSE:
            early = [one.address for one in self.uncertain if one.copies + 1 < self._scenario.max_copies]
            yield from _named("parked, although copies were left", early)

    def _by_state(self) -> dict[DeliveryState, set[str]]:
        states: dict[DeliveryState, set[str]] = {state: set() for state in DeliveryState}
        for one in self._evidence.deliveries:
            states[one.state].add(one.address)
        return states

    def _refused(self) -> set[str]:
        return {noted.recipient for noted in self._evidence.noted if noted.fault is RelayFault.NO}

    def _mailed_against_their_will(self) -> Iterator[str]:
        yield from _named("suppressed, and mailed", self._toll.suppressed & self.copies.keys())
        left = {
            address
            for address in self._toll.suppressed
            if self._of[address].state is not DeliveryState.SUPPRESSED
        }
        yield from _named("suppressed, and not called so", left)

    def _doubts(self) -> Iterator[str]:
        """No doubt is about what is on record, each has a cause, and no cause has more than its share."""
        yield from _named("accepted on record, and not sent", self._known_and_not_told())
        yield from _named("answered while their sender lived, and yet in doubt", self._should_be_known())
        yield from _named("in doubt, although no dot was written", self._without_a_dot())
        of_relay = sum(noted.leaves_doubt for noted in self._evidence.noted) + self._toll.cut
        for pid, doubts in self._dots().items():
            # A connection that the relay broke before the kill comes on top: its doubt was not written yet.
            bound = of_relay + self._open_at_most(pid)
            if doubts > bound:
                yield f"{doubts} dots of process {pid} are in doubt, and {bound} are explained"
        window = self._scenario.connections * DEPTH
        for pid, doubts in self._unproved().items():
            if doubts > window * max(1, len(self._fates(pid))):
                yield f"{doubts} doubts of process {pid}, whose windows have {window} messages"

    def _open_at_most(self, pid: int) -> int:
        """How many dots were open when something befell a process, as far as the recordings tell."""
        at_once = DEPTH if self._powerless else 1
        return at_once * self._scenario.connections * bool(self._fates(pid))

    def _known_and_not_told(self) -> set[str]:
        """A reply that was read and recorded is a fact, whoever had judged before, and whatever befell the ledger."""
        accepted = {key for (_, key), said in self._recordings.said.items() if said.accepted}
        return {
            one.address
            for one in self._evidence.deliveries
            if one.recipient_key in accepted and one.state is not DeliveryState.SENT
        }

    def _should_be_known(self) -> set[str]:
        """Of whoever was frozen and lived on to its end: it has read the answers that the relay gave meanwhile."""
        excused = {noted.recipient for noted in self._evidence.noted if noted.leaves_doubt}
        lived = {
            one.address
            for one in self.uncertain
            if (pid := _judged(one)) is not None and self._lived_on(pid) and self._writer(one) == pid
        }
        return (lived & self.copies.keys()) - excused

    def _lived_on(self, pid: int) -> bool:
        fates = self._fates(pid)
        return bool(fates) and all(fate.cause is Cause.FROZEN for fate in fates)

    def _without_a_dot(self) -> set[str]:
        """A judge who has the whole recording of the dead doubts what it proves to be on the wire, and nothing else."""
        return {
            one.address
            for one in self.uncertain
            if self._writer(one) is None and not self._powerless and not self._recording_was_away(one)
        }

    def _recording_was_away(self, one: Delivery) -> bool:
        """Whether the judge of a doubt was on another host, or judged one who lived."""
        pid = _judged(one)
        if pid is None:
            return False
        before = [fate.cause for fate in self._fates(pid) if one.settled_at and fate.at <= one.settled_at]
        return self._scenario.troupe is Troupe.HOSTS or Cause.FROZEN in before or not before

    @property
    def _powerless(self) -> bool:
        """Whether the ends of recordings were lost."""
        return Fault.POWER_LOST in self._toll.struck

    def _dots(self) -> Counter[int]:
        """Doubts of which a dot is on record, by the process that wrote it."""
        return Counter(pid for one in self.uncertain if (pid := self._writer(one)) is not None)

    def _unproved(self) -> Counter[int]:
        """The others, by the process that was judged."""
        return Counter(
            pid for one in self.uncertain if self._writer(one) is None and (pid := _judged(one)) is not None
        )

    def _writer(self, one: Delivery) -> int | None:
        """Who wrote the dot that a doubt is about, and has no answer to it on record."""
        said = self._recordings.of(one.recipient_key)
        writers = [pid for pid, by in said.items() if by.unanswered and by.last is None]
        judged = _judged(one)
        return judged if judged in writers else next(iter(writers), None)

    def _fates(self, pid: int) -> list[Fate]:
        return self._toll.fates.get(pid, [])


def _judged(one: Delivery) -> int | None:
    """The process that left a doubt by its death, as others saw it."""
    found = _VANISHED.match(one.detail or "")
    return int(found[1]) if found else None


def _named(what: str, addresses: Iterable[str]) -> Iterator[str]:
    found = sorted(addresses)
    if found:
        yield f"{len(found)} {what}: {', '.join(found[:_FIRST])}"
