"""One scenario from its beginning to its end, and the evidence that it leaves behind."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery
from maintd.ledger.runs import Run
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from maintd.mail.control import resume
from maintd.smtp.mailbox import Accepted, read_index
from tests.chaos.faults import Toll, befalling
from tests.chaos.scenario import Blow, Scenario
from tests.chaos.theatre import Theatre, theatre
from tests.chaos.weather import Noted

_LOOK_EVERY_S = 0.02
#: Nothing happened for so long: nothing will. Processes may take long to begin on a busy machine.
_PATIENCE_S = 45.0
_GRIP_S = 0.3
#: How far the clocks go when only deferred messages are left, so that their waits end.
_STEP = timedelta(minutes=20)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What there is to be checked, when nothing runs any more.

    Attributes:
        campaign: None if there never was one.
        run: Its run.
        deliveries: The ledger's account.
        accepted: The relay's.
        noted: What the relay did besides.
        toll: What the faults did.
        resumed: How often a breaker had paused the campaign.
        seconds: How long it took.
    """

    scenario: Scenario
    campaign: Campaign | None
    run: Run | None
    deliveries: tuple[Delivery, ...]
    accepted: tuple[Accepted, ...]
    noted: tuple[Noted, ...]
    toll: Toll
    resumed: int
    seconds: float


def perform(scenario: Scenario, directory: Path, *, server_url: str) -> Evidence:
    """Performs a scenario.

    Args:
        scenario: What is to happen.
        directory: Where everything goes; empty, and its path short.
        server_url: Of a PostgreSQL server.
    """
    with theatre(scenario, directory, server_url=server_url) as stage:
        return Performance(stage).play()


class Performance:
    """The director and the prompter: lets the blows fall, and does what an operator would."""

    def __init__(self, stage: Theatre) -> None:
        self._stage = stage
        self._toll = Toll()
        self._resumed = 0
        self._began_s = time.monotonic()

    def play(self) -> Evidence:
        """From the first process to the last."""
        self._stage.begin()
        for blow in self._stage.scenario.blows:
            self._await_moment(blow)
            with befalling(blow, self._stage, self._toll):
                self._stage.release_answers()
        self._stage.calm()
        self._await_end()
        if not self._stage.cast.terminate(self._stage.cast.mains()):
            self._toll.unorderly += 1
        return self._evidence()

    def _await_moment(self, blow: Blow) -> None:
        if blow.at == 0:  # while the processes start, or the audience is enrolled
            time.sleep(blow.draw % 2000 / 1000)
            return
        count = int(blow.at * self._stage.scenario.people)
        if blow.held:
            self._stage.hold_answers(at=count)
        seen, since_s = -1, time.monotonic()
        while (accepted := self._stage.sink.sink.accepted) < count:
            if accepted != seen:
                seen, since_s = accepted, time.monotonic()
            if time.monotonic() - since_s > _PATIENCE_S or self._stage.is_over():
                return
            self._look_after()
            time.sleep(_LOOK_EVERY_S)
        if blow.held:
            self._await_grip()

    def _await_grip(self) -> None:
        """Until a dot is open on every connection of a sender, or no further one comes."""
        holding, since_s = 0, time.monotonic()
        while (now_holding := self._stage.relay.holding) < self._stage.scenario.connections:
            if now_holding != holding:
                holding, since_s = now_holding, time.monotonic()
            if time.monotonic() - since_s > (_GRIP_S if holding else 10 * _GRIP_S):
                return
            time.sleep(_LOOK_EVERY_S / 10)

    def _await_end(self) -> None:
        seen: dict[DeliveryState, int] = {}
        since_s = time.monotonic()
        while not self._stage.is_over() and time.monotonic() - since_s < _PATIENCE_S:
            if (counts := self._stage.counts()) != seen:
                seen, since_s = counts, time.monotonic()
            self._look_after()
            time.sleep(5 * _LOOK_EVERY_S)

    def _look_after(self) -> None:
        """Resumes what a breaker paused, and lets the time come for what waits."""
        campaign = self._stage.campaign()
        if campaign is not None and campaign.state is CampaignState.PAUSED:
            resume(self._stage.ledger, campaign.name, now=self._stage.now())
            self._resumed += 1
        if self._only_waits():
            self._stage.world.step_clocks(self._stage.world.offset + _STEP)

    def _only_waits(self) -> bool:
        """Whether nothing goes on before some time has come, of deferred messages or of a run tried again."""
        run, counts = self._stage.run(), self._stage.counts()
        if run is not None and run.state is RunState.QUEUED:
            return run.due_at > self._stage.now()
        return bool(counts.get(DeliveryState.DEFERRED)) and not counts[DeliveryState.PENDING]

    def _evidence(self) -> Evidence:
        stage = self._stage
        return Evidence(
            scenario=stage.scenario,
            campaign=stage.campaign(),
            run=self._stage.run(),
            deliveries=tuple(stage.deliveries()),
            accepted=tuple(read_index(stage.mailbox)),
            noted=tuple(stage.relay.noted),
            toll=self._toll,
            resumed=self._resumed,
            seconds=time.monotonic() - self._began_s,
        )
