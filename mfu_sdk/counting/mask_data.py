"""Masks with data: which entries let their pair through, read from the device."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Hiding:
    """A mask that hid pairs of scores of a shape; `inverted` says that True hides."""

    mask: torch.Tensor
    inverted: bool
    shape: torch.Size

    def shown(self) -> torch.Tensor:
        """Which entries let their pair through, as booleans."""
        shown = _shown(self.mask.detach())
        return ~shown if self.inverted else shown


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is a tensor as such, with nothing of its own beneath."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def read(mask: torch.Tensor) -> int:
    """How many entries let their pair through, read from the device; broadcast dimensions are read once."""
    once = mask.detach()
    for dim, stride in enumerate(mask.stride()):
        if stride == 0:
            once = once.narrow(dim, 0, min(1, mask.shape[dim]))
    return int(_shown(once).count_nonzero()) * mask.numel() // max(once.numel(), 1)


def overlap(first: torch.Tensor, second: torch.Tensor) -> int:
    """How many entries are True in both, once broadcast; worked out batch by batch, as masks may be large."""
    first, second = torch.broadcast_tensors(first, second)
    if first.dim() < 3:
        return int((first & second).count_nonzero())
    return int(sum((a & b).count_nonzero() for a, b in zip(first, second, strict=True)))


def _shown(mask: torch.Tensor) -> torch.Tensor:
    return mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()
