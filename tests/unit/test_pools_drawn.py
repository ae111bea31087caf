"""``power_of_two`` and ``sticky``: as even as they should be, and a key stays where it is."""

from __future__ import annotations

import random
from collections import Counter

import hypothesis.strategies as st
from crowd import C, scheduling, several
from hypothesis import given

from comity.core.pairs import Pairs
from comity.core.pools import Candidate
from comity.core.ring import _RING, Ring, _probes
from comity.core.scheduling import Scheduling
from comity.model.capability import AgentStatus, Requirements, Strategy
from comity.model.ids import AgentId

IDS = [AgentId(f"n/a{i}") for i in range(60)]


def sticky(made: Scheduling, key: str, avoid: tuple[AgentId, ...] = ()) -> AgentId | None:
    return made.choose(C, Requirements(sticky=key), None, avoid)


def member(id: AgentId, load: int = 0, limit: int = 1) -> Candidate:
    candidate = Candidate(id)
    candidate.load, candidate.limit, candidate.live = load, limit, True
    candidate.ready = load < limit
    return candidate


@given(ready=st.lists(st.booleans(), min_size=1, max_size=60), key=st.text(min_size=1, max_size=9))
def test_the_owner_of_a_key_is_the_nearest_to_one_of_its_probes(ready: list[bool], key: str) -> None:
    ring = Ring(random.Random(1).random)
    members = [member(id, 0 if is_ready else 1) for id, is_ready in zip(IDS, ready, strict=False)]
    for candidate in members:
        ring.add(candidate)
    ring.pick()
    ring.check()

    def distance(candidate: Candidate) -> int:
        return min((ring._places[candidate] - probe) & _RING for probe in _probes(key))

    by_distance = sorted((candidate for candidate in members if candidate.ready), key=distance)
    assert list(ring.ranked(key)) == by_distance
    assert ring.pick(key=key) is (by_distance[0] if by_distance else None)
    assert ring.pick(by_distance[:1], key=key) is (by_distance[1] if len(by_distance) > 1 else None)


def test_only_the_keys_of_who_left_move_and_they_come_back_with_it() -> None:
    agents = several(50)
    made = scheduling(*agents)
    keys = [f"user-{i}" for i in range(2000)]
    before = {key: sticky(made, key) for key in keys}
    assert before == {key: sticky(made, key) for key in keys}
    gone = agents[7]
    made.remove_agent(gone.id)
    without = {key: sticky(made, key) for key in keys}
    assert {key for key in keys if without[key] != before[key]} == {key for key in keys if before[key] == gone.id}
    made.put_agent(gone)
    assert {key: sticky(made, key) for key in keys} == before
    made.check()


def test_a_busy_agent_lends_its_keys_only_while_it_is_busy() -> None:
    made = scheduling(*several(5, concurrency=1))
    owner = sticky(made, "k")
    assert owner is not None
    made.take(owner)
    other = sticky(made, "k")
    assert other not in (None, owner)
    assert sticky(made, "k", (other,)) not in (None, owner, other)  # type: ignore[arg-type]
    made.give(owner)
    assert sticky(made, "k") == owner


def test_a_key_stays_through_requirements_and_a_strategy_said_otherwise() -> None:
    made = scheduling(*several(20, tags=("gpu",)))
    needs = Requirements(tags=("gpu",), sticky="k")
    assert {made.choose(C, needs, how) for how in (None, *Strategy)} == {sticky(made, "k")}
    assert made.explain(C, needs)["strategy"] == "sticky"
    assert made.explain(C, needs)["choice"] == sticky(made, "k")


def test_keys_are_spread_evenly_and_what_has_none_too() -> None:
    made = scheduling(*several(20))
    for counts in (
        Counter(sticky(made, f"key {i}") for i in range(20_000)),
        Counter(made.choose(C, None, Strategy.STICKY) for _ in range(20_000)),
    ):
        assert len(counts) == 20
        assert max(counts.values()) < 1.3 * 1000, counts


def test_of_two_the_less_loaded_is_taken() -> None:
    pool = Pairs(random.Random(1).random)
    light, heavy = member(IDS[0], 1, 9), member(IDS[1], 5, 9)
    assert pool.pick() is None
    for candidate in (heavy, light):
        pool.add(candidate)
    assert {pool.pick() for _ in range(50)} == {light}
    assert pool.pick([light]) is heavy
    assert pool.pick(match=lambda _: False, tries=9) is None
    pool.check()


def test_two_choices_keep_loads_even() -> None:
    """The fullest of n bins with n balls: log n / log log n above for one choice, log log n for two (Azar 1994)."""
    agents = several(500, concurrency=1000)
    made = scheduling(*agents)
    for _ in range(5000):
        chosen = made.choose(C, None, Strategy.POWER_OF_TWO)
        assert chosen is not None
        made.take(chosen)
    assert max(made.load(agent.id) for agent in agents) <= 10 + 4
    made.check()


def test_who_is_paused_is_drawn_no_more() -> None:
    agents = several(3)
    made = scheduling(*agents)
    for how in (Strategy.POWER_OF_TWO, Strategy.STICKY):
        assert len({made.choose(C, None, how) for _ in range(100)}) == 3
    agents[1].status = AgentStatus.PAUSED
    made.put_agent(agents[1])
    for how in (Strategy.POWER_OF_TWO, Strategy.STICKY):
        assert {made.choose(C, None, how) for _ in range(100)} == {agents[0].id, agents[2].id}
    made.check()
