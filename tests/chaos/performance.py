"""One scenario from its beginning to its end, and the evidence that it leaves behind."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery
from maintd.ledger.runs import Run
from maintd.ledger.states import CampaignState
from maintd.mail.control import resume
from maintd.smtp.mailbox import Accepted
from tests.chaos.faults import Toll, befalling
from tests.chaos.recordings import Recordings, read
from tests.chaos.relays import taken
from tests.chaos.scenario import Blow, Scenario
from tests.chaos.theatre import Theatre, theatre
from tests.chaos.weather import Noted

_LOOK_EVERY_S = 0.02
#: Nothing happened for so long: nothing will. Processes may take long to begin on a busy machine.
_PATIENCE_S = 90.0
#: The same while mail waits for a relay that is set aside: it is tried again after 5 min at the latest.
_PATIENCE_WITH_RELAYS_S = 400.0
_GRIP_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What there is to be checked, when nothing runs any more.

    Attributes:
        campaign: None if there never was one.
        run: Its run.
        deliveries: The ledger's account; when each was settled is told in truth, whatever the wall clocks said.
        accepted: The relay's.
        noted: What the relay did besides.
        toll: What the faults did.
        resumed: How often a breaker had paused the campaign.
        recordings: What the flight recorders say.
        left: Recordings of the dead that nobody has taken over.
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
    recordings: Recordings
    left: tuple[str, ...]
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
                self._stage.relays.release_answers()
        self._stage.calm()
        while self._ends() and not self._is_over():
            self._stage.cast.play()
        return self._evidence()

    def _ends(self) -> bool:
        """Waits for the end, and stops everybody; False when it did not come."""
        came = self._await_end()
        if not self._stage.cast.terminate(self._stage.cast.mains()):
            self._toll.unorderly += 1
        return came

    def _is_over(self) -> bool:
        """Whether nothing is left to be done: of the mailing, or by whoever comes after the dead.

        A process that was frozen may say at its very end that the relay wants a message later.
        """
        return self._stage.is_over() and not self._stage.left_behind()

    def _await_moment(self, blow: Blow) -> None:
        if blow.at == 0:  # while the processes start, or the audience is enrolled
            time.sleep(blow.draw % 2000 / 1000)
            return
        count = int(blow.at * self._stage.scenario.people)
        if blow.held:
            self._stage.hold_answers(at=count)
        seen, since_s = -1, time.monotonic()
        while (accepted := self._stage.relays.accepted) < count:
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
        while (now_holding := self._stage.relays.script.holding) < self._stage.scenario.connections:
            if now_holding != holding:
                holding, since_s = now_holding, time.monotonic()
            if time.monotonic() - since_s > (_GRIP_S if holding else 10 * _GRIP_S):
                return
            time.sleep(_LOOK_EVERY_S / 10)

    def _await_end(self) -> bool:
        """Returns whether it came; not if nothing moves any more."""
        seen: object = None
        since_s = time.monotonic()
        while not self._is_over():
            if (moved := (self._stage.counts(), self._stage.progress())) != seen:
                seen, since_s = moved, time.monotonic()
            if time.monotonic() - since_s > self._patience_s():
                return False
            self._look_after()
            time.sleep(5 * _LOOK_EVERY_S)
        return True

    def _patience_s(self) -> float:
        campaign = self._stage.campaign()
        waits = campaign is not None and campaign.reason is not None
        return _PATIENCE_WITH_RELAYS_S if waits else _PATIENCE_S

    def _look_after(self) -> None:
        """Resumes what a breaker paused, and lets the time come for what waits."""
        campaign = self._stage.campaign()
        if campaign is not None and campaign.state is CampaignState.PAUSED:
            resume(self._stage.ledger, campaign.name, now=self._stage.now())
            self._resumed += 1
        wait = self._stage.waits()
        if wait is not None and wait > timedelta():
            self._stage.world.step_clocks(self._stage.world.offset + wait)

    def _evidence(self) -> Evidence:
        stage = self._stage
        keeps = [
            one._replace(settled_at=one.settled_at and stage.world.in_truth(one.settled_at))
            for one in stage.deliveries()
        ]
        return Evidence(
            scenario=stage.scenario,
            campaign=stage.campaign(),
            run=stage.run(),
            deliveries=tuple(keeps),
            accepted=taken(stage.site.directory),
            noted=tuple(stage.relays.script.noted),
            toll=self._toll,
            resumed=self._resumed,
            recordings=read(stage.recordings, in_truth=stage.world.in_truth),
            left=tuple(path.name for path in stage.left_behind()),
            seconds=time.monotonic() - self._began_s,
        )
