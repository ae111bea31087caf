"""A crew of agents that surveys a folder of Python code; see README.md."""
