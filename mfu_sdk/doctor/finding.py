"""One thing that was looked at, and how it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the screen: what was looked at, how it is, and the sentence about it with the remedy.

    "bad": a figure measured now would be wrong or of no use. "note": it would be right, but lower than this machine
    allows, or less sure. "good": nothing to say against it.
    """

    what: str
    state: Literal["good", "note", "bad"]
    text: str
