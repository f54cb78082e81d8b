"""Leaves the interpreter's lock to the user's threads, between two pieces of work that need it."""

import time
from typing import Final

PAUSE_S: Final = 5e-5
"""Long enough for a thread that waits for the lock to wake up and take it: with 0 s we had it back before that."""


def give_way() -> None:
    """Sleep for a moment: a step that waits for the lock else waits for as long as we work, 5 ms at a time."""
    time.sleep(PAUSE_S)
