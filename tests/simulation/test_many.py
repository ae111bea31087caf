"""Many lives at once, the fewest faults that it takes, and how cost grows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from planted import epochs_start_again_with_each_leader

from comity.model.task import TaskState
from comity.sim import Violation, World, many, scale
from comity.sim.__main__ import main
from comity.sim.checkers import End, TaskModel
from comity.sim.faults import Strike
from comity.sim.linear import check
from comity.sim.loop import SimulationError
from comity.sim.shrink import kind_of, shrink

PLAN = [Strike(number, number * 0.5, "crash", 1.0) for number in range(20)]


def breaks_with(*needed: int) -> Callable[[list[int]], SimulationError | None]:
    def live(numbers: list[int]) -> SimulationError | None:
        if set(needed) <= set(numbers):
            return Violation(f"entry {len(numbers)} counts, but it must not")
        return Violation("another thing") if numbers else None

    return live


class TestShrinking:
    @pytest.mark.parametrize("needed", [(0,), (19,), (3, 11), (0, 1, 2), (2, 9, 17, 18), tuple(range(20))])
    def test_what_is_needed_remains(self, needed: tuple[int, ...]) -> None:
        found = shrink(PLAN, breaks_with(*needed), lambda _: None)
        assert found is not None
        assert tuple(strike.number for strike in found.plan) == needed
        assert "counts" in str(found.error)

    def test_what_breaks_without_any_fault_needs_none(self) -> None:
        found = shrink(PLAN, breaks_with(), lambda _: None)
        assert found is not None and found.plan == []

    def test_what_breaks_nothing_is_not_shrunk(self) -> None:
        assert shrink(PLAN, lambda _: None, lambda _: None) is None

    def test_two_failures_are_the_same_but_for_numbers_and_ids(self) -> None:
        first = Violation("entry 7 ended task 001m326hvetjwha05dw0000f again after 3.5 s\nand more")
        second = Violation("entry 12 ended task 001m326hvetjwha05dw00001 again after 1 s")
        assert kind_of(first) == kind_of(second) != kind_of(Violation("entry 7 counts"))

    def test_a_real_life_is_shrunk(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        epochs_start_again_with_each_leader(monkeypatch)
        seed = next(seed for seed in range(20) if many.one(seed).broken)
        assert main([str(seed), "--shrink"]) == 1
        told = capsys.readouterr().out
        assert "live it again with" in told
        numbers = told.rpartition("--only ")[2].split()[0]
        assert main([str(seed), "--only", numbers]) == 1
        assert len(numbers.split(",")) < 10

    def test_there_may_be_nothing_to_shrink(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["1", "--shrink"]) == 0
        assert "nothing to shrink" in capsys.readouterr().out


class TestMany:
    @pytest.mark.timeout(120)
    def test_all_are_lived_and_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--seeds", "0-6", "--jobs", "2"]) == 0
        told = capsys.readouterr().out
        assert "seeds 0 to 6: 7 lives" in told
        assert "every promise was kept" in told

    def test_one_that_broke_a_promise_is_listed_and_stops_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(self: World) -> None:
            if self.seed == 1:
                raise Violation("planted")

        monkeypatch.setattr(World, "_judge", broken)
        lives = [many.one(seed) for seed in range(3)]
        assert [life.broken for life in lives] == ["", "Violation: planted", ""]
        lines: list[str] = []
        many.table(lives, 1.0, 1, lines.append)
        assert "1 lives broke a promise:" in lines
        assert "       1  Violation: planted" in lines
        assert lines[-1].endswith("comity.sim 1 --shrink")


def test_a_single_changed_answer_in_a_life_is_not_linearizable() -> None:
    kinds: set[str] = set()
    changed = 0
    for seed in (1, 2, 3):
        world = World(seed, torture_s=5.0)
        world.run()
        model = TaskModel(world.settings.keep_finished)
        kinds |= {operation.kind for operation in world.history.operations}
        for operations in world.history.by_key().values():
            known = [op for op in operations if op.kind == "result" and op.is_known and not op.error]
            if len(known) > 1:
                assert check(operations, model) is None
                answer = known[0].answer
                known[0].answer = End(TaskState.FAILED if answer.state is not TaskState.FAILED else TaskState.COMPLETED)
                assert check(operations, model) is not None
                known[0].answer = answer
                changed += 1
    assert changed > 10
    assert kinds == {"submit", "status", "cancel", "result"}


class TestScale:
    @pytest.mark.timeout(120)
    def test_a_small_world_is_measured(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--scale", "nodes=20", "agents=400", "tasks=200"]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
        assert [row[:3] for row in rows] == [["1", "4", "200"], ["2", "40", "200"], ["20", "400", "200"], ["20", "400", "800"]]
        assert all(float(number) >= 0 for row in rows for number in row[3:])

    def test_memory_is_counted_through_structs_and_containers(self) -> None:
        small, large = scale.footprint({"a": [b"x" * 10]}), scale.footprint({"a": [b"x" * 10_010]})
        assert large - small == 10_000
        world = World(1, faults={}, torture_s=3.0)
        world.run()
        assert scale.footprint(world.auditor.state) > 10_000

    @pytest.mark.parametrize("words", [["nodes"], ["nodes=x"], ["tasks=1"], ["moons=3"]])
    def test_what_cannot_be_understood_is_refused(self, words: list[str]) -> None:
        with pytest.raises(ValueError, match=r"say nodes=N|invalid literal"):
            scale.parse(words)
