"""Stage for ``core.membership``. The clock starts at 0; lines of the trace begin with the time.

timing KEY=VALUE ...                 another ``Timing``; only as the first command
lead on|off    bus up|down    append stalled|well    lag SECONDS
beacon NODE INCARNATION [draining] [idle]     leaving NODE INCARNATION
departed NODE                        the bus saw its connection close
silent NODE      answered NODE       what became of something sent there
up NODE INCARNATION    evict NODE INCARNATION    left NODE INCARNATION      effective commands
node NODE here|gone|mute             probes are answered, find nobody, or nothing comes back (the default); 1 ms later
commit on|off                        whether proposals become effective at once (at first: on)
at TIME [hear=NODE,NODE]             let time pass, keeping every deadline; those nodes beacon every half second
sleep TIME                           let time pass, asleep: one late tick at the end
show                                 who holds a lease, and the next deadline
"""

from __future__ import annotations

from collections.abc import Iterator

from transcript import Command

from comity.core import membership as m
from comity.model.ids import NodeId
from comity.model.task import Evict, NodeLeft, NodeUp

COMMANDS = {"up": NodeUp, "evict": Evict, "left": NodeLeft}


class MembershipStage:
    def __init__(self) -> None:
        self.machine = m.Membership()
        self.now = 0.0
        self.commit = True
        self.nodes: dict[str, str] = {}
        self.incarnations: dict[str, int] = {}

    def do(self, command: Command) -> Iterator[str]:
        name, words, options = command
        match name:
            case "timing":
                self.machine = m.Membership(
                    m.Timing(**{k: type(getattr(m.Timing(), k))(eval(v)) for k, v in options.items()})
                )
            case "lead":
                yield from self.step(m.Leadership(words[0] == "on"))
            case "bus":
                yield from self.step(m.BusState(words[0] == "up"))
            case "append":
                yield from self.step(m.AppendStalled(words[0] == "stalled"))
            case "lag":
                yield from self.step(m.LoopLag(float(words[0])))
            case "beacon":
                yield from self.beacon(words[0], int(words[1]), words[2:])
            case "leaving":
                yield from self.step(m.Leaving(NodeId(words[0]), int(words[1])))
            case "departed" | "silent" | "answered":
                event = {"departed": m.Departed, "silent": m.NoResponder, "answered": m.ProbeAnswered}[name]
                yield from self.step(event(NodeId(words[0])))
            case "up" | "evict" | "left":
                yield from self.step(m.Applied(COMMANDS[name](NodeId(words[0]), int(words[1]))))
            case "node":
                self.nodes[words[0]] = words[1]
            case "commit":
                self.commit = words[0] == "on"
            case "at":
                yield from self.pass_time(
                    float(words[0]), [node for node in options.get("hear", "").split(",") if node]
                )
            case "sleep":
                self.now = float(words[0])
                yield from self.step(m.Tick())
            case "show":
                members = " ".join(
                    f"{node}:{incarnation}:{state}" for node, incarnation, state in self.machine.members()
                )
                deadline = self.machine.next_deadline()
                yield f"{members or 'nobody'} next={'never' if deadline is None else f'{deadline:.3f}'}"
            case _:
                raise ValueError(f"unknown command {name}")

    def beacon(self, node: str, incarnation: int, flags: list[str] | None = None) -> Iterator[str]:
        self.incarnations[node] = incarnation
        flags = flags or []
        yield from self.step(m.BeaconSeen(NodeId(node), incarnation, "draining" in flags, "idle" not in flags))

    def pass_time(self, until: float, heard: list[str]) -> Iterator[str]:
        beat = self.now
        while True:
            deadline = self.machine.next_deadline()
            beat = beat if beat > self.now else self.now + 0.5
            soonest = min(deadline if deadline is not None else until, beat if heard else until, until)
            if soonest >= until:
                self.now = until
                yield from self.step(m.Tick())
                return
            self.now = soonest
            if heard and soonest == beat:
                for node in heard:
                    yield from self.beacon(node, self.incarnations.get(node, 1))
            else:
                yield from self.step(m.Tick())

    def step(self, event: m.Event) -> Iterator[str]:
        effects = self.machine.step(event, self.now)
        self.machine.check()
        for effect in effects:
            yield f"{self.now:.3f} {self.told(effect)}"
        for effect in effects:
            if isinstance(effect, m.Propose) and self.commit:
                yield from self.step(m.Applied(effect.command))
            elif isinstance(effect, m.Probe) and self.nodes.get(effect.node, "mute") != "mute":
                self.now += 0.001
                here = self.nodes[effect.node] == "here"
                yield from self.step(m.ProbeAnswered(effect.node) if here else m.NoResponder(effect.node))

    def told(self, effect: m.Effect) -> str:
        match effect:
            case m.Propose(command):
                reason = f": {command.reason}" if isinstance(command, Evict) else ""
                return f"propose {type(command).__name__} {command.node} {command.incarnation}{reason}"
            case m.Probe(node):
                return f"probe {node}"
            case m.Tell(node, incarnation):
                return f"tell {node} that {incarnation} is over"
            case m.Became(node, state, reason):
                return f"{node} is {state}" + (f": {reason}" if reason else "")


stage = MembershipStage
