"""Amounts that the user's loop gives while it runs: tokens and samples. A wrong one costs itself, not the loop."""

from __future__ import annotations

from mfu_sdk.guard import warn_once


def amount(what: str, value: object) -> int | None:
    """`value` as a whole number, or None with one warning where it is none or is negative.

    A tensor is refused too: to read it would wait for its device.
    """
    if value is None or (isinstance(value, int) and value >= 0):
        return value
    warn_once(what, f"gave a {type(value).__name__}, must be a whole number of at least 0; left out")
    return None
