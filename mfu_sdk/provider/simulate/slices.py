"""MIG geometry of an 80 GB GPU: which slices fit together, and what is left that nobody who waits can take.

Profiles and places: NVIDIA MIG User Guide, "Supported MIG profiles" (A100, H100): seven compute and eight memory
slices; a slice begins at one of its places only. So 3g + 3g leave a compute slice that no profile can take, for want of
memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

COMPUTE, MEMORY = 7, 8


@dataclass(frozen=True, slots=True)
class Profile:
    """Compute slices, memory slices, and the memory slices at which it may begin."""

    compute: int
    memory: int
    places: tuple[int, ...]


PROFILES: Final = {
    "1g.10gb": Profile(1, 1, (0, 1, 2, 3, 4, 5, 6)),
    "2g.20gb": Profile(2, 2, (0, 2, 4)),
    "3g.40gb": Profile(3, 4, (0, 4)),
    "4g.40gb": Profile(4, 4, (0,)),
    "7g.80gb": Profile(7, 8, (0,)),
}


@lru_cache(1024)
def fits(layout: tuple[str, ...]) -> bool:
    """Whether these slices can lie on one GPU at once, wherever each of them is."""
    if sum(PROFILES[name].compute for name in layout) > COMPUTE:
        return False
    return _placed(tuple(sorted(layout, key=lambda name: -PROFILES[name].memory)), frozenset(range(MEMORY)))


def placeable(layout: Sequence[str], profile: str) -> bool:
    """Whether `profile` fits beside `layout`."""
    return fits((*layout, profile))


def free(layout: Sequence[str]) -> int:
    """Compute slices that no slice of the layout covers."""
    return COMPUTE - sum(PROFILES[name].compute for name in layout)


def stranded(layout: Sequence[str], waiting: Sequence[str]) -> float:
    """The share of the GPU that is free while what waits does not fit on it; 0 where nothing waits or one fits."""
    if not waiting or any(placeable(layout, profile) for profile in waiting):
        return 0.0
    return free(layout) / COMPUTE


def _placed(layout: tuple[str, ...], open_slices: frozenset[int]) -> bool:
    if not layout:
        return True
    profile = PROFILES[layout[0]]
    for place in profile.places:
        taken = frozenset(range(place, place + profile.memory))
        if taken <= open_slices and _placed(layout[1:], open_slices - taken):
            return True
    return False
