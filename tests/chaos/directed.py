"""For each guard of the product a scenario in which its absence shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from maintd.smtp.faults import Step
from tests.chaos.scenario import Blow, Dialect, Fault, Policy, Scenario, Troupe
from tests.chaos.weather import RelayFault, Weather
from tests.chaos.without import Guard

_SLOW = Weather(chances=((Step.DOT, RelayFault.SLOW, 1.0),))
#: Of a window some is answered at once, and some is not for a while.
_UNEVEN = Weather(chances=((Step.DOT, RelayFault.SLOW, 0.2),))
_REFUSING = Weather(chances=((Step.DATA, RelayFault.LATER, 0.2),), lax=True)


def _blow(fault: Fault, at: float, *, held: bool = True, draw: int = 0) -> Blow:
    return Blow(fault=fault, at=at, held=held, away_s=0.5, draw=draw)


def _scenario(*blows: Blow, weather: Weather | None = None, senders: int = 1) -> Scenario:
    scenario = Scenario(seed=7, people=240, connections=8, batch=120, senders=senders, blows=blows)
    return scenario if weather is None else replace(scenario, weather=weather)


DIRECTED: Mapping[Guard, Scenario] = {
    # Two senders, and time enough for one to take what the other has in hand.
    Guard.CLAIM: _scenario(
        _blow(Fault.WAKES_DOUBLED, 0.05, held=False),
        _blow(Fault.WAKES_DOUBLED, 0.9, held=False),
        weather=_SLOW,
        senders=2,
    ),
    Guard.MARK: _scenario(_blow(Fault.KILL_SENDER, 0.4)),
    Guard.INTENT: _scenario(_blow(Fault.KILL_SENDER, 0.4)),
    Guard.BOOT: _scenario(_blow(Fault.POWER_LOST, 0.4)),
    Guard.MERGE: _scenario(_blow(Fault.FREEZE, 0.4)),
    Guard.RESET: _scenario(_blow(Fault.WAKES_DOUBLED, 0.9, held=False), weather=_REFUSING),
    Guard.SUPPRESSION: replace(_scenario(_blow(Fault.SUPPRESS, 0.2)), batch=20),
    Guard.PROOF: _scenario(_blow(Fault.KILL_SENDER, 0.4), weather=_SLOW),
    # Who begins again on the host of the dead comes after the judge, and after another has taken up the batch.
    Guard.TAKEOVER: replace(
        _scenario(replace(_blow(Fault.KILL_SENDER, 0.4), away_s=6.0), weather=_UNEVEN, senders=2),
        troupe=Troupe.HOSTS,
    ),
    # Batches are small: of those that the backup has with a sender the recordings are read again in any case.
    Guard.REPLAY: replace(_scenario(_blow(Fault.LEDGER_RESTORED, 0.4), weather=_SLOW, senders=2), batch=20),
}

#: Under the policy that allows copies, and on a server.
RESTORED = replace(
    _scenario(
        replace(_blow(Fault.LEDGER_RESTORED, 0.4), away_s=1.0),
        _blow(Fault.KILL_SENDER, 0.8),
        weather=_SLOW,
        senders=2,
    ),
    batch=20,
    dialect=Dialect.POSTGRESQL,
    policy=Policy.NEVER_LOSE,
)
LANES = replace(
    _scenario(_blow(Fault.RELAY_AWAY, 0.3), _blow(Fault.KILL_SENDER, 0.6), senders=2),
    relays=2,
    lanes=True,
)
