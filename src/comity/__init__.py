"""Comity: many agents on many machines as one network."""
