"""The machines of conversations: what their tables have is taken in, all else refused, and each comes to an end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from comity.client.client import Client
from comity.core.conversations import (
    ENDS,
    Conversation,
    Effect,
    Ended,
    Lost,
    NotUnderstood,
    Protocol,
    Role,
    Rule,
    Said,
    Seen,
    State,
    Tick,
)
from comity.core.protocols import (
    COLLABORATION,
    CONTRACT_NET,
    ITERATED_CONTRACT_NET,
    PROTOCOLS,
    REQUEST,
    RESOURCE,
    SUBSCRIBE,
    may_answer,
)
from comity.model import wire
from comity.model.envelope import Performative

ME, YOU = Role.INITIATOR, Role.PARTICIPANT
EVERY = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


def held(protocol: Protocol, *said: tuple[Role, str], now: float = 0.0) -> Conversation:
    """A conversation in which this was said, all of it in order."""
    conversation = Conversation(protocol)
    for role, says in said:
        effects = conversation.step(Said(role, Performative(says)), now)
        assert not [effect for effect in effects if isinstance(effect, NotUnderstood)], effects
        conversation.check()
    return conversation


def reasons(effects: list[Effect]) -> list[str]:
    return [effect.reason for effect in effects if isinstance(effect, NotUnderstood)]


def reachable(protocol: Protocol) -> dict[State, list[tuple[Role, Performative]]]:
    """Every state that words alone lead to, with words that do."""
    found: dict[State, list[tuple[Role, Performative]]] = {State.START: []}
    fresh = [State.START]
    while fresh:
        state = fresh.pop(0)
        for (at, role, says), then in protocol.table.items():
            if at is state and then not in found:
                found[then] = [*found[state], (role, says)]
                fresh.append(then)
    return found


@EVERY
def test_all_states_can_be_reached_and_lead_to_an_end(protocol: Protocol) -> None:
    assert set(reachable(protocol)) == protocol.states()
    leads = set(ENDS)
    while more := {at for (at, _, _), then in protocol.table.items() if then in leads} - leads:
        leads |= more
    assert protocol.states() <= leads


@EVERY
def test_from_every_open_state_each_side_alone_can_end_it(protocol: Protocol) -> None:
    for state in protocol.states() - ENDS - {State.START}:
        for role in Role:
            assert any(protocol.table[state, role, says] in ENDS for says in protocol.may_say(state, role)), (state, role)


@EVERY
def test_all_that_is_not_in_the_table_is_refused(protocol: Protocol) -> None:
    for state, words in reachable(protocol).items():
        for role in Role:
            for says in Performative:
                conversation = held(protocol, *words)
                effects = conversation.step(Said(role, says), 0.0)
                conversation.check()
                if (state, role, says) in protocol.table:
                    assert not reasons(effects)
                    assert conversation.state is protocol.table[state, role, says]
                elif state not in ENDS:
                    (reason,) = reasons(effects)
                    assert says in reason
                    assert protocol.name in reason
                    assert effects[1:] == [Ended(State.NOT_UNDERSTOOD)]
                else:
                    assert conversation.state is state
                    assert not [effect for effect in effects if isinstance(effect, Ended)]


words = some.tuples(some.sampled_from(Role), some.sampled_from(Performative), some.none() | some.floats(0, 5))
events = words.map(lambda word: Said(*word)) | some.just(Tick()) | some.just(Lost())


@given(some.sampled_from(list(PROTOCOLS.values())), some.lists(some.tuples(events, some.floats(0, 2)), max_size=30))
def test_any_life_ends_at_most_one_time(protocol: Protocol, life: list[tuple[Said | Tick | Lost, float]]) -> None:
    conversation, now, ends = Conversation(protocol), 0.0, 0
    for event, later in life:
        now += later
        before = conversation.state
        effects = conversation.step(event, now)
        conversation.check()
        ends += sum(isinstance(effect, Ended) for effect in effects)
        assert conversation.is_over == (ends == 1)
        if before in ENDS:
            assert conversation.state is before
        if isinstance(event, Said) and event.says is Performative.NOT_UNDERSTOOD and before is not State.START:
            assert not reasons(effects)
        deadline = conversation.next_deadline()
        assert deadline is None or not conversation.is_over
    if not conversation.is_over:
        conversation.step(Lost(), now)
        assert conversation.state is not State.START


@EVERY
def test_whoever_is_waited_for_has_a_deadline_and_then_it_is_over(protocol: Protocol) -> None:
    opening = next(says for says in Performative if protocol.opens(says))
    conversation = Conversation(protocol)
    conversation.step(Said(ME, opening, reply_by=5.0), 0.0)
    assert conversation.next_deadline() == 5.0
    assert conversation.step(Tick(), 4.9) == []
    assert conversation.step(Tick(), 5.0) == [Ended(State.EXPIRED)]
    assert conversation.next_deadline() is None


def test_a_proposal_after_the_deadline_is_refused_with_the_reason() -> None:
    conversation = Conversation(CONTRACT_NET)
    conversation.step(Said(ME, Performative.CFP, reply_by=1.0), 0.0)
    effects = conversation.step(Said(YOU, Performative.PROPOSE), 1.5)
    assert effects[0] == Ended(State.EXPIRED)
    assert "reply_by" in reasons(effects)[0]


def test_a_proposal_in_time_ends_the_wait_and_one_to_agree_does_not() -> None:
    conversation = Conversation(CONTRACT_NET)
    conversation.step(Said(ME, Performative.CFP, reply_by=1.0), 0.0)
    assert conversation.step(Said(YOU, Performative.PROPOSE), 0.5) == []
    assert conversation.next_deadline() is None
    asked = Conversation(REQUEST)
    asked.step(Said(ME, Performative.REQUEST, reply_by=1.0), 0.0)
    asked.step(Said(YOU, Performative.AGREE), 0.5)
    assert asked.next_deadline() == 1.0


def test_contract_net_from_call_to_result() -> None:
    assert held(CONTRACT_NET, (ME, "cfp"), (YOU, "propose"), (ME, "accept-proposal"), (YOU, "inform")).state is State.DONE
    assert held(CONTRACT_NET, (ME, "cfp"), (YOU, "propose"), (ME, "reject-proposal")).state is State.REJECTED
    assert held(CONTRACT_NET, (ME, "cfp"), (YOU, "refuse")).state is State.REFUSED
    again = (ME, "cfp"), (YOU, "propose"), (ME, "cfp"), (YOU, "propose"), (ME, "accept-proposal"), (YOU, "failure")
    assert held(ITERATED_CONTRACT_NET, *again).state is State.FAILED
    assert reasons(held(CONTRACT_NET, *again[:2]).step(Said(ME, Performative.CFP), 0.0))


def test_what_crosses_a_cancel_is_passed_over() -> None:
    subscribed = held(SUBSCRIBE, (ME, "subscribe"), (YOU, "inform"), (ME, "cancel"))
    assert subscribed.state is State.CANCELED
    for says in (Performative.INFORM, Performative.INFORM, Performative.CANCEL, Performative.FAILURE):
        assert subscribed.step(Said(YOU, says), 0.0) == []
    assert reasons(subscribed.step(Said(YOU, Performative.PROPOSE), 0.0))
    left = held(COLLABORATION, (ME, "propose"), (YOU, "accept-proposal"), (YOU, "cancel"))
    assert left.step(Said(ME, Performative.INFORM), 0.0) == []
    assert reasons(left.step(Said(ME, Performative.ACCEPT_PROPOSAL), 0.0))


def test_an_offer_holds_until_its_reply_by() -> None:
    lent = held(RESOURCE, (ME, "request"))
    lent.step(Said(YOU, Performative.PROPOSE, reply_by=60.0), 0.0)
    assert (lent.state, lent.next_deadline()) == (State.HELD, 60.0)
    assert lent.step(Tick(), 60.0) == [Ended(State.EXPIRED)]
    assert held(RESOURCE, (ME, "request"), (YOU, "propose"), (ME, "inform")).state is State.DONE


def test_a_table_that_contradicts_itself_is_no_protocol() -> None:
    rules = [Rule(State.START, ME, Performative.REQUEST, State.ASKED)] * 2
    with pytest.raises(ValueError, match="contradicts"):
        Protocol("odd", "", rules)


def test_a_plain_request_has_its_answers_too() -> None:
    assert may_answer(Performative.REQUEST, Performative.INFORM)
    assert may_answer(Performative.CFP, Performative.PROPOSE)
    assert not may_answer(Performative.REQUEST, Performative.PROPOSE)
    assert may_answer(Performative.INFORM, Performative.PROPOSE)


def test_what_arrives_twice_is_one_message() -> None:
    seen = Seen()
    assert [seen.is_copy(id) for id in ("a", "b", "a")] == [False, False, True]
    assert not any(seen.is_copy(str(number)) for number in range(1000))
    assert seen.is_copy("999")
    assert not seen.is_copy("a")  # long ago


@EVERY
def test_every_protocol_names_its_source(protocol: Protocol) -> None:
    assert protocol.source.startswith("FIPA SC000") or protocol.name.startswith("comity-")


def test_the_page_has_the_same_tables() -> None:
    page = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.count("|") == 5]
    told: dict[str, set[tuple[str, ...]]] = {}
    name = ""
    for called, state, says, then in rows:
        name = called.strip("`") or name
        if " says " in says and state != "state":
            who, word = says.split(" says ")
            told.setdefault(name, set()).add((state, who, word, then))
    common = (Performative.NOT_UNDERSTOOD, Performative.CANCEL)
    for protocol in PROTOCOLS.values():
        own = {
            (state, role, says, then)
            for (state, role, says), then in protocol.table.items()
            if says not in common or (role, says) == (YOU, Performative.CANCEL)
        }
        assert told[protocol.name] == own, protocol.name
    assert set(told) == set(PROTOCOLS)


def test_the_kinds_of_messages_are_items_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
    named = re.findall(r"`(\w+)` \((\d+)\)", page)
    assert len(named) >= 15
    for name, tag in named:
        assert getattr(wire, name).__struct_config__.tag == int(tag), name
    for verb in re.findall(r"`(?:await )?net\.(\w+)", page):
        assert hasattr(Client, verb), verb
