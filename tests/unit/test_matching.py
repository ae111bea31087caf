"""Requirements prepared for many agents mean what the model says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from comity.core.matching import Matcher, asked, features, same_place, signature, unmet
from comity.model.capability import AgentRecord, Offer, Requirements, Resources
from comity.model.ids import AgentId, ProcessId

few = st.lists(st.sampled_from("xyz"), max_size=3, unique=True).map(tuple)
labels = st.dictionaries(st.sampled_from("pq"), st.sampled_from("12"))
amounts = st.sampled_from([0.0, 1.0, 4.0])
agents = st.builds(
    AgentRecord,
    id=st.sampled_from([AgentId("n/a"), AgentId("n/b")]),
    name=st.just("a"),
    node=st.just(ProcessId("n")),
    kind=st.sampled_from(["", "llm"]),
    tags=few,
    labels=labels,
    resources=st.builds(Resources, cpu=amounts, memory_mb=amounts, gpu=amounts, cpu_used=amounts, gpu_used=amounts),
    offers=st.lists(
        st.builds(Offer, name=st.sampled_from("cd"), version=st.sampled_from(["1", "1.2", "2.0"]), schema=st.just("")),
        max_size=3,
    ).map(tuple),
)
wishes = st.builds(
    Requirements,
    tags=few,
    any_tags=few,
    labels=labels,
    cpu=amounts,
    memory_mb=amounts,
    gpu=amounts,
    version=st.sampled_from(["", ">=1.2", "<2", "==1.2", "!=1", ">1,<=2"]),
    kind=st.sampled_from(["", "llm"]),
    agent=st.sampled_from([AgentId(""), AgentId("n/a")]),
)


@given(wishes, agents)
def test_a_matcher_says_what_the_model_says(needs: Requirements, agent: AgentRecord) -> None:
    said = any(needs.met_by(agent, offer) for offer in agent.offers if offer.name == "c")
    named = not needs.agent or needs.agent == agent.id
    match = Matcher(needs, "c")
    assert (match(agent) and named) == said
    assert (match.meets(agent) and named) == said
    assert match.asked == 1
    assert (unmet(needs, "c", agent) == "") == said


@given(wishes, wishes, agents)
def test_equal_signatures_match_the_same_agents(one: Requirements, other: Requirements, agent: AgentRecord) -> None:
    if signature(one) == signature(other):
        assert Matcher(one, "c")(agent) == Matcher(other, "c")(agent)
    if not signature(one):
        assert Matcher(one, "c")(agent) == any(offer.name == "c" for offer in agent.offers)


@given(wishes, agents)
def test_an_agent_that_matches_has_every_feature_asked_for(needs: Requirements, agent: AgentRecord) -> None:
    if Matcher(needs, "c")(agent):
        assert set(asked(needs)) <= set(features(agent))


@given(wishes, agents, agents)
def test_agents_in_the_same_place_match_alike(needs: Requirements, one: AgentRecord, other: AgentRecord) -> None:
    if same_place(one, other):
        assert Matcher(needs, "c")(one) == Matcher(needs, "c")(other)
        assert features(one) == features(other)


def test_an_unreadable_version_is_outside_every_range() -> None:
    agent = AgentRecord(id=AgentId("n/a"), name="a", offers=(Offer("c", "newest", ""),))
    assert Matcher(Requirements(), "c")(agent)
    assert not Matcher(Requirements(version="!=1"), "c")(agent)


def test_the_order_of_labels_does_not_matter() -> None:
    one, other = Requirements(labels={"a": "1", "b": "2"}), Requirements(labels={"b": "2", "a": "1"})
    assert signature(one) == signature(other)
