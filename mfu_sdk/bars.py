"""The bars of a waterfall, and how they look on a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Known = Literal["measured", "sampled", "modelled", "rest"]
"""How a bar is known: timed in every step, timed in some steps and taken for all, reckoned from counts and rates, or
what the others leave of one."""

_NARROWEST = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """One part of the FLOPs that the device could have done: `share` of them, and the same in `seconds` of step time.

    `reason` says why a bar was cut, or why it is below zero; None where there is nothing to say.
    """

    name: str
    share: float
    seconds: float
    known: Known
    reason: str | None = None


def percent(share: float) -> str:
    """A ratio in per cent: one decimal, or two significant digits where that would show nothing."""
    return f"{share:.1%}" if share == 0 or abs(share) >= 0.001 else f"{100 * share:.2g}%"


def drawn(bars: Sequence[Bar], width: int = 80) -> list[str]:
    """`bars` as lines of at most `width` columns: name, share, how it is known, and where it lies between 0 and 1.

    Each bar begins where the one above it ended, so that they go down from all to nothing like stairs. What lies
    outside of 0 to 1, with an MFU above 1, is not drawn; the numbers say it. Reasons follow below, in lines as long
    as they are.
    """
    if not bars:
        return []
    names = [bar.name.replace("_", " ") for bar in bars]
    shares = [percent(bar.share) for bar in bars]
    name_wide, share_wide = max(map(len, names)), max(map(len, shares))
    known_wide = max(len(bar.known) for bar in bars)
    room = max(_NARROWEST, width - name_wide - share_wide - known_wide - 6)
    lines = []
    begin = 0.0
    for bar, name, share in zip(bars, names, shares, strict=True):
        end = begin + bar.share
        at, to = (round(min(1.0, max(0.0, edge)) * room) for edge in sorted((begin, end)))
        begin = end
        row = f"{name:<{name_wide}}  {share:>{share_wide}}  {bar.known:<{known_wide}}  {' ' * at}{'█' * (to - at)}"
        lines.append(row.rstrip())
    lines += [f"{name}: {bar.reason}" for bar, name in zip(bars, names, strict=True) if bar.reason]
    return lines
