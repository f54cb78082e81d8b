"""Tensors without data that stand for the program's: of the same sizes, strides, offset, dtype and device."""

from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes


@cache
def without_data() -> FakeTensorMode:
    """The mode under which such tensors are made and computed with.

    One for all: what stood for a forward's output stands for the backward's input, and modes do not mix.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def memory(held_bytes: int, device: torch.device) -> Tensor:
    """A storage without data."""
    with _disable_current_modes(), without_data():
        return torch.empty(held_bytes, dtype=torch.uint8, device=device)


def part(base: Tensor, value: Tensor) -> Tensor:
    """What stands in the storage `base` for `value`. Raises for a layout without strides."""
    with _disable_current_modes(), torch.no_grad():
        size_bytes = value.element_size()
        whole = base[: base.numel() // size_bytes * size_bytes].view(value.dtype)
        return whole.as_strided(value.shape, value.stride(), value.storage_offset())


def alone(value: Tensor) -> Tensor:
    """What stands for `value`, in a storage of its own."""
    return part(memory(value.untyped_storage().nbytes(), value.device), value)
