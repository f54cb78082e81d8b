"""One rank's part in one collective of one size: what goes in, where it comes out, and what must come out.

Operands are small whole numbers from a private generator, the same on all ranks, so that every chunk and every sum is
another one. Rank r of the group adds r modulo 16 to them: with values up to 7 + 15 all sums are whole and below 2²⁴,
exact in fp32, up to 700,000 ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist

# torch 2.13 gave them new names, and warns of the old ones.
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True, slots=True)
class Part:
    """A rank's tensors in `collective` over `group`; `truth` is what must be in `out` after it."""

    collective: str
    group: dist.ProcessGroup
    given: torch.Tensor
    out: torch.Tensor
    truth: torch.Tensor

    def call(self) -> None:
        """Run the collective once."""
        if self.collective == "all_reduce":
            # In place: from batch to batch the sums grow, to infinity in the end, which is added as fast as any other.
            dist.all_reduce(self.out, group=self.group)
        elif self.collective == "all_gather":
            _ALL_GATHER(self.out, self.given, group=self.group)
        elif self.collective == "reduce_scatter":
            _REDUCE_SCATTER(self.out, self.given, group=self.group)
        else:
            dist.all_to_all_single(self.out, self.given, group=self.group)

    def right(self) -> bool:
        """Call it once; whether every element that comes out is right."""
        self.out.copy_(self.given) if self.collective == "all_reduce" else self.out.fill_(math.nan)
        self.call()
        return bool(torch.equal(self.out, self.truth))


def part_of(
    collective: str, group: dist.ProcessGroup, place: int, ranks: int, elements: int, device: torch.device
) -> Part:
    """The part of rank `place` of `ranks` in a message of `elements` fp32 numbers, a multiple of `ranks`."""
    chunk = elements // ranks
    # Devices and dtypes are named, because the user may have set others as the default.
    generator = torch.Generator("cpu").manual_seed(0)
    base = torch.randint(0, 8, (elements,), generator=generator, dtype=torch.float32, device="cpu").to(device)
    added = torch.tensor([float(rank % 16) for rank in range(ranks)], dtype=torch.float32, device=device)
    mine = slice(place * chunk, (place + 1) * chunk)
    if collective == "all_gather":
        return Part(collective, group, base[mine].clone(), torch.empty_like(base), base)
    given = base + float(place % 16)
    if collective == "all_reduce":
        truth = ranks * base + added.sum()
    elif collective == "reduce_scatter":
        truth = ranks * base[mine] + added.sum()
    else:
        truth = (base[mine] + added[:, None]).flatten()
    return Part(collective, group, given, torch.empty_like(truth), truth)
