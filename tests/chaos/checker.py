"""What must hold after any performance, whatever befell it: the relay's account against the ledger's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from maintd.ledger.deliveries import Delivery
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from tests.chaos.faults import Cause
from tests.chaos.performance import Evidence
from tests.chaos.scenario import Policy, Troupe
from tests.chaos.theatre import DEPTH
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
        self._judged = Counter(by for one in self.uncertain if (by := self._judged_for(one)))

    def problems(self) -> Iterator[str]:
        yield from self._unfinished()
        yield from self._too_many_copies()
        yield from _named("missing", self.missing())
        yield from self._foreign()
        yield from self._unfounded()
        yield from self._mailed_against_their_will()
        yield from self._too_many_doubts()

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
        return sorted(pid for pid, cause in self._judged if cause is None)

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
        if self._toll.unorderly:
            yield f"{self._toll.unorderly} processes did not stop in order"

    def _too_many_copies(self) -> Iterator[str]:
        most = self._scenario.max_copies
        yield from _named(
            f"more than {most} copies", [to for to, count in self.copies.items() if count > most]
        )
        doubtless = [to for to, count in self.copies.items() if count > 1 and self._copies_of(to) < count]
        yield from _named("copies that no doubt explains", doubtless)

    def _copies_of(self, address: str) -> int:
        one = self._of.get(address)
        return one.copies + 1 if one is not None else 0

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

    def _too_many_doubts(self) -> Iterator[str]:
        """Each doubt has a cause, and no cause has more than its share."""
        of_relay = sum(noted.leaves_doubt for noted in self._evidence.noted)
        for (pid, cause), doubts in self._judged.items():
            # A connection that the relay broke before the kill comes on top: its doubt was not written yet.
            bound = self._bound(cause) + of_relay
            if doubts > bound:
                yield f"{doubts} doubts by process {pid} ({cause or 'alive'}), which explains {bound}"
        other = [one for one in self.uncertain if self._judged_for(one) is None]
        # A ledger that was restored has forgotten whose they were.
        bound = of_relay + self._toll.held * len(self._toll.fates) * self._scenario.connections
        if len(other) > bound:
            yield f"{len(other)} doubts by the relay, whose faults explain {bound}: {other[0].detail}"
        yield from _named("accepted and answered, and yet in doubt", self._should_be_known())

    def _should_be_known(self) -> set[str]:
        """Of whoever was frozen and lived on: it has read the answers that the relay gave meanwhile."""
        excused = {noted.recipient for noted in self._evidence.noted if noted.leaves_doubt}
        frozen = {
            one.address
            for one in self.uncertain
            if (judged := self._judged_for(one)) is not None and judged[1] is Cause.FROZEN
        }
        return (frozen & self.copies.keys()) - excused

    def _judged_for(self, one: Delivery) -> tuple[int, Cause | None] | None:
        """The process that left a doubt by its death, as others saw it, and what had befallen it by then."""
        found = _VANISHED.match(one.detail or "")
        if found is None:
            return None
        pid = int(found[1])
        fate = self._toll.fates.get(pid)
        if fate is None or (one.settled_at is not None and one.settled_at < fate.at):
            return pid, None
        return pid, fate.cause

    def _bound(self, cause: Cause | None) -> int:
        """How many doubts it explains: open dots, or a window where the judge lacks recorder or history."""
        at_hand = cause is Cause.KILLED and self._scenario.troupe is not Troupe.HOSTS and not self._toll.held
        return self._scenario.connections * (1 if at_hand else DEPTH)


def _named(what: str, addresses: Iterable[str]) -> Iterator[str]:
    found = sorted(addresses)
    if found:
        yield f"{len(found)} {what}: {', '.join(found[:_FIRST])}"
