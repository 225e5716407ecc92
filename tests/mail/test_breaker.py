from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import DeliveryState
from maintd.mail.verdicts.breaker import MOST_OURS, SPAN, Breaker
from maintd.mail.verdicts.failures import Failure
from tests.ledgers import key_of

SENT, DEFERRED = DeliveryState.SENT, DeliveryState.DEFERRED
REJECTED, UNCERTAIN = DeliveryState.REJECTED, DeliveryState.UNCERTAIN


def outcome(
    state: DeliveryState,
    failure: Failure | None = None,
    phase: str | None = "dot",
    code: int | None = None,
    detail: str = "because",
) -> Outcome:
    return Outcome(
        recipient_key=key_of(0),
        ordinal=0,
        state=state,
        fact=code is not None,
        failure=failure,
        phase=phase,
        code=code,
        detail=detail,
    )


TAKEN = outcome(SENT, code=250)
LATER = outcome(DEFERRED, Failure.THROTTLE, "rcpt", 451)
LOST = outcome(DEFERRED, Failure.CONNECT, "data")
DOUBTFUL = outcome(UNCERTAIN)
UNKNOWN = outcome(REJECTED, Failure.MAILBOX, "rcpt", 550)
GIVEN_UP = outcome(REJECTED, Failure.TEMPORARY, "rcpt", 451)
UNSENDABLE = outcome(REJECTED, Failure.PERMANENT, "mail")
UNMAKEABLE = outcome(REJECTED, Failure.TEMPLATE, "render")
UNWANTED = outcome(DEFERRED, Failure.POLICY, "dot", 554)
LOCKED_OUT = outcome(DEFERRED, Failure.AUTH, "mail", 530, "Authentication required")

#: Whether it is an answer, a doubt, refused for what is sent, refused for good.
MEANINGS = {
    TAKEN: (True, False, False, False),
    LATER: (True, False, False, False),
    LOST: (False, False, False, False),
    DOUBTFUL: (True, True, False, False),
    UNKNOWN: (True, False, False, True),
    GIVEN_UP: (True, False, False, False),
    UNSENDABLE: (True, False, False, True),
    UNMAKEABLE: (True, False, True, True),
    UNWANTED: (True, False, True, True),
}


def breaker(*, connections: int = 4, refused: float = 0.05) -> Breaker:
    return Breaker(connections=connections, refused=refused)


def fed(*outcomes: Outcome, connections: int = 4, refused: float = 0.05) -> Breaker:
    fed = breaker(connections=connections, refused=refused)
    for each in outcomes:
        fed.take(each)
    return fed


def ought_to_trip(seen: list[Outcome], *, connections: int, percent: int) -> bool:
    """The documented rules, by counting anew."""
    last = [MEANINGS[one] for one in seen if MEANINGS[one][0]][-200:]
    doubts, ours, refused = (sum(one[place] for one in last) for place in (1, 2, 3))
    too_many = len(last) == 200 and refused * 100 > percent * 200
    return doubts > 2 * connections or ours > 10 or too_many


runs = st.lists(st.tuples(st.sampled_from([TAKEN, *MEANINGS]), st.integers(1, 60)), min_size=1, max_size=12)


@given(st.integers(0, 2 * SPAN), runs, st.integers(1, 20), st.integers(0, 100))
def test_a_breaker_trips_exactly_when_its_rules_say_so(
    well: int, runs: list[tuple[Outcome, int]], connections: int, percent: int
) -> None:
    """All went well for a while; then comes whatever comes."""
    found = fed(*[TAKEN] * well, connections=connections, refused=percent / 100)
    seen, ought = [TAKEN] * well, False
    for one, times in runs:
        for _ in range(times):
            seen.append(one)
            found.take(one)
            ought = ought or ought_to_trip(seen, connections=connections, percent=percent)
            assert (found.tripped is not None) is ought


def test_what_is_two_hundred_outcomes_ago_is_forgotten_and_no_sooner() -> None:
    eight = [DOUBTFUL] * 8
    assert fed(*eight, *[TAKEN] * (SPAN - 8), DOUBTFUL).tripped is None
    assert fed(*eight, *[TAKEN] * (SPAN - 9), DOUBTFUL).tripped is not None


def test_a_stale_part_of_a_long_list_is_noticed_wherever_it_comes() -> None:
    assert fed(*[TAKEN] * 1000, *[UNKNOWN] * 10).tripped is None
    assert fed(*[TAKEN] * 1000, *[UNKNOWN] * 11).tripped is not None


def test_one_refusal_of_the_sender_is_enough() -> None:
    tripped = fed(TAKEN, LOCKED_OUT).tripped
    assert tripped is not None
    assert "530 Authentication required" in tripped


@pytest.mark.parametrize(
    ("bad", "most"), [(DOUBTFUL, 8), (UNWANTED, MOST_OURS), (UNMAKEABLE, MOST_OURS)], ids=str
)
def test_a_storm_trips_it_at_once_however_few_were_sent(bad: Outcome, most: int) -> None:
    assert fed(*[bad] * most).tripped is None
    assert fed(*[bad] * (most + 1)).tripped is not None


def test_a_short_list_of_wrong_addresses_is_sent_to_its_end() -> None:
    assert fed(*[UNKNOWN] * (SPAN - 1)).tripped is None


def test_of_a_long_list_too_many_wrong_addresses_trip_it() -> None:
    one_in_ten = [UNKNOWN, *[TAKEN] * 9] * (SPAN // 10)
    tripped = fed(*one_in_ten).tripped
    assert tripped is not None
    assert "the last: 550 because" in tripped
    assert fed(*one_in_ten, refused=0.1).tripped is None
    assert fed(*[UNKNOWN] * 1000, refused=1.0).tripped is None


def test_bad_luck_now_and_then_is_forgotten() -> None:
    often = [DOUBTFUL, UNWANTED, *[TAKEN] * (SPAN // 8)] * 100
    assert fed(*often, connections=8).tripped is None


def test_what_waits_or_never_came_to_an_answer_bodes_nothing() -> None:
    assert fed(*[LATER, LOST, GIVEN_UP] * 1000).tripped is None


def test_the_first_reason_stays() -> None:
    tripped = fed(*[DOUBTFUL] * 9, LOCKED_OUT)
    assert tripped.tripped is not None
    assert "uncertain" in tripped.tripped
