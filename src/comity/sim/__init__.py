"""The simulated world: a whole network in one thread, on virtual time, with faults drawn from a seed. See ``world``."""

from comity.sim.checkers import Violation
from comity.sim.world import Report, World

__all__ = ["Report", "Violation", "World"]
