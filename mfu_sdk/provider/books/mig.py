"""How a GPU is cut into MIG slices: each profile's share of the SMs, and where on the GPU it may lie.

A GPU has 8 memory slices (an A30 has 4), and a profile takes some of them from one of a few starts. Placements are
those that `nvidia-smi mig -lgipp` lists, shares of SMs the column "Fraction of SMs" of NVIDIA's MIG user guide,
"Supported MIG Profiles" (docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html). That only one
slice of a GPU may have the media extensions (`+me`) is not held against a layout.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Final

from mfu_sdk.errors import ConfigurationError

_PROFILE: Final = re.compile(r"(\d)g\.(\d{1,3})gb(?:\+[a-z.]+)?(?::(\d))?")
# Names round the memory: 7g.141gb of an H200 is eight times 18 GB less 2 %.
_ROUNDING: Final = 0.04


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where profiles lie: starts by (compute slices, memory slices); `compute` slices in all."""

    compute: int
    starts: Mapping[tuple[int, int], tuple[int, ...]]


_SEVEN: Final = _Cut(
    7,
    {
        (1, 1): (0, 1, 2, 3, 4, 5, 6),
        (1, 2): (0, 2, 4, 6),
        (2, 2): (0, 2, 4),
        (3, 4): (0, 4),
        (4, 4): (0,),
        (7, 8): (0,),
    },
)
_FOUR: Final = _Cut(4, {(1, 1): (0, 1, 2, 3), (2, 2): (0, 2), (4, 4): (0,)})

# Parts of the driver's names, the first that fits, with the GB that one memory slice is called by (1g.10gb: 10).
_KINDS: Final = (
    (r"\bA30\b", _FOUR, 6),
    (r"\b(A100|A800)\b.*40GB", _SEVEN, 5),
    (r"\b(A100|A800)\b.*80GB", _SEVEN, 10),
    (r"\bH100 NVL\b|\bH20\b|\bGH200 (480|120)G|\bH100.*\b9[46]GB", _SEVEN, 12),
    (r"\bH100\b|\bH800\b", _SEVEN, 10),
    (r"\bH200\b|\bGH200 144G", _SEVEN, 18),
    (r"\bG?B200\b", _SEVEN, 23),
    (r"\bG?B300\b", _SEVEN, 34),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """A slice of one kind of GPU: `sm_share` of its SMs, `size` memory slices from any of `starts`."""

    name: str
    sm_share: Fraction
    size: int
    starts: tuple[int, ...]


def profile(gpu_type: str, name: str) -> Profile:
    """The profile `name` (`3g.40gb`, or `3g.40gb:4` for the one that starts at memory slice 4) on this GPU type.

    Raises `ConfigurationError` for a GPU that has no MIG as far as is known here, and for a profile it does not have.
    """
    cut, slice_gb = _kind(gpu_type)
    parts = _PROFILE.fullmatch(name)
    if parts is not None:
        compute, gb = int(parts[1]), int(parts[2])
        for (slices, size), starts in cut.starts.items():
            if slices != compute or abs(gb - size * slice_gb) > _ROUNDING * size * slice_gb:
                continue
            fixed = tuple(start for start in starts if parts[3] is None or start == int(parts[3]))
            if fixed:
                return Profile(name, Fraction(compute, cut.compute), size, fixed)
    known = ", ".join(f"{c}g.{size * slice_gb}gb" for c, size in cut.starts)
    raise ConfigurationError(
        f"{name!r}: is no MIG profile of {gpu_type}, which has about {known}; give it as `nvidia-smi mig -lgip` lists"
        " it, with `:START` of `-lgipp` if you like"
    )


def arrangements(gpu_type: str, layout: Iterable[str]) -> frozenset[int]:
    """The sets of memory slices, one bit each, that `layout` may fill; empty where it fits in no way."""
    return _arrangements(tuple(sorted((profile(gpu_type, name) for name in layout), key=lambda p: (-p.size, p.name))))


def sm_share(gpu_type: str, layout: Iterable[str]) -> Fraction:
    """The share of the GPU's SMs that the slices of `layout` cover; the rest of a GPU in MIG mode is stranded."""
    return sum((profile(gpu_type, name).sm_share for name in layout), Fraction(0))


def can_place(gpu_type: str, layout: Iterable[str], name: str) -> bool | None:
    """Whether a slice `name` fits beside `layout` as it lies; None where that hangs on where its slices lie.

    What is free counts only where a profile may start: three free slices need not take a `2g`.
    """
    wanted = profile(gpu_type, name)
    masks = [(1 << wanted.size) - 1 << start for start in wanted.starts]
    answers = {any(not used & mask for mask in masks) for used in arrangements(gpu_type, layout)}
    return answers.pop() if len(answers) == 1 else None


@cache
def _arrangements(layout: tuple[Profile, ...]) -> frozenset[int]:
    filled = {0}
    for one in layout:
        masks = [(1 << one.size) - 1 << start for start in one.starts]
        filled = {used | mask for used in filled for mask in masks if not used & mask}
    return frozenset(filled)


def _kind(gpu_type: str) -> tuple[_Cut, int]:
    for pattern, cut, slice_gb in _KINDS:
        if re.search(pattern, gpu_type):
            return cut, slice_gb
    raise ConfigurationError(f"{gpu_type!r}: is not known to have MIG; leave its rows out, or correct its name")
