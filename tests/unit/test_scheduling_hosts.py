"""Nodes with many agents, which learn little by little what became of them."""

from __future__ import annotations

import pytest
from crowd import C, agent, choose, scheduling, several

from comity.core import hosts
from comity.model.ids import ProcessId


def test_many_agents_of_a_node_learn_of_it_by_and_by_and_none_gets_work_on_a_node_that_is_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosts, "AT_ONCE", 2)
    made = scheduling(*several(5), agent("other", node="n2"))
    made.set_node(ProcessId("n1"), eligible=False)
    made.check()
    assert made.is_behind and made.live(C) == 4
    assert choose(made, 8) == " ".join(["other"] * 8)
    made.set_node(ProcessId("n1"), eligible=True, cpu_free=4, memory_free_mb=4096)
    assert len(dict.fromkeys(choose(made, 20).split())) == 3, "two of them, and the other"
    rounds = 0
    while made.is_behind:
        made.catch_up()
        made.check()
        rounds += 1
    assert (rounds, made.live(C)) == (2, 6)
    assert len(dict.fromkeys(choose(made, 20).split())) == 6


def test_a_node_that_goes_before_its_agents_learn_of_it_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "AT_ONCE", 1)
    made = scheduling(*several(3))
    made.set_node(ProcessId("n1"), eligible=False)
    for record in several(3):
        made.remove_agent(record.id)
    made.check()
    assert not made.is_behind and made.eligible_nodes() == []
