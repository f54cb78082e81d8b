"""The experts of a mixture: what a GPU holds and reads of them where they are shared out (expert parallel)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from mfu_sdk.records import OpCost

GROUPED: Final = "aten::_grouped_mm"
"""The operator that experts' products are counted as."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A model's routed experts: their parameters in all, in how many layers, how many a layer, of which a token takes
    `top_k`."""

    params: int
    layers: int
    number: int
    top_k: int

    def read(self, tokens: float) -> float:
        """The share of them that so many tokens reach, spread evenly: each token `top_k`, until all are reached."""
        return min(1.0, tokens * self.top_k / self.number)


def on_one_gpu(
    ops: Sequence[OpCost], experts: Experts, ep: int, tokens: float, element_bytes: int, passes: int
) -> list[OpCost]:
    """`ops` of a micro-batch of `tokens`, with an `ep`-th of the experts on each GPU and `ep` GPUs' tokens for them.

    FLOPs stay what they are, spread evenly. Of the bytes, those of weights become fewer: a GPU reads, in each of so
    many `passes` over them (forward; training also for both gradients), of its own experts those that the tokens of
    all `ep` reach, in place of all that its own tokens reach.
    """
    before = experts.read(tokens)
    after = experts.read(ep * tokens) / ep
    weights = passes * before * experts.params * element_bytes
    moved = sum(op.bytes_moved * op.calls for op in ops if op.op == GROUPED)
    if not moved:
        return list(ops)
    left = 1.0 - min(1.0, weights / moved) * (1.0 - after / before)
    return [replace(op, bytes_moved=round(op.bytes_moved * left)) if op.op == GROUPED else op for op in ops]
