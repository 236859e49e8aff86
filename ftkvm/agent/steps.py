"""The names of the steps of every operation's plan, in order; imports nothing that only a host has.

The plans themselves (protect.py, turn_off.py) are built on these names, and tests interrupt each of them.
"""

PROTECT: tuple[str, ...] = (
    "freeze",
    "images",
    "secondary",
    "channels",
    "mirror",
    "memory",
    "record",
    "insert",
    "lockstep",
)
TURN_OFF: tuple[str, ...] = ("journal", "win", "secondary", "release", "merge", "forget")
