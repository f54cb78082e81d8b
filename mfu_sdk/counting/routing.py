"""Mixtures of experts on meta tensors: how many tokens reach the experts is known, to which of them is not.

Every token goes to exactly `top_k` experts, so the experts' grouped products have as many rows in all as there are
(token, choice) pairs, however the router shares them out: their FLOPs need no data. This assumes that no token is
dropped and none padded, as in transformers' own code on one device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class EvenRouting(TorchDispatchMode):
    """Gives grouped products without data the row offsets of tokens that are spread evenly; enter it last."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator, with offsets that have values where it has some that do not."""
        named = dict(kwargs or {})
        if getattr(func, "__name__", "") == "_grouped_mm.default":
            args = tuple(_even(value, args[0], args[1]) if i == 2 else value for i, value in enumerate(args))
            if "offs" in named:
                named["offs"] = _even(named["offs"], args[0], args[1])
        return func(*args, **named)


def _even(offsets: Any, left: Tensor, right: Tensor) -> Any:
    if not isinstance(offsets, Tensor) or not offsets.is_meta:
        return offsets
    # Of two matrices the inner size is grouped, of a matrix and weights the rows; of weights and a matrix the columns.
    grouped = right.shape[-1] if left.dim() == 3 else left.shape[1] if right.dim() == 2 else left.shape[0]
    groups = offsets.numel()
    return torch.tensor([grouped * (i + 1) // groups for i in range(groups)], dtype=offsets.dtype, device="cpu")
