"""Simulated lives of the built-in Raft: members on disks that crash, a network that loses, clients whose history is judged."""

from comity.sim.raft.world import RaftWorld

__all__ = ["RaftWorld"]
